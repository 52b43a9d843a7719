"""Which family handles a pipeline; a new one is entered here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from salun_diffusers.diffusion.families.ddpm import ClassConditionalDDPM
from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.errors import UserError
from salun_diffusers.files.loading import load_folder
from salun_diffusers.files.pipeline_folder import CLASS_CONDITIONAL, class_name, model_index
from salun_diffusers.pipelines.class_conditional_ddpm import ClassConditionalDDPMPipeline


def load_pipeline(folder: Path, variant: str | None = None) -> Any:
    """Load a pipeline folder of any family, without running code that the folder may carry."""
    if class_name(model_index(folder)) == CLASS_CONDITIONAL:
        return ClassConditionalDDPMPipeline.from_pretrained(folder, variant=variant)
    return load_folder(DiffusionPipeline, folder, variant=variant)


def family_of(pipeline_class: str) -> Callable[..., Family]:
    """The family that handles a pipeline class.

    Raises:
        UserError: If no family does; the message lists those that are known.
    """
    known: dict[str, Callable[..., Family]] = {
        "StableDiffusionPipeline": StableDiffusion,
        CLASS_CONDITIONAL: ClassConditionalDDPM,
    }
    if pipeline_class not in known:
        raise UserError(
            f"A pipeline of class {', '.join(known)} is required, "
            f"the model is a {pipeline_class or 'folder without a class'}."
        )
    return known[pipeline_class]
