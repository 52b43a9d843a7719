"""A starting classifier: trained on the whole training set, and written with the record of its training."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salun_diffusers.classification.config import TRAINING_FLAGS, TrainConfig
from salun_diffusers.classification.hyper_parameters import Training
from salun_diffusers.classification.presets import NORMALISATIONS, TRAINING, filled
from salun_diffusers.errors import UserError
from salun_diffusers.files.output_places import require_writable
from salun_diffusers.files.whole_files import full_disk_is_told, whole_folder

if TYPE_CHECKING:
    from salun_diffusers.classification.batches import Augmentation
    from salun_diffusers.classification.classifier import Classifier
    from salun_diffusers.classification.forget_split import Pools


def train_classifier(
    classifier: Classifier, pools: Pools, training: Training, *, seed: int, augmentation: Augmentation
) -> None:
    """Train all weights on the whole training set, in place.

    Args:
        classifier: With fresh weights.
        pools: The data.
        training: Settings of SGD.
        seed: Seed of the batches.
        augmentation: What is done to pictures.

    Raises:
        UserError: If the data has fewer than two classes, or no test picture.
    """
    from salun_diffusers.classification.batches import shuffled
    from salun_diffusers.classification.forget_split import require_two_classes
    from salun_diffusers.classification.training import AllWeights, cross_entropy, fit
    from salun_diffusers.progress import Progress
    from salun_diffusers.seeds import stream

    require_two_classes(pools.train, pools.test)
    with Progress("training", training.epochs) as bar:

        def passes(epoch: int) -> Any:
            bar.advance(1 if epoch else 0)
            return shuffled(
                pools.train,
                training.batch_size,
                stream(seed, "train", epoch),
                augmentation=augmentation,
                device=classifier.device,
            )

        fit(AllWeights(classifier, seed), training, passes, cross_entropy(classifier))
        bar.advance(1)


def normalised(classifier: Classifier, name: str, channels: int) -> Classifier:
    """The classifier with another normalisation of its pictures.

    Raises:
        UserError: If the pictures have another number of channels.
    """
    mean, std = (values * channels if len(values) == 1 else values for values in NORMALISATIONS[name])
    if len(mean) != channels:
        raise UserError(
            f"--normalisation {name} is for pictures of {len(mean)} channels, these have {channels}; use half."
        )
    return dataclasses.replace(classifier, mean=mean, std=std)


def run_training(config: TrainConfig) -> tuple[Path, float]:
    """The whole program: data, model, training, folder.

    Returns:
        The folder and the accuracy on the test set.

    Raises:
        UserError: If the request cannot be carried out.
    """
    config = filled(config, TRAINING[config.preset])
    # Nothing of these is open any more.
    asked: dict[str, Any] = {name: getattr(config, name) for name in TRAINING[config.preset]}
    training = Training(**{name: getattr(config, name) for name in TRAINING_FLAGS})
    folder = Path(config.output_dir).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output_dir must be an empty or new folder, {folder} is not; choose another.")
    require_writable(folder, "--output_dir")

    from salun_diffusers.accelerator import engine
    from salun_diffusers.classification.batches import Augmentation
    from salun_diffusers.classification.classifier import predict
    from salun_diffusers.classification.datasets import load_pools
    from salun_diffusers.classification.metrics import accuracy
    from salun_diffusers.classification.models import IMAGE_SIZES, make_classifier, save_classifier

    pools = load_pools(
        asked["dataset"],
        seed=config.data_seed,
        image_size=config.image_size or IMAGE_SIZES.get(asked["model"]),
        validation=asked["validation_share"],
    )
    channels, _, size = pools.train.pixels.shape[1:]
    classifier = make_classifier(
        asked["model"], class_names=pools.train.class_names, channels=channels, image_size=size, seed=config.seed
    )
    classifier = normalised(classifier, asked["normalisation"], channels)
    augmentation = Augmentation(asked["shift"], asked["flip"] == "on")
    started = time.perf_counter()
    with engine(mixed_precision="no", gradient_accumulation_steps=1, report_to=None) as accelerator:
        if accelerator.num_processes > 1:
            raise UserError("Classifiers train on one process; run `accelerate launch --num_processes 1 …`.")
        classifier.model.to(accelerator.device)
        train_classifier(classifier, pools, training, seed=config.seed, augmentation=augmentation)
    seconds = time.perf_counter() - started
    result = accuracy(predict(classifier, pools.test.pixels), pools.test.labels)
    measured = {"seconds": round(seconds, 2), "test_accuracy": result}
    record = {**dataclasses.asdict(config), "flip": augmentation.flip, **measured}
    with full_disk_is_told(f"the model in {folder}"), whole_folder(folder) as partial:
        save_classifier(classifier, partial, size, record)
    return folder, result
