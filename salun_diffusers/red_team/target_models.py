"""What is examined, as a model: a pipeline folder, a run's result, or a base with something put onto it."""

from __future__ import annotations

from pathlib import Path

from salun_diffusers.adapters.lora_folder import WEIGHTS
from salun_diffusers.diffusion.adapted_model import AdaptedModel
from salun_diffusers.diffusion.base_model import BaseModel, FolderModel
from salun_diffusers.diffusion.edited_model import EditedModel
from salun_diffusers.errors import UserError
from salun_diffusers.files.eraser_files import split_sum
from salun_diffusers.files.pipeline_folder import class_name, locate, model_index
from salun_diffusers.files.run_source import RunSource
from salun_diffusers.files.single_file import find_model
from salun_diffusers.red_team.config import ExaminedConfig


def model_of(name: str, base: BaseModel, config: ExaminedConfig) -> BaseModel:
    """The model that a word names.

    Args:
        name: A run, a pipeline, a LoRA's folder, or BASE+FILE.
        base: What it was erased from.
        config: Revision and variant.

    Raises:
        UserError: If there is no such model, or it is of another kind than the base.
    """
    plain = base.base if isinstance(base, AdaptedModel) else base
    two = split_sum(name)
    if two is not None:
        return _edited(*two, plain, config)
    run = RunSource.found(name)
    if run is not None and run.adapter is not None:
        return AdaptedModel(plain).at(run.adapter)
    folder, variant = (None, config.variant) if run is None else (run.pipeline, _variant(run, config))
    if folder is None:
        folder = locate(name, revision=config.revision, variant=config.variant, cache_dir=config.cache_dir)
    if (folder / WEIGHTS).is_file():
        return AdaptedModel(plain).at(folder)
    return FolderModel(_of_kind(name, folder, base), variant)


def _variant(run: RunSource, config: ExaminedConfig) -> str | None:
    """Of the weight files of a run's result: that of its base, as its record says."""
    return run.told("variant") if config.variant is None else config.variant


def _edited(name: str, file: Path, base: BaseModel, config: ExaminedConfig) -> EditedModel:
    """The model of BASE+FILE; BASE is mostly the base that is known, but may be another of its kind."""
    two = split_sum(config.pipeline)
    known = two[0] if config.base is None and two is not None else config.base
    if isinstance(base, FolderModel) and name == known:
        own = base
    else:
        run = RunSource.found(name)
        folder, variant = (None, config.variant) if run is None else (run.pipeline, _variant(run, config))
        if folder is None:
            folder = find_model(name, revision=config.revision, variant=config.variant, cache_dir=config.cache_dir)
        own = FolderModel(_of_kind(name, folder, base), variant)
    model = EditedModel(own, file)
    model.require_complete()
    return model


def _of_kind(name: str, folder: Path, base: BaseModel) -> Path:
    """The folder, where it is of the base's kind."""
    here, there = class_name(model_index(folder)), class_name(model_index(base.folder))
    if here != there:
        raise UserError(f"{name} must be of the base's kind, a {there}; it is a {here}.")
    return folder
