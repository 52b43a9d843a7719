"""What a run is asked to do, checked as far as that goes without loading a model."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from salun_diffusers.arguments import check
from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.detection import check_detector, chosen_detector, with_detector
from salun_diffusers.diffusion.foreseen import MADE_MASKS, check_foreseen
from salun_diffusers.diffusion.global_batch import GlobalBatch
from salun_diffusers.diffusion.presets.classes import class_concept
from salun_diffusers.diffusion.presets.known import find_concept
from salun_diffusers.diffusion.settings import Settings, recorded, resolve
from salun_diffusers.diffusion.unfetched import check_unfetched
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.detector_choice import DetectorChoice
from salun_diffusers.files.component_files import check_complete
from salun_diffusers.files.pipeline_copy import size_of_copy
from salun_diffusers.files.pipeline_folder import (
    CLASS_CONDITIONAL,
    class_name,
    denoiser_folder,
    is_local,
    locate,
    model_index,
)
from salun_diffusers.files.run_folder import check_output
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
    """

    config: EraseConfig
    settings: Settings
    concept: Concept
    base: Path
    class_name: str

    @property
    def detector(self) -> DetectorChoice:
        """The detector that looks for the concept."""
        return chosen_detector(self.concept, self.config)


def accept(config: EraseConfig) -> Request:
    """Check a request: values, prompts, mask file, output folder and base model, in the order of what they cost.

    Nothing is made or written. With `dry_run` no weights are fetched from the hub either.

    Raises:
        UserError: At the first thing that cannot be; the message says what is required, what arrived and what to do.
    """
    check(config)
    check_detector(config)
    name = config.pretrained_model_name_or_path
    if config.mask not in MADE_MASKS and not Path(config.mask).is_file():
        raise UserError(
            f"--mask must be one of {', '.join(MADE_MASKS)}, or a mask file; there is no file {config.mask}."
        )
    if config.save_patch and config.save_dtype != "base":
        raise UserError(
            f"--save_patch needs weights of the base's data type: leave --save_dtype at base, got {config.save_dtype}."
        )
    if config.validation_prompts and not config.report_to:
        raise UserError(
            "--validation_prompts are drawn for a tracker: --report_to tensorboard, wandb or comet_ml is required."
        )
    if config.generated_data_dir and Path(config.generated_data_dir).is_file():
        raise UserError(f"--generated_data_dir must be a folder, new or old; {config.generated_data_dir} is a file.")
    check_output(config.output_dir, config.resume_from_checkpoint)
    if not is_local(name):
        check_unfetched(config)
    base = locate(
        name,
        revision=config.revision,
        variant=config.variant,
        cache_dir=config.cache_dir,
        download=not config.dry_run,
    )
    index = model_index(base)
    denoiser_folder(index, base)
    classes = class_name(index) == CLASS_CONDITIONAL
    concept = with_detector(class_concept(config, index) if classes else find_concept(config), config)
    if config.train_data and not classes:
        raise UserError(
            f"--train_data is for class-conditional models, whose pictures have labels; {base} is a "
            f"{class_name(index)}, which draws its own sets."
        )
    settings = resolve(config, concept.numbers)
    if not config.dry_run or is_local(name):
        check_complete(base, config.variant)
        check_foreseen(base / denoiser_folder(index, base), base / "scheduler", settings, config.variant)
        needed = 2 * size_of_copy(base, config.variant)
        require_space(Path(config.output_dir or "runs"), needed, "The erased pipeline with its work files")
    return Request(config, settings, concept, base, class_name(index))


def prompts(concept: Concept) -> dict[str, list[str]]:
    """The prompts that decide the result, for the record and the fingerprint."""
    return {
        "forget": list(concept.forget_prompts),
        "anchor": list(concept.anchor_prompts),
        "retain": list(concept.retain_prompts),
    }


def plan(request: Request) -> str:
    """What a run would do, for `--dry_run`: every setting, and the steps that would follow."""
    settings, concept = request.settings, request.concept
    sides = {"forget": concept.forget_prompts, "anchor": concept.anchor_prompts, "retain": concept.retain_prompts}
    lines = [
        json.dumps(recorded(request.config, settings), indent=2, ensure_ascii=False),
        f"base      {request.base}",
        *(f"{side:<9} {len(texts)} prompts, first: {texts[0]!r}" for side, texts in sides.items()),
        f"draw      {settings.num_forget_images} + {settings.num_retain_images} latents of "
        f"{settings.num_inference_steps} steps",
        f"mask      {settings.mask}, ratio {settings.mask_ratio:g}, saliency guidance {settings.saliency_guidance:g}",
        f"fine-tune {settings.length}, {GlobalBatch.of(settings, int(os.environ.get('WORLD_SIZE', '1')))}, "
        f"Adam {settings.learning_rate:g} ({settings.lr_scheduler}), retain weight {settings.retain_weight:g}, "
        f"{settings.recipe}",
        f"report    detector {request.detector}, {settings.num_validation_images} pictures per prompt",
    ]
    return "\n".join(lines) + "\n"
