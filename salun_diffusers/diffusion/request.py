"""What a run is asked to do, checked as far as that goes without loading a model."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from salun_diffusers.adapters.loadable import require_lora
from salun_diffusers.arguments import check
from salun_diffusers.diffusion.adapted_model import AdaptedModel
from salun_diffusers.diffusion.adapter_flags import check_adapter, require_linear
from salun_diffusers.diffusion.base_model import BaseModel, FolderModel, is_complete
from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.detection import check_detector, check_red_team, chosen_detector, with_detector
from salun_diffusers.diffusion.earlier import with_earlier
from salun_diffusers.diffusion.families.erasable import few_steps, predicted, require_erasable
from salun_diffusers.diffusion.foreseen import MADE_MASKS, DiskSpace, check_foreseen, disk_space, parameters_of_rank
from salun_diffusers.diffusion.global_batch import GlobalBatch, with_scaled_rate
from salun_diffusers.diffusion.hub_flags import check_hub, hub_target
from salun_diffusers.diffusion.joined import concept_of
from salun_diffusers.diffusion.own_reading import check_own_flags, read_own_sets
from salun_diffusers.diffusion.own_sets import OwnSets, sized, with_own_sets
from salun_diffusers.diffusion.presets.classes import class_concept
from salun_diffusers.diffusion.presets.known import find_concept
from salun_diffusers.diffusion.presets.stable_diffusion import kind_of
from salun_diffusers.diffusion.robustness import check_robust, check_robust_classes, robust_in_words
from salun_diffusers.diffusion.row_forwards import in_words, row_forwards
from salun_diffusers.diffusion.settings import OWN_SCHEDULER, Settings, recorded, resolve, soft_in_words
from salun_diffusers.diffusion.strength_prompts import check_strength, strength_in_words, with_curve
from salun_diffusers.diffusion.unfetched import check_unfetched
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.detector_choice import DetectorChoice
from salun_diffusers.files.json_files import read_object
from salun_diffusers.files.output_places import require_outside_components, require_writable
from salun_diffusers.files.pipeline_folder import (
    CLASS_CONDITIONAL,
    class_name,
    denoiser_folder,
    is_local,
    model_index,
    public_name,
)
from salun_diffusers.files.run_folder import check_output
from salun_diffusers.files.single_file import SINGLE_FILES, find_model, is_single_file
from salun_diffusers.files.whole_files import require_space


@dataclass(frozen=True)
class Request:
    """A run that can be carried out, as far as is known.

    Args:
        config: What the user said.
        settings: What the run computes with.
        concept: What to forget.
        base: Folder of the base model.
        class_name: Its pipeline class.
        model: The base model itself, in its folder or in memory.
        disk: What it will write; None while the weights are not at hand.
        own: Pictures of the user's.
    """

    config: EraseConfig
    settings: Settings
    concept: Concept
    base: Path
    class_name: str
    model: BaseModel
    disk: DiskSpace | None = None
    own: OwnSets = field(default_factory=OwnSets)

    @property
    def detector(self) -> DetectorChoice:
        """The detector that looks for the concept."""
        return chosen_detector(self.concept, self.config)


def accept(config: EraseConfig, held: BaseModel | None = None, *, writes: bool = True) -> Request:
    """Check a request: values, prompts, mask file, output folder and base model, in the order of what they cost.

    Nothing is made or written. With `dry_run` no weights are fetched from the hub either.

    Args:
        config: What the user said.
        held: The base model, where it lies in memory; else it is found by its name.
        writes: Whether a run will write its result, which needs space; else it is only looked at once more.

    Raises:
        UserError: At the first thing that cannot be; the message says what is required, what arrived and what to do.
    """
    check(config)
    if config.list_concepts is not None:
        raise UserError("list_concepts is for the program, which prints the list; leave it None.")
    check_detector(config)
    name = config.pretrained_model_name_or_path
    if config.single_file_config and not is_single_file(name):
        raise UserError(f"--single_file_config goes with a single file, {name} is none; leave the flag out.")
    if config.mask not in MADE_MASKS and not Path(config.mask).is_file():
        raise UserError(
            f"--mask must be one of {', '.join(MADE_MASKS)}, or a mask file; there is no file {config.mask}."
        )
    if config.save_patch and config.save_dtype != "base":
        raise UserError(
            f"--save_patch needs weights of the base's data type: leave --save_dtype at base, got {config.save_dtype}."
        )
    if config.resolution and config.resolution % 8:
        raise UserError(
            f"--resolution must be a multiple of 8, as latents have an eighth of it; got {config.resolution}."
        )
    if config.validation_prompts and not config.report_to:
        raise UserError(
            "--validation_prompts are drawn for a tracker: --report_to tensorboard, wandb or comet_ml is required."
        )
    if config.use_8bit_adam and find_spec("bitsandbytes") is None:
        raise UserError("--use_8bit_adam needs bitsandbytes: pip install 'salun-diffusers[8bit]'.")
    if config.max_retain_drop is not None and config.target_forget is None:
        raise UserError(
            f"--max_retain_drop {config.max_retain_drop:g} bounds what a search for the strength may cost: "
            "--target_forget, such as 0.98, is required with it."
        )
    if config.collateral and find_spec("torchmetrics") is None:
        raise UserError("--collateral measures KID by torchmetrics: pip install 'salun-diffusers[evaluation]'.")
    if config.vram is not None and not config.dry_run:
        raise UserError(
            f"--vram says what a run may take, for --dry_run; got {config.vram:g} without it. Take the flags it prints."
        )
    if config.generated_data_dir:
        require_writable(config.generated_data_dir, "--generated_data_dir")
    if config.scheduler not in (None, OWN_SCHEDULER):
        from salun_diffusers.evaluation.drawing_pipeline import scheduler_class  # imports torch

        scheduler_class(str(config.scheduler))
    check_adapter(config)
    check_robust(config)
    check_own_flags(config)
    check_output(config.output_dir, config.resume_from_checkpoint)
    check_hub(config)
    # A model that lies here is looked at first, one that has to be fetched or written out last.
    early = held is None and (is_single_file(name) or not is_local(name))
    if early and is_single_file(name):
        with_detector(concept_of(config, find_concept), config)
    elif early:
        check_unfetched(config)
    own = read_own_sets(config) if early else OwnSets()
    base = (
        held.folder
        if held is not None
        else find_model(
            name,
            revision=config.revision,
            variant=config.variant,
            cache_dir=config.cache_dir,
            download=not config.dry_run,
            single_file_config=config.single_file_config,
            check=require_erasable,
        )
    )
    model: BaseModel = held if held is not None else FolderModel(base, config.variant)
    index = model_index(base)
    require_erasable(base, index)
    denoiser_folder(index, base)
    if config.adapter == "sparse":
        require_linear(base, config.train_method)
    if config.adapter == "lora":
        require_lora(base, "--adapter lora")
        model = AdaptedModel(model, {"base": public_name(name)[0]})
    for flag, place in (("output_dir", config.output_root), ("generated_data_dir", config.generated_data_dir)):
        if place:
            require_outside_components(place, base, f"--{flag}")
    classes = class_name(index) == CLASS_CONDITIONAL
    kind = kind_of(base, class_name(index), config.prediction_type)
    network, space = _network(base, index), model.text_space()

    def find(one: EraseConfig) -> Concept:
        return class_concept(one, index, network) if classes else find_concept(one, kind, space)

    concept = with_earlier(with_detector(concept_of(config, find), config), base, find)
    if classes:
        check_robust_classes(config, base)
    if config.train_data and not classes:
        raise UserError(
            f"--train_data is for class-conditional models, whose pictures have labels; {base} is a "
            f"{class_name(index)}, which draws its own sets."
        )
    if config.collateral and classes:
        raise UserError(
            f"--collateral draws captions, and {base} is a {class_name(index)}, which reads none; its report has every "
            "class one by one already."
        )
    if config.resolution and classes:
        raise UserError(
            f"--resolution is for models of latents; {base} is a {class_name(index)}, whose network draws pictures of "
            "one size."
        )
    if concept.parts and (config.forget_dir or config.retain_dir or config.dataset_name):
        raise UserError(
            f"Own pictures belong to one concept, got {len(concept.parts)}; erase them one after the other, or leave "
            "--forget_dir, --retain_dir and --dataset_name out."
        )
    own, concept = with_own_sets(own if early else read_own_sets(config), concept, classes)
    settings = sized(own, resolve(config, concept.numbers), concept, config)
    if settings.num_forget_images < concept.groups:
        raise UserError(
            f"--num_forget_images must be at least {concept.groups}, one latent for each concept; got "
            f"{settings.num_forget_images}."
        )
    check_strength(concept, config)
    check_red_team(concept, config)
    # Of a pipeline in memory the base's weights are gone when the erased ones are there.
    settings = settings if held is not None else with_curve(settings, concept, config)
    disk = None
    if held is not None or not config.dry_run or is_local(name) or is_complete(model):
        model.require_complete()
        denoiser = base / denoiser_folder(index, base)
        selected = check_foreseen(
            denoiser, base / "scheduler", settings, config.variant, concept.groups, counts=model.counts()
        )
        result = model.bytes_of_result()
        if config.adapter == "lora" and held is None:
            selected = parameters_of_rank(denoiser, config.variant, settings.rank)
            result = 4 * selected
        # A run that cannot be taken up again writes no checkpoints.
        disk = disk_space(result, 0 if model.is_held else selected, settings)
        if writes:
            what = "The erased pipeline with its work files and checkpoints"
            require_space(Path(config.output_root), disk.total, what)
    if isinstance(model, AdaptedModel):
        model = replace(model, told={"concept": concept.name, **model.told})
    return Request(config, settings, concept, base, class_name(index), model, disk, own)


def _network(base: Path, index: dict[str, object]) -> dict[str, object]:
    """The denoiser's configuration; `check_complete` tells where there is none."""
    file = base / denoiser_folder(index, base) / "config.json"
    return read_object(file) if file.is_file() else {}


