"""Labelled pictures in folders: one folder per class, of one set or below ``train`` and a held-out set's name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from salun_diffusers.errors import UserError
from salun_diffusers.pictures.decoding import read_picture, square
from salun_diffusers.pictures.labelled_pictures import LabelledPictures
from salun_diffusers.pictures.picture_files import find_pictures, natural, read_headers, tell_left_out, tell_once
from salun_diffusers.pictures.stored_pictures import require_memory

TRAIN = ("train", "training")
HELD_OUT = ("test", "testing", "val", "valid", "validation")
"""Names of the folder beside ``train``, in any case; the first that holds pictures in class folders is taken."""

Labelled = list[tuple[Path, str]]


def read_class_folders(root: Path, side: int | None) -> tuple[LabelledPictures, LabelledPictures | None]:
    """Read class folders, or those below ``train`` and the held-out set beside it.

    Args:
        root: The folder.
        side: Pixels of each side; None takes the most frequent size of the training pictures.

    Raises:
        UserError: If there is no picture in a class folder, one is damaged, or the held-out set has other classes.
    """
    by_name = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    training = next((by_name[name] for name in TRAIN if name in by_name), None)
    if training is None:
        return _read(root, _labelled(root), None, side), None
    found = _labelled(training)
    names = _names(found)
    train = _read(training, found, names, side)
    there = [by_name[name] for name in HELD_OUT if name in by_name]
    for folder in there:
        held_out = _labelled(folder)
        if not held_out:
            continue
        if unknown := sorted(set(_names(held_out)) - set(names)):
            raise UserError(
                f"{folder} must hold classes of {training} ({', '.join(names[:10])}), found {unknown[0]!r} too; move "
                "it there or remove it."
            )
        if others := [other.name for other in there if other != folder]:
            tell_once(f"{root}: the test set is {folder.name}; not used: {', '.join(others)}.")
        return train, _read(folder, held_out, names, train.pixels.shape[-1])
    if there:
        raise UserError(_nothing(there[0]))
    return train, None


def _labelled(root: Path) -> Labelled:
    """Pictures in the class folders of a folder, with their classes; however deep they lie there."""
    found = find_pictures(root)
    parts = [(file, file.relative_to(root).parts) for file in found.files]
    labelled = [(file, names[0]) for file, names in parts if len(names) > 1]
    if outside := len(found.files) - len(labelled):
        found.left_out["in no class folder"] = outside
    tell_left_out(root, found.left_out)
    with_pictures = set(_names(labelled))
    empty = [
        path.name
        for path in sorted(root.iterdir())
        if path.is_dir() and not path.name.startswith((".", "__MACOSX")) and path.name not in with_pictures
    ]
    if labelled and empty:
        tell_once(f"{root}: no class where no picture is: {', '.join(empty[:10])}.")
    return sorted(labelled, key=lambda one: (one[1], natural(str(one[0]))))


def _names(labelled: Labelled) -> tuple[str, ...]:
    return tuple(sorted({name for _, name in labelled}))


def _nothing(root: Path) -> str:
    return f"The data set {root} must hold one folder of pictures per class, found no picture in such a folder."


def _read(root: Path, labelled: Labelled, names: tuple[str, ...] | None, side: int | None) -> LabelledPictures:
    """Decode the pictures as squares of one size."""
    if not labelled:
        raise UserError(_nothing(root))
    names = names or _names(labelled)
    files = [file for file, _ in labelled]
    sizes = Counter(header.size for header in read_headers(root, files))
    side = side or _side(sizes)
    require_memory(root, 3 * side * side * len(files))
    if others := sum(count for size, count in sizes.items() if size != (side, side)):
        tell_once(
            f"{root}: {others} of {len(files)} pictures are not {side}×{side}; their shorter side is scaled to "
            f"{side} and the centre taken (--image_size or --resolution says another).",
        )
    with ThreadPoolExecutor(4) as pool:
        pixels = pool.map(lambda file: np.asarray(square(read_picture(file), side)), files)
        stacked_pixels = np.stack(list(pixels))
    labels = torch.tensor([names.index(name) for _, name in labelled])
    return LabelledPictures(torch.from_numpy(stacked_pixels).permute(0, 3, 1, 2).contiguous(), labels, names)


def _side(sizes: Counter[tuple[int, int]]) -> int:
    """The shorter side of the most frequent size; of equally frequent ones, that of the largest picture."""
    _, _, size = max((count, size[0] * size[1], size) for size, count in sizes.items())
    return min(size)


def stacked(source: str, pictures: Sequence[Image.Image], side: int | None) -> Tensor:
    """Pictures in memory as `(n, 3, side, side)`, in uint8; by default of the most frequent size.

    Raises:
        UserError: If there are none, or too many for the memory.
    """
    if not pictures:
        raise UserError(f"The data set {source} must hold pictures, found none.")
    side = side or _side(Counter(picture.size for picture in pictures))
    require_memory(Path(source), 3 * side * side * len(pictures))
    pixels: Iterable[np.ndarray] = (np.asarray(square(picture, side)) for picture in pictures)
    return torch.from_numpy(np.stack(list(pixels))).permute(0, 3, 1, 2).contiguous()
