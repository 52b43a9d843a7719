"""Labelled pictures in a safetensors file: what it may hold, looked at in its header before anything is read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.pictures.labelled_pictures import LabelledPictures

MOST_BYTES = 4 * 2**30
"""Pixels of one set at most: all of them lie in memory, several times for moments."""
MOST_CLASSES = 65_536
_FLOATS = {"F64", "F32", "F16", "BF16"}
_INTEGERS = {"U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"}
_PARTS = ("train", "test")


def read_stored_pictures(path: Path) -> tuple[LabelledPictures, LabelledPictures]:
    """Read ``train_pixels``, ``train_labels``, ``test_pixels`` and ``test_labels``; pixels become uint8.

    Raises:
        UserError: If one is missing, of another kind or shape than required, empty, or too large.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            needed = [f"{part}_{what}" for part in _PARTS for what in ("pixels", "labels")]
            missing = [name for name in needed if name not in names]
            if missing:
                raise UserError(f"The data set {path} must hold {', '.join(needed)}; {', '.join(missing)} is missing.")
            _check_header(path, {name: file.get_slice(name) for name in needed})
            labels = {part: file.get_tensor(f"{part}_labels").to(torch.int64) for part in _PARTS}
            highest = max(int(one.max()) for one in labels.values())
            if highest >= MOST_CLASSES:
                raise UserError(
                    f"The labels of {path} must be numbers of classes below {MOST_CLASSES:,}, got {highest}; number "
                    "the classes from 0."
                )
            classes = tuple(map(str, range(highest + 1)))
            train, test = (
                LabelledPictures(as_uint8(file.get_tensor(f"{part}_pixels"), path), labels[part], classes)
                for part in _PARTS
            )
    except UserError:
        raise
    except Exception as error:  # safetensors and torch raise several unrelated kinds.
        raise UserError(
            f"The data set {path} cannot be read: {one_line(error, 200)}; write it again with safetensors."
        ) from error
    return train, test


def _check_header(path: Path, parts: dict[str, Any]) -> None:
    """Refuse by types and shapes what cannot be a data set."""
    shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}
    kinds = {name: str(part.get_dtype()) for name, part in parts.items()}
    for part in _PARTS:
        pixels, labels = f"{part}_pixels", f"{part}_labels"
        shape = shapes[pixels]
        if kinds[labels] not in _INTEGERS:
            raise UserError(f"{labels} of {path} must be whole numbers (int64), got {kinds[labels]}; cast them.")
        if kinds[pixels] not in _FLOATS | _INTEGERS | {"BOOL"}:
            raise UserError(f"{pixels} of {path} must be uint8, or floats in [0, 1], got {kinds[pixels]}; cast them.")
        if len(shape) == 4 and shape[1] not in (1, 3):
            hint = "permute(0, 3, 1, 2) first." if shape[3] in (1, 3) else "grey or RGB is required."
            raise UserError(
                f"{pixels} of {path} must have shape (n, channels, height, width) with 1 or 3 channels, got {shape}; "
                f"{hint}"
            )
        if len(shape) != 4 or 0 in shape:
            raise UserError(
                f"{pixels} of {path} must have shape (n, channels, height, width) and hold a picture, got {shape}."
            )
        if shapes[labels] != shape[:1]:
            raise UserError(f"{path} needs one label per picture: {pixels} is {shape}, {labels} {shapes[labels]}.")
    if shapes["train_pixels"][1:] != shapes["test_pixels"][1:]:
        raise UserError(
            f"Pictures of {path} must be of one shape, training has {shapes['train_pixels'][1:]}, test "
            f"{shapes['test_pixels'][1:]}; resize one of them."
        )
    size = {name: 1 if "8" in kind or kind == "BOOL" else int(kind[-2:]) // 8 for name, kind in kinds.items()}
    require_memory(path, sum(math.prod(shape) * size[name] for name, shape in shapes.items()))


def require_memory(source: Path, needed: int) -> None:
    """Refuse a set of pictures that would fill the memory.

    Raises:
        UserError: If it is larger than `MOST_BYTES`.
    """
    if needed > MOST_BYTES:
        raise UserError(
            f"The pictures of {source} need {needed / 2**30:.1f} GiB, at most {MOST_BYTES / 2**30:.0f} are read; use "
            "fewer or smaller ones, in uint8."
        )


def as_uint8(pixels: Tensor, source: Path) -> Tensor:
    """Pixels of any kind as uint8: floats and truth values from [0, 1], whole numbers from 0 … 255.

    Raises:
        UserError: If they lie elsewhere, are NaN, or are whole numbers that are 0 and 1 only, of which nobody knows
            which of the two is meant.
    """
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    if pixels.is_floating_point():
        LabelledPictures(pixels, torch.zeros(len(pixels), dtype=torch.int64), ("any",))  # Finite, in [0, 1].
        return (pixels.float() * 255).round().to(torch.uint8)
    wide = pixels.to(torch.int64)
    low, high = int(wide.min()), int(wide.max())
    if low < 0 or high > 255 or high == 1:
        raise UserError(
            f"Whole-number pixels of {source} must lie in 0 to 255, got {low} to {high}; scale them, and store uint8."
        )
    return wide.to(torch.uint8)