def prompts(concept: Concept) -> dict[str, list[str]]:
    """The prompts that decide the result, for the record and the fingerprint."""
    shared = {"concepts": [part.name for part in concept.parts]} if concept.parts else {}
    return {
        "forget": list(concept.forget_prompts),
        "anchor": list(concept.anchor_prompts),
        "retain": list(concept.retain_prompts),
        **shared,
    }


def _own_scheduler(base: Path) -> str:
    """Class of a model's scheduler, as far as its index says it."""
    told = model_index(base).get("scheduler")
    return str(told[1]) if isinstance(told, list) else "its own scheduler"


def _upload(config: EraseConfig) -> str:
    """Where the result goes, for the plan; the hub itself is asked when the run begins."""
    target = hub_target(config)
    shared = "with the mask" if config.publish_mask else "without mask and patch"
    return f"{target.name} on the hub, {'a private' if target.private else 'a public'} repository, {shared}"


def plan(request: Request) -> str:
    """What a run would do, for `--dry_run`: every setting, and the steps that would follow."""
    from salun_diffusers.diffusion.collateral_prompts import collateral_count  # imports torch

    settings, concept, name = request.settings, request.concept, request.config.pretrained_model_name_or_path
    # What `accept` found for a file that no run has written out yet is the folder of its configuration.
    new = is_single_file(name) and request.base.parent.name != SINGLE_FILES
    base = f"{name}, to be written out as a folder, configured as {request.base}" if new else request.base
    scheduler = settings.scheduler if settings.scheduler != OWN_SCHEDULER else _own_scheduler(request.base)
    processes, real = int(os.environ.get("WORLD_SIZE", "1")), bool(request.config.train_data)
    own = request.own
    stages = row_forwards(
        concept,
        settings,
        scheduler,
        processes,
        real_pictures=real,
        own_pictures=own.count,
        collateral=collateral_count(concept, request.config),
    )
    drawn = [count - own.pictures_of(side) for side, _, count in concept.sets(settings)]
    retained = tuple(dict.fromkeys(concept.retain_prompts))
    sides = {"forget": concept.forget_prompts, "anchor": concept.anchor_prompts, "retain": retained}
    lines = [
        json.dumps(recorded(request.config, settings), indent=2, ensure_ascii=False),
        f"base      {base}",
        *(
            f"concept   {part.name}: {len(part.forget_prompts)} prompts, such as {part.forget_prompts[0]!r} → "
            f"{part.anchor_prompts[0]!r}"
            for part in concept.parts
        ),
        *(f"earlier   {one.name}, looked for again" for one in concept.earlier),
        *([f"numbers   {concept.numbers_of}"] if concept.numbers_of else []),
        *(f"{word:<9} {line}" for word, line in concept.told),
        f"predicts  {predicted(request.base, settings.prediction_type)}",
        *(f"{side:<9} {len(texts)} prompts, first: {texts[0]!r}" for side, texts in sides.items()),
        *([f"pictures  {own.in_words()}"] if own else []),
        f"draw      {drawn[0]} + {drawn[1]} + {drawn[2]} latents "
        f"(forget, anchor, retain) of {settings.num_inference_steps} steps by {scheduler}, "
        f"{settings.generation_batch_size} at once",
        f"mask      {settings.mask}, ratio {settings.mask_ratio:g}, saliency guidance {settings.saliency_guidance:g}",
        *([f"soft      {soft}"] if (soft := soft_in_words(settings)) else []),
        f"fine-tune {settings.length}, {GlobalBatch.of(settings, processes)}, "
        f"Adam {settings.learning_rate:g} ({settings.lr_scheduler}), retain weight {settings.retain_weight:g}, "
        f"{settings.recipe}",
        *([f"robust    {robust}"] if (robust := robust_in_words(with_scaled_rate(settings, processes))) else []),
        *(
            [f"adapter   LoRA with the parameters of rank {settings.rank}, alpha {settings.lora_alpha:g}"]
            if settings.adapter == "lora"
            else ["adapter   what moves in linear layers, entry by entry, for PEFT"]
            if request.config.adapter == "sparse"
            else []
        ),
        f"disk      {request.disk or 'known when the weights are there'}",
        f"report    detector {request.detector}, {settings.num_validation_images} pictures per prompt",
        *([f"strength  {strength}"] if (strength := strength_in_words(concept, settings)) else []),
        f"work      {in_words(stages)}",
        *([f"upload    {_upload(request.config)}"] if request.config.push_to_hub else []),
    ]
    if few := few_steps(request.base):
        lines.append(f"note      {few}")
    return "\n".join(lines) + "\n"
