"""An erasure from a pipeline in memory: the run of the program, around an object in place of a folder."""

from __future__ import annotations

import dataclasses
import difflib
import os
import tempfile
import typing
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from salun_diffusers.adapters.lora_folder import read_lora
from salun_diffusers.adapters.low_rank import LowRank
from salun_diffusers.diffusion.adapted_model import NAME, load_lora
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.held_model import CALLED, HeldModel
from salun_diffusers.diffusion.held_states import (
    copied,
    enable,
    execution_device,
    offloading,
    parked,
    without_offloading,
)
from salun_diffusers.diffusion.held_weights import plain_weights, put_weights
from salun_diffusers.diffusion.request import accept
from salun_diffusers.diffusion.run import run_erasure
from salun_diffusers.errors import Interrupted, UserError
from salun_diffusers.files.whole_files import write_text
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.patch import WeightPatch
from salun_diffusers.reports.report import EvaluationReport
from salun_diffusers.seeds import random_state_kept

METHODS = {"salun": "relabel", "ga": "ascent", "ft": "finetune"}
"""Other names of objectives."""
_LOADED = "the pipeline is loaded already"
_ONE_GO = "an erasure in memory is one go and writes no checkpoints"
_FULL = "its strength is looked for by the program alone, on a pipeline folder"
_NO_FOLDER = "what is uploaded is a folder; result.save(FOLDER) writes one with its model card, `hf upload` sends it"
_ATTACK = "result.save(FOLDER) writes one that `salun attack` takes"
_NOT_HERE = {
    "pretrained_model_name_or_path": _LOADED,
    "revision": _LOADED,
    "variant": _LOADED,
    "single_file_config": _LOADED,
    "save_dtype": "a pipeline keeps its data type",
    "resume_from_checkpoint": _ONE_GO,
    "checkpointing_steps": _ONE_GO,
    "checkpoints_total_limit": _ONE_GO,
    "target_forget": _FULL,
    "max_retain_drop": _FULL,
    "strength_points": _FULL,
    "dry_run": "erase() always erases, the program plans",
    "vram": "erase() always erases, the program plans",
    "red_team": _ATTACK,
    "push_to_hub": _NO_FOLDER,
    "hub_model_id": _NO_FOLDER,
    "hub_token": _NO_FOLDER,
    "hub_private_repo": _NO_FOLDER,
    "publish_mask": _NO_FOLDER,
}


def config_of(concept: Any, method: str, settings: Mapping[str, Any]) -> EraseConfig:
    """The configuration that keywords mean.

    Args:
        concept: What to forget.
        method: An objective or one of `METHODS`; empty where `objective` says it.
        settings: Fields of `EraseConfig`; `retain_prompts` as a list stays out.

    Raises:
        UserError: If there is no such field or method.
    """
    values = {**settings, **({"concept": concept} if concept else {})}
    hints = typing.get_type_hints(EraseConfig)
    objectives = (*METHODS, *typing.get_args(hints["objective"]))
    if method:
        if "objective" in settings:
            raise UserError("method and objective are one setting, got both: leave one out.")
        values["objective"] = METHODS.get(method.lower(), method.lower())
        if method.lower() not in objectives:
            raise UserError(f"method must be one of {', '.join(objectives)}, got {method!r}.")
    for name, value in values.items():
        if name in _NOT_HERE:
            raise UserError(f"erase(pipe, …) takes no {name}: {_NOT_HERE[name]}.")
        if name not in hints:
            near = difflib.get_close_matches(name, [*hints, "method", "in_place", "device", "callback"], 1, 0.0)
            raise UserError(f"erase() has no setting {name!r}; the closest is {near[0]!r}.")
        if typing.get_origin(hints[name]) is tuple:
            values[name] = (value,) if isinstance(value, str) else tuple(value)
    return EraseConfig(**{**values, "output_dir": _path(values.get("output_dir"))})


