"""From a pipeline's class to its family; both are named in `erasable.py`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from salun_diffusers.diffusion.families.erasable import FAMILIES
from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.files.loading import load_folder
from salun_diffusers.files.pipeline_folder import CLASS_CONDITIONAL, class_name, model_index
from salun_diffusers.pipelines.class_conditional_ddpm import ClassConditionalDDPMPipeline


def load_pipeline(folder: Path, variant: str | None = None) -> Any:
    """Load a pipeline folder of any family, without running code that the folder may carry."""
    if class_name(model_index(folder)) == CLASS_CONDITIONAL:
        return ClassConditionalDDPMPipeline.from_pretrained(folder, variant=variant)
    return load_folder(DiffusionPipeline, folder, variant=variant)


def family_of(pipeline_class: str) -> Callable[..., Family]:
    """The family that handles a pipeline class that `require_erasable` lets through."""
    module, name = FAMILIES[pipeline_class].split(".")
    family: Callable[..., Family] = getattr(import_module(f"salun_diffusers.diffusion.families.{module}"), name)
    return family
