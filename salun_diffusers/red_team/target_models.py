"""What is examined, as a model: a pipeline folder, a run's result, or a base with something put onto it."""

from __future__ import annotations

from salun_diffusers.adapters.lora_folder import WEIGHTS
from salun_diffusers.diffusion.adapted_model import AdaptedModel
from salun_diffusers.diffusion.base_model import BaseModel, FolderModel
from salun_diffusers.errors import UserError
from salun_diffusers.files.pipeline_folder import class_name, locate, model_index
from salun_diffusers.files.run_source import RunSource
from salun_diffusers.red_team.config import ExaminedConfig


def model_of(name: str, base: BaseModel, config: ExaminedConfig) -> BaseModel:
    """The model that a word names.

    Args:
        name: A run, a pipeline, or a LoRA's folder.
        base: What it was erased from.
        config: Revision and variant.

    Raises:
        UserError: If there is no such model, or it is of another kind than the base.
    """
    run = RunSource.found(name)
    plain = base.base if isinstance(base, AdaptedModel) else base
    if run is not None and run.adapter is not None:
        return AdaptedModel(plain).at(run.adapter)
    folder = run.pipeline if run is not None else None
    if folder is None:
        folder = locate(name, revision=config.revision, variant=config.variant, cache_dir=config.cache_dir)
    if (folder / WEIGHTS).is_file():
        return AdaptedModel(plain).at(folder)
    here, there = class_name(model_index(folder)), class_name(model_index(base.folder))
    if here != there:
        raise UserError(f"{name} must be of the base's kind, a {there}; it is a {here}.")
    return FolderModel(folder, config.variant)
