"""What a run leaves beside its report: the erased pipeline, its patch, and the proof that nothing else moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.request import Request
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.errors import ReceiptError
from salun_diffusers.files.run_folder import write_pipeline
from salun_diffusers.files.stored_weights import stored_dtype
from salun_diffusers.files.whole_files import full_disk_is_told
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.patch import patch_between
from salun_diffusers.masks.receipt import MaskReceipt, compare


def write_erased(run: Run, request: Request, family: Family, mask: SaliencyMask) -> MaskReceipt:
    """Write the erased pipeline, and its patch if one was asked for; then compare every weight with the base's.

    Raises:
        ReceiptError: If something differs that the mask does not let move.
    """
    base, settings, variant = request.base, request.settings, request.config.variant
    if run.main:
        dtype = _save_dtype(settings.save_dtype, base / family.denoiser_folder, variant)
        torch.nn.Module.to(family.denoiser, dtype)  # diffusers' own `to` warns of a list that is empty here.
        save: dict[str, Any] = {"variant": variant, "safe_serialization": True}
        write_pipeline(base, run.folder.pipeline, family.denoiser, name=family.denoiser_folder, save=save)
        if settings.save_patch:
            with full_disk_is_told("the patch"):
                patch_between(base, run.folder.pipeline, variant).save(run.folder.patch)
    run.accelerator.wait_for_everyone()
    receipt = compare(base, run.folder.pipeline, mask, variant)
    if not receipt.holds:
        raise ReceiptError(f"The mask receipt failed, do not use {run.folder.pipeline}: {receipt.sentence()}")
    return receipt


def _save_dtype(name: str, denoiser: Path, variant: str | None) -> torch.dtype:
    """The data type that the denoiser is saved in."""
    if name == "base":
        return stored_dtype(denoiser, variant)
    dtype: torch.dtype = getattr(torch, name)
    return dtype
