"""What the header of a patch says beside its hashes: of the tensors of the model, and of the change as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from salun_diffusers.errors import UserError
from salun_diffusers.files.json_files import parse_json
from salun_diffusers.masks.packed_bits import bytes_for

Layout: TypeAlias = Mapping[str, tuple[str, int]]
"""Data type and number of weights by a tensor's name."""


def texts_of(layout: Layout, about: Mapping[str, str]) -> dict[str, str]:
    """Both as texts for the metadata."""
    return {
        "layout": json.dumps(dict(layout), separators=(",", ":")),
        "about": json.dumps(dict(about), ensure_ascii=False),
    }


def layout_of(told: Mapping[str, object], places: Mapping[str, Tensor], file: Path) -> dict[str, tuple[str, int]]:
    """The tensors that metadata tell of; none in files of former versions.

    Args:
        told: The metadata.
        places: Bits of the tensors that moved.
        file: Where it is from.

    Raises:
        UserError: If that is no layout, or not one of these places.
    """
    try:
        read = {name: (dtype, size) for name, (dtype, size) in _object(told, "layout").items()}
        right = all(isinstance(dtype, str) and type(size) is int and size >= 0 for dtype, size in read.values())
        fits = all(name in read and bytes_for(read[name][1]) == bits.numel() for name, bits in places.items())
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged: its header does not tell of its tensors; copy it again.") from error
    if not right or (read and not fits):
        raise UserError(f"{file} is damaged: its header tells of other tensors than it has; copy it again.")
    return read


def about_of(told: Mapping[str, object], file: Path) -> dict[str, str]:
    """What the change is.

    Raises:
        UserError: If metadata tell nothing sensible.
    """
    try:
        return {name: str(value) for name, value in _object(told, "about").items()}
    except ValueError as error:
        raise UserError(f"{file} is damaged: its header does not say what it is; copy it again.") from error


def _object(told: Mapping[str, object], name: str) -> dict[str, Any]:
    """A JSON object among the texts of a header; empty in files that have none."""
    text = told.get(name, "{}")
    read = parse_json(text) if isinstance(text, str) else None
    if not isinstance(read, dict):
        raise ValueError(name)
    return read