def erase_held(
    pipe: Any, config: EraseConfig, *, in_place: bool, device: Any
) -> tuple[Any, SaliencyMask, EvaluationReport, Path | None, WeightPatch | None, LowRank | None]:
    """Erase from a pipeline object.

    Args:
        pipe: A diffusers pipeline.
        config: What to forget and how; its model is the pipeline.
        in_place: Whether this pipeline forgets, or a copy.
        device: Where to compute, or None for where the pipeline does.

    Returns:
        The erased pipeline, the mask, the report, the run folder if one was asked for, and the patch or the LoRA.

    Raises:
        UserError: If the request cannot be carried out; the pipeline is then as it was.
    """
    _require_pipeline(pipe)
    if config.adapter == "sparse":
        raise UserError(
            "adapter='sparse' is a folder beside a run's, and an erasure in memory has none: result.patch holds the "
            "same change, bit for bit."
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("erase(pipe, …) works in one process; several share `accelerate launch erase.py`.")
    with ExitStack() as held:
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="salun-")))
        held.enter_context(torch.inference_mode(False))  # This lets gradients be taken, whatever the caller said.
        held.enter_context(random_state_kept())
        way = offloading(pipe)
        where = torch.device(device) if device is not None else _device_of(pipe)
        if where.type == "cuda":
            held.enter_context(torch.cuda.device(where))  # Kernels of other libraries go to the present one.
        held.enter_context(without_offloading(pipe))
        model = HeldModel.described(pipe, scratch / "model", where)
        prompts = config.retain_prompts
        if isinstance(prompts, list | tuple):
            config = dataclasses.replace(config, retain_prompts=_prompt_file(prompts, scratch / "retain.txt"))
        folder = config.output_dir or str(scratch / "run")
        wanted = dataclasses.replace(config, output_dir=folder, pretrained_model_name_or_path=model.name)
        try:
            request = accept(wanted, model)
            told: Any = prompts  # The record has the prompts themselves; their file goes.
            request = dataclasses.replace(request, config=dataclasses.replace(request.config, retain_prompts=told))
            with parked(pipe.unet):
                run, report = run_erasure(request, command="")
                beside = config.adapter == "lora"
                patch = None if beside else model.patch(run.pipeline)
        except UserError as error:
            raise UserError(str(error).replace(str(model.folder), CALLED)) from error
        except Interrupted:
            raise KeyboardInterrupt from None  # What that one tells is for a folder that stays.
        mask = SaliencyMask.load(run.mask)
        erased = pipe if in_place else copied(pipe, shared=not way)
        if beside:
            load_lora(erased, run.pipeline)
        else:
            put_weights(erased.unet, model.written[run.pipeline])
        adapter = read_lora(run.pipeline) if beside else None
        if not in_place and way:
            enable(erased, way, torch.device(pipe._offload_device))
        report = dataclasses.replace(report, config={**report.config, "output_dir": config.output_dir})
        return erased, mask, report, run.root if config.output_dir else None, patch, adapter


def undo(pipe: Any, patch: WeightPatch) -> None:
    """Take what a patch says off a pipeline's denoiser.

    Raises:
        UserError: If its weights are not those that the patch leads to.
    """
    with without_offloading(pipe), torch.inference_mode(False):
        weights = {name: tensor.cpu() for name, tensor in plain_weights(pipe.unet).items()}
        put_weights(pipe.unet, patch.revert(weights))


def take_off(pipe: Any) -> None:
    """Take the LoRA of an erasure off a pipeline; the layers are the pipeline's own again if it was the only one.

    Raises:
        UserError: If there is none.
    """
    names = {name for found in pipe.get_list_adapters().values() for name in found}
    if NAME not in names:
        raise UserError(f"undo() takes the LoRA {NAME!r} off, and the pipeline has none of that name; it has {names}.")
    with without_offloading(pipe):
        if names == {NAME}:
            pipe.unload_lora_weights()
        else:
            pipe.delete_adapters(NAME)


def _require_pipeline(pipe: Any) -> None:
    if not isinstance(pipe, DiffusionPipeline):
        raise UserError(f"A diffusers pipeline or an EraseConfig is required, got {type(pipe).__name__}.")


def _device_of(pipe: Any) -> torch.device:
    unet = getattr(pipe, "unet", None)
    return execution_device(pipe) if isinstance(unet, torch.nn.Module) else torch.device("cpu")


def _path(path: Any) -> str | None:
    return None if path is None else os.fspath(path)


def _prompt_file(prompts: Any, file: Path) -> str:
    """A file of prompts, one a line."""
    if any(not isinstance(prompt, str) or "\n" in prompt for prompt in prompts):
        raise UserError("retain_prompts must be texts of one line each, or the name of a file of them.")
    write_text(file, "".join(f"{prompt}\n" for prompt in prompts))
    return str(file)
