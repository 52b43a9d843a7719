"""A pipeline folder written as one checkpoint in the original layout, whole, or as a base's file with other weights."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from salun_diffusers.errors import UserError, tell
from salun_diffusers.files.original_layout import UNET, OriginalTensor, original_tensors, prediction_marks
from salun_diffusers.files.single_file import check_single_file
from salun_diffusers.files.stored_weights import bit_patterns
from salun_diffusers.files.tensor_stream import StoredTensor, TensorPlace, header, stored_tensors, write_one
from salun_diffusers.files.whole_files import full_disk_is_told, require_space, whole_file

_WHAT = "the checkpoint"


def write_single_file(folder: Path, target: Path, dtype: torch.dtype | None, variant: str | None = None) -> int:
    """Write a pipeline as one file.

    Args:
        folder: The pipeline.
        target: The file; it is there whole or not at all.
        dtype: Of all weights; None leaves each as it is stored.
        variant: Variant of the folder's weight files.

    Returns:
        The number of tensors.

    Raises:
        UserError: If the layout has no place for something, or a weight is beyond the range of `dtype`.
    """
    tensors = original_tensors(folder, variant)
    marks, note = prediction_marks(folder)
    places = [
        TensorPlace(one.place.name, one.place.dtype if dtype is None else dtype, one.place.shape) for one in tensors
    ]
    begin = header([*places, *marks], {"format": "pt"})
    require_space(target.parent, len(begin) + sum(place.size for place in places), "The checkpoint")
    with full_disk_is_told(_WHAT), whole_file(target) as partial, partial.open("wb") as stream:
        stream.write(begin)
        for tensor, place in zip(tensors, places, strict=True):
            write_one(stream, tensor.read(place.dtype))
    if note:
        tell("note", note)
    return len(places) + len(marks)


def write_changed_file(
    folder: Path, target: Path, base: Path, mask: Mapping[str, Tensor], variant: str | None = None
) -> tuple[int, int]:
    """Copy the single file of a base and put the weights that an erasure changed into it; all other bytes stay.

    Args:
        folder: The erased pipeline.
        target: The file; it is there whole or not at all.
        base: The base's file; weights take its data types.
        mask: Which weights of the U-Net may differ, by diffusers' names; empty where that is not known.
        variant: Variant of the folder's weight files.

    Returns:
        How many tensors, and how many weights, differ from the base's.

    Raises:
        UserError: If it is not the file of this pipeline's base.
    """
    check_single_file(base)
    stored = stored_tensors(base)
    tensors = original_tensors(folder, variant)
    _require_same_tensors(base, stored, tensors, folder)
    denoiser = [one for one in tensors if one.place.name.startswith(UNET)]
    for one in tensors:
        if not one.place.name.startswith(UNET) and (count := int(_differing(stored[one.place.name], one)[1].sum())):
            raise UserError(
                f"{base} is not the file of this pipeline's base: {count:,} weights of {one.place.name} are others, "
                "and erasing changes the U-Net alone. The same base, in the pipeline's data type or a shorter one, is "
                "required; without --base the whole pipeline is written."
            )
    require_space(target.parent, base.stat().st_size, "The checkpoint")
    changed_tensors = changed_weights = 0
    with full_disk_is_told(_WHAT), whole_file(target) as partial:
        shutil.copyfile(base, partial)
        with partial.open("r+b") as stream:
            for one in denoiser:
                count = _put(stored[one.place.name], one, stream, mask)
                changed_weights += count
                changed_tensors += count > 0
    return changed_tensors, changed_weights


def _put(stored: StoredTensor, one: OriginalTensor, stream: BinaryIO, mask: Mapping[str, Tensor]) -> int:
    """Put one tensor of the U-Net in its place if it is another; returns how many weights differ."""
    tensor, moved = _differing(stored, one)
    [(_, name)] = one.sources
    if mask:
        allowed = mask[name].flatten() if name in mask else torch.zeros_like(moved)
        if count := int((moved & ~allowed).sum()):
            raise UserError(
                f"{stored.path} is not the file of this run's base: {count:,} weights of {one.place.name} differ that "
                "the run's mask does not let move. The same base, in the pipeline's data type or a shorter one, is "
                "required; without --base the whole pipeline is written."
            )
    if moved.any():
        stream.seek(stored.first)
        write_one(stream, tensor)
    return int(moved.sum())


def _differing(stored: StoredTensor, one: OriginalTensor) -> tuple[Tensor, Tensor]:
    """A tensor in the base's data type, and which of its weights have other bits than the base's, flat."""
    tensor = one.read(stored.kind)
    return tensor, bit_patterns(tensor).flatten() != stored.bits()


def _require_same_tensors(
    base: Path, stored: Mapping[str, StoredTensor], tensors: list[OriginalTensor], folder: Path
) -> None:
    """Refuse a base of another architecture, and one that holds what was erased once more."""
    copies = [name for name in stored if name.startswith("model_ema.")]
    if len(copies) > 2:  # Two of them may be counters.
        raise UserError(
            f"{base} holds a second copy of the U-Net ({copies[0][:80]}, …), which would keep what was erased: take "
            "the base's file without it (often named emaonly), or leave out --base."
        )
    foreign = f"{base} is not the file of this pipeline's base:"
    ours = {one.place.name: one.place.shape for one in tensors}
    for name, shape in ours.items():
        found = stored[name].shape if name in stored else None
        same = found is not None and math.prod(found) == math.prod(shape)
        if not same or (name.startswith(UNET) and found != shape):
            there = "none" if found is None else f"one of {found}"
            raise UserError(f"{foreign} {folder} has {name} of shape {shape}, the file has {there}.")
    for name in stored:
        if name.startswith(UNET) and name not in ours:
            raise UserError(f"{foreign} {folder} has no {name[:120]}.")
