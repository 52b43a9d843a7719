"""What a run leaves beside its report: the erased pipeline, its patch, and the proof that nothing else moved."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from salun_diffusers.accelerator import decided_by_main
from salun_diffusers.adapters.sparse import export_sparse
from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.publishing import write_card
from salun_diffusers.diffusion.request import Request
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.errors import ReceiptError, tell
from salun_diffusers.files.pipeline_folder import public_name
from salun_diffusers.files.whole_files import full_disk_is_told
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.receipt import MaskReceipt


def write_erased(run: Run, request: Request, family: Family) -> None:
    """Write the erased pipeline at full strength."""
    if run.main:
        weights = write_pipeline(run, request, family)
        run.folder.mark_done("pipeline", run.marks.pipeline, run.folder.mask, *weights)
    run.accelerator.wait_for_everyone()


def write_pipeline(run: Run, request: Request, family: Family) -> list[Path]:
    """Write the base with the family's present denoiser; the main process does. Returns the files of weights."""
    _cast(family.denoiser, request.settings.save_dtype, request.model.dtypes())
    weights = request.model.write(run.folder.pipeline, family.denoiser)
    write_card(run, request, None)  # It says at once that this is not the base; figures come with the report.
    return weights


def verify_erased(run: Run, request: Request, mask: SaliencyMask) -> MaskReceipt:
    """Compare every weight and file that was written with the base's; write patch and sparse adapter if asked for.

    Raises:
        ReceiptError: If something differs that the mask does not let move.
    """
    if run.main and request.settings.save_patch:
        with full_disk_is_told("the patch"):
            names = [part.name for part in request.concept.parts] or [request.concept.name]
            base = public_name(request.config.pretrained_model_name_or_path)[0]
            about = {"concept": ", ".join(names), "base": base}
            patch = request.model.patch(run.folder.pipeline)
            dataclasses.replace(patch, about=about).save(run.folder.patch)
    if run.main and request.config.adapter == "sparse":
        export_sparse(request.base, run.folder.pipeline, run.folder.sparse, (request.config.variant,) * 2)
    # Both denoisers are in memory then: once a machine, not once a process.
    receipt = decided_by_main(run.accelerator, lambda: request.model.receipt(run.folder.pipeline, mask))
    if not receipt.holds:
        raise ReceiptError(f"The mask receipt failed, do not use {run.folder.pipeline}: {receipt.sentence()}")
    return receipt


def remove_explicit_latents(run: Run, request: Request) -> None:
    """Delete the latents of an explicit concept: to whoever has the decoder they are pictures.

    What says that mask and pipeline are made stays. Latents in a folder of the user's own stay as well, and are named.
    """
    config = request.config
    if not request.concept.explicit or config.keep_explicit_latents or not run.main:
        return
    for name in ("forget", "anchor", "retain"):
        (run.folder.work / f"{name}.safetensors").unlink(missing_ok=True)
        (run.folder.work / f"{name}.json").unlink(missing_ok=True)
    shutil.rmtree(run.folder.work / "drawn", ignore_errors=True)
    tell("note", "the latents of the explicit concept were deleted; --keep_explicit_latents keeps them.")
    if config.generated_data_dir:
        tell("note", f"{config.generated_data_dir} still holds latents of the explicit concept: they are pictures to "
                     "whoever has the decoder.")  # fmt: skip


def _cast(denoiser: nn.Module, name: str, stored: Mapping[str, torch.dtype]) -> None:
    """Cast weights to the data type that they are saved in: each to that of its tensor in the base, or all to one."""
    tensors = {**dict(denoiser.named_parameters()), **dict(denoiser.named_buffers())}
    for key, tensor in tensors.items():
        dtype = stored.get(key, torch.float32) if name == "base" else getattr(torch, name)
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
