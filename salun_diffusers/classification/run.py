"""The whole of an unlearning, from what the user wants to forget to the report."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from salun_diffusers.classification.config import METHOD_FLAGS, TRAINING_FLAGS, UnlearnConfig
from salun_diffusers.classification.hyper_parameters import HYPER_PARAMETERS, RetrainSettings, Training
from salun_diffusers.classification.presets import filled, unlearning_preset
from salun_diffusers.errors import ReceiptError, UserError
from salun_diffusers.files.output_places import require_writable

if TYPE_CHECKING:
    from salun_diffusers.classification.batches import Augmentation
    from salun_diffusers.classification.classifier import Classifier
    from salun_diffusers.classification.forget_split import ForgetSplit, Pools
    from salun_diffusers.classification.metrics import MiaRule
    from salun_diffusers.classification.training import Method
    from salun_diffusers.files.run_folder import RunFolder
    from salun_diffusers.reports.report import EvaluationReport


def make_method(config: UnlearnConfig, record: Mapping[str, Any] | None = None) -> Method:
    """The method with the user's settings; what is not set is as the method has it.

    Args:
        config: The settings.
        record: Of the model's training: Retrain's settings are the model's own.

    Raises:
        UserError: If a setting is not one of the method's.
    """
    known = {field.name for field in dataclasses.fields(HYPER_PARAMETERS[config.method])}
    given, training = (
        {name: getattr(config, name) for name in flags if getattr(config, name) is not None}
        for flags in (METHOD_FLAGS, TRAINING_FLAGS)
    )
    for name in given:
        if name not in known:
            fitting = ", ".join(f"--{item}" for item in METHOD_FLAGS if item in known) or "none of its own"
            raise UserError(f"--{name} is no setting of --method {config.method}; it has {fitting}.")
    if training and "training" not in known:
        hint = " Its batches are --importance_batch_size." if "importance_batch_size" in known else ""
        raise UserError(
            f"--{next(iter(training))} has no effect with --method {config.method}, which does not train.{hint}"
        )
    from salun_diffusers.classification.methods import METHODS

    switches = {"on": True, "off": False}
    method = METHODS[config.method](**{name: switches.get(value, value) for name, value in given.items()})
    if config.method == "retrain":
        method = dataclasses.replace(method, training=recipe_of(record or {}))
    if training:
        method = dataclasses.replace(method, training=dataclasses.replace(method.training, **training))
    made: Method = method
    return made


def check_request(config: UnlearnConfig) -> None:
    """Refuse what can be known to be wrong without opening the model.

    Raises:
        UserError: Naming the flag.
    """
    named = [name for name in ("forget_class", "forget_ratio", "forget_indices") if getattr(config, name) is not None]
    if len(named) != 1:
        found = " and ".join(f"--{name}" for name in named) or "none"
        raise UserError(f"Say what to forget by one of --forget_class, --forget_ratio, --forget_indices; got {found}.")
    if not Path(config.model).is_dir():
        raise UserError(f"--model {config.model} is no folder; make one by `salun train-classifier`.")
    if config.output_dir is not None:
        folder = Path(config.output_dir).expanduser()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"--output_dir must be an empty or new folder, {folder} is not; choose another.")
    require_writable(config.output_dir if config.output_dir is not None else "runs", "--output_dir")


def make_split(config: UnlearnConfig, pools: Pools) -> ForgetSplit:
    """What the user wants to forget.

    Raises:
        UserError: If it is not in the data, nothing, or everything.
    """
    from salun_diffusers.classification import forget_split

    if config.forget_class is not None:
        return forget_split.forget_class(pools, config.forget_class)
    if config.forget_ratio is not None:
        return forget_split.forget_fraction(pools, config.forget_ratio, config.seed)
    return forget_split.forget_instances(pools, forget_split.read_indices(str(config.forget_indices)))


def load(config: UnlearnConfig) -> tuple[Classifier, Pools, int, dict[str, Any]]:
    """The classifier, its data, its picture size, and the record of its training.

    Raises:
        UserError: If model and data do not go together.
    """
    from salun_diffusers.classification.class_order import in_order_of_model
    from salun_diffusers.classification.datasets import load_pools
    from salun_diffusers.classification.models import load_classifier, load_record, names_of

    folder = Path(config.model)
    classifier, size = load_classifier(folder)
    record = load_record(folder)
    for name in ("dataset", "data_seed"):
        wanted, trained = getattr(config, name), record.get(name)
        if wanted is not None and trained is not None and not _same_source(wanted, trained):
            raise UserError(
                f"--{name} {wanted} is not what {folder} was trained with ({trained}): it would be tested on "
                "pictures that it has seen. Leave the flag out, or train another model."
            )
    dataset = config.dataset or record.get("dataset", "digits")
    seed = config.data_seed if config.data_seed is not None else record.get("data_seed", 0)
    pools = load_pools(dataset, seed=seed, image_size=size, validation=record.get("validation_share", 0.0))
    pools = in_order_of_model(pools, names_of(classifier), folder)
    channels, needed = pools.train.pixels.shape[1], getattr(classifier.model.config, "num_channels", None)
    if needed not in (None, channels):
        raise UserError(f"--model {folder} takes pictures of {needed} channels, the data has {channels}.")
    return classifier, pools, int(pools.train.pixels.shape[-1]), record


def _same_source(one: str | int, other: str | int) -> bool:
    """Whether two values of a flag are equal, or are two paths to one place."""
    if one == other:
        return True
    places = Path(str(one)).expanduser(), Path(str(other)).expanduser()
    return all(place.exists() for place in places) and places[0].samefile(places[1])


def run_unlearning(config: UnlearnConfig, command: str = "") -> tuple[RunFolder, EvaluationReport]:
    """The whole run, top to bottom.

    Args:
        config: What to forget and how.
        command: The command line, for the record.

    Raises:
        UserError: If the request cannot be carried out.
        ReceiptError: If a weight outside the mask moved.
    """
    config = filled(config, unlearning_preset(config.preset, config.method))
    check_request(config)

    from salun_diffusers.accelerator import engine
    from salun_diffusers.classification.methods import default_mask
    from salun_diffusers.classification.metrics import measure, require_finite
    from salun_diffusers.classification.models import load_classifier, save_classifier
    from salun_diffusers.classification.run_report import Outcome, mask_receipt, subject_of, write_report
    from salun_diffusers.classification.soft_masks import check_soft, masked
    from salun_diffusers.classification.training import Task
    from salun_diffusers.files.run_folder import fingerprint, open_run
    from salun_diffusers.progress import Clock

    mia = cast("MiaRule", config.mia)  # The preset, or none, has filled it.
    method = make_method(config)  # What is wrong with the settings is told before anything is loaded.
    kind = config.mask or default_mask(config.method)
    check_soft(config, kind, getattr(method, "training", None))
    clock = Clock({})
    with clock.stage("load"):
        classifier, pools, size, record = load(config)
        method = make_method(config, record)
        split = make_split(config, pools)
    with engine(mixed_precision="no", gradient_accumulation_steps=1, report_to=None) as accelerator:
        if accelerator.num_processes > 1:
            raise UserError("Classifiers are unlearned on one process; run `accelerate launch --num_processes 1 …`.")
        classifier.model.to(accelerator.device)
        base = {name: weight.detach().cpu().clone() for name, weight in classifier.parameters.items()}
        with clock.stage("measure before"):
            before = measure(classifier, split, seed=config.seed, mia=mia)
        with clock.stage("saliency and mask"):
            mask, soften = masked(config, kind, classifier, split.forget)
        augmentation = augmentation_of(config, record)
        task = Task(classifier, split, mask, config.seed, config.norm_stats, augmentation, soften)
        with clock.stage("unlearning"):
            unlearned = method(task)
        require_finite(unlearned.classifier, split)  # Before a folder is made: nothing is left of a model that broke.
        identity = fingerprint(**{name: str(value) for name, value in dataclasses.asdict(config).items()})
        run = open_run(config.output_dir, split.name, config.method, resume=None, identity=identity)
        with clock.stage("save and measure"):
            unlearned.mask.save(run.mask)
            save_classifier(unlearned.classifier, run.root / "model", size, {**record, "unlearned": split.name})
            written, _ = load_classifier(run.root / "model")
            receipt = mask_receipt(base, written.parameters, unlearned.mask)
            written.model.to(accelerator.device)
            after = measure(written, split, seed=config.seed, mia=mia)
        if receipt.violations:
            raise ReceiptError(f"{receipt.violations} weights outside the mask moved; do not use {run.root}.")
        retrained = None
        if config.retrain:
            with clock.stage("retraining"):
                again = _retrain(config, split, record, accelerator.device)
            retrained = measure(again, split, seed=config.seed, mia=mia)
        device = f"{accelerator.device.type} ({platform.processor() or platform.machine()})"
    outcome = Outcome(
        split.name,
        split.whole_class,
        before,
        after,
        retrained,
        unlearned.history,
        clock.seconds,
        device,
        subject_of(split),
    )
    return run, write_report(run, outcome, config, unlearned.mask, receipt, command)


def augmentation_of(config: UnlearnConfig, record: Mapping[str, Any]) -> Augmentation:
    """What is done to pictures in training: as the flags say, else as the model was trained."""
    from salun_diffusers.classification.batches import Augmentation

    shift = record.get("shift", 0) if config.shift is None else config.shift
    flip = record.get("flip", False) if config.flip is None else config.flip == "on"
    return Augmentation(shift, flip)


def recipe_of(record: Mapping[str, Any]) -> Training:
    """The settings of SGD that a model was trained with; a model from elsewhere gets `Retrain`'s own."""
    known = {name: record[name] for name in TRAINING_FLAGS if name in record}
    return dataclasses.replace(RetrainSettings().training, **known)


def _retrain(config: UnlearnConfig, split: ForgetSplit, record: Mapping[str, Any], device: Any) -> Classifier:
    from salun_diffusers.classification.methods.finetune import Retrain
    from salun_diffusers.classification.models import load_classifier
    from salun_diffusers.classification.training import Task
    from salun_diffusers.masks.mask import SaliencyMask

    classifier, _ = load_classifier(Path(config.model))
    classifier.model.to(device)
    own = augmentation_of(dataclasses.replace(config, shift=None, flip=None) if "shift" in record else config, record)
    task = Task(classifier, split, SaliencyMask.full(classifier.parameters), config.seed, "update", own)
    return Retrain(recipe_of(record))(task).classifier
