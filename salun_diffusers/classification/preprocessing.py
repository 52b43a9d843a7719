"""preprocessor_config.json as transformers' classifiers have it: the size of pictures, and their normalisation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salun_diffusers.errors import UserError
from salun_diffusers.files.json_files import read_object

PROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Preprocessing:
    """What a model does to pixels in [0, 1] before it sees them.

    Args:
        size: Side that pictures are resized to; None takes them as they come.
        mean: Subtracted from each channel.
        std: Divides each channel.
    """

    size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_preprocessing(folder: Path) -> Preprocessing:
    """What a model folder says of its pictures; without such a file [-1, 1] and any size.

    Raises:
        UserError: If it says what is not understood: nothing is guessed.
    """
    path = folder / PROCESSOR
    if not path.is_file():
        return Preprocessing(None, (0.5,), (0.5,))
    said = read_json(path)
    # Pixels come in [0, 1], transformers' in 0…255: (255 r p - mean) / std = (p - mean / 255 r) / (std / 255 r).
    factor = _number(said.get("rescale_factor", 1 / 255), path, "rescale_factor")
    scale = 255 * factor if said.get("do_rescale", True) else 255.0
    if said.get("rescale_offset") is True or not scale > 0:
        raise UserError(f"{path} rescales pixels by more than a positive factor, which is not known here.")
    if said.get("do_normalize", True) is False:
        return Preprocessing(_size(said, path), (0.0,), (1 / scale,))
    mean, std = (_channels(said, name, path) for name in ("image_mean", "image_std"))
    if len(mean) != len(std) or any(value <= 0 for value in std):
        raise UserError(f"{path} must have as many positive image_std as image_mean, got {std} and {mean}.")
    return Preprocessing(_size(said, path), tuple(m / scale for m in mean), tuple(s / scale for s in std))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or none where there is no such file.

    Raises:
        UserError: If the file holds anything else.
    """
    return read_object(path) if path.is_file() else {}


def _size(said: dict[str, Any], path: Path) -> int | None:
    """224 of 224, [224, 224], {"height": 224, "width": 224} and {"shortest_edge": 224}; the crop where one is cut."""
    crop = said.get("do_center_crop") is True and said.get("crop_size") is not None
    if said.get("do_resize", True) is False and not crop:
        return None
    size = said.get("crop_size" if crop else "size")
    if isinstance(size, dict):
        sides = {size[name] for name in ("height", "width", "shortest_edge") if size.get(name) is not None}
    elif isinstance(size, list):
        sides = set(size[-2:]) if all(isinstance(side, int) for side in size) else {str(size)}
    else:
        sides = set() if size is None else {size}
    if not sides:
        return None
    [side] = sides if len(sides) == 1 else [None]
    if isinstance(side, bool) or not isinstance(side, int) or side < 1:
        raise UserError(f"{path} must name one side of square pictures, such as 224; its size is {size!r}.")
    return side


def _channels(said: dict[str, Any], name: str, path: Path) -> tuple[float, ...]:
    value = said.get(name)
    values = value if isinstance(value, list) else [value]
    if value is None or not values:
        raise UserError(
            f"{path} says that pixels are normalised, and not by what: write {name} into it, a number for each "
            'channel, or "do_normalize": false.'
        )
    return tuple(_number(item, path, name) for item in values)


def _number(value: Any, path: Path, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{path} must have numbers as {name}, got {value!r}.")
    return float(value)
