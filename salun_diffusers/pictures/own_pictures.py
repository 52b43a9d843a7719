"""A user's own pictures with what they show: found, decoded once to see whether they can be, told by content."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.pictures.captions import METADATA, caption_column, class_labels, folder_captions
from salun_diffusers.pictures.decoding import picture_of, read_picture
from salun_diffusers.pictures.picture_files import find_pictures, no_pictures, tell_left_out, tell_once

_MOST_NAMED = 5
_OF_METADATA = [f"ending {Path(name).suffix}" for name in METADATA]


@dataclass(frozen=True)
class OwnPicture:
    """A picture of the user's.

    Args:
        name: How it is called in messages.
        read: Decodes it.
        caption: What it shows, as its data set says; empty where that says nothing.
        label: The class that it belongs to; empty where there is none.
        sha256: Of its size and its pixels, upright and on white; empty until it was decoded.
        size: Width and height.
    """

    name: str
    read: Callable[[], Image.Image]
    caption: str = ""
    label: str = ""
    sha256: str = ""
    size: tuple[int, int] = (0, 0)


def folder_pictures(root: Path, column: str | None, apart: Path | None) -> list[OwnPicture]:
    """The pictures of a folder, with captions from its metadata, and labels from class folders where it has none.

    Args:
        root: The folder.
        column: Name of the metadata's column with captions; None takes ``text``, else ``caption``.
        apart: A folder below that does not count.

    Raises:
        UserError: If there is no picture, or metadata are damaged or incomplete.
    """
    beside = apart.resolve() if apart else None
    found = find_pictures(root, apart=lambda folder: folder.resolve() == beside)
    if not found.files:
        raise no_pictures(root, found.left_out)
    captions = folder_captions(root, found.files, column)
    labels = {} if captions else class_labels(root, found.files)
    if not captions:
        tell_left_out(root, found.left_out)
    else:  # Metadata are no pictures, and were read.
        tell_left_out(root, Counter({why: n for why, n in found.left_out.items() if why not in _OF_METADATA}))
    return [
        OwnPicture(
            str(file),
            partial(read_picture, file),
            captions.get(file, ""),
            labels.get(file, ""),
        )
        for file in found.files
    ]


def data_set_pictures(name: str, configuration: str | None, columns: tuple[str, str | None]) -> list[OwnPicture]:
    """The pictures of the part ``train`` of a data set of the `datasets` package: an id of the hub, or a path.

    Args:
        name: Id or path.
        configuration: Which of its configurations.
        columns: Names of the columns with pictures, and with captions or classes; where the latter is None, ``text`` or
            ``caption`` are taken if there is such a column.

    Raises:
        UserError: If the package is missing, the data set cannot be loaded, or has no such columns.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "--dataset_name needs the datasets package: pip install 'salun-diffusers[hub-data]'."
        ) from error
    try:
        rows: Any = datasets.load_dataset(name, configuration, split="train")
        features = dict(rows.features)
    except Exception as error:  # Network, cache and server raise many kinds.
        raise UserError(f"--dataset_name {name} could not be loaded: {one_line(error, 200)}") from error
    image, wanted = columns
    if not isinstance(features.get(image), datasets.Image):
        shown = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
        raise UserError(
            f"--image_column {image} is no column of pictures of {name}; it has the columns {', '.join(features)}, "
            f"with pictures in {', '.join(shown) or 'none'}."
        )
    text = caption_column(tuple(features), wanted, name) if wanted or {"text", "caption"} & set(features) else None
    # As files, for our own decoder: that of the package opens any format, and shows no orientation.
    rows = rows.cast_column(image, datasets.Image(decode=False))
    told = [str(cell or "") for cell in _texts(features[text], rows[text])] if text else [""] * len(rows)
    names = getattr(features[text], "names", None) if text else None
    if text and (without := [number for number, caption in enumerate(told) if not caption.strip()]):
        raise UserError(f"Every picture of {name} needs a text in its column {text}; row {without[0]} has none.")
    return [
        OwnPicture(
            f"picture {number} of {name}", partial(_cell, rows, image, number, name), "" if names else caption,
            caption if names else "",
        )
        for number, caption in enumerate(told)
    ]  # fmt: skip


def _texts(feature: Any, cells: Sequence[Any]) -> Sequence[Any]:
    """Captions as they are, classes by their names; -1 is no class."""
    names = getattr(feature, "names", None)
    return [names[cell] if cell is not None and cell >= 0 else "" for cell in cells] if names else cells


def _cell(rows: Any, column: str, number: int, name: str) -> Image.Image:
    cell = rows[number][column]
    if cell["bytes"] is None:
        return read_picture(Path(cell["path"]))
    return picture_of(cell["bytes"], f"Picture {number} of {name}")


def readable(pictures: Sequence[OwnPicture], where: str) -> list[OwnPicture]:
    """The pictures that can be decoded, with size and content; damaged ones are named once and left out.

    Raises:
        UserError: If none is left.
    """
    with ThreadPoolExecutor(4) as pool:
        looked = list(pool.map(_looked_at, pictures))
    broken = [found for found in looked if isinstance(found, UserError)]
    if broken and len(broken) == len(looked):
        raise UserError(f"{where} must hold pictures; none of its {len(looked)} can be read: {broken[0]}")
    if broken:
        named = " ".join(str(error) for error in broken[:_MOST_NAMED])
        more = f" And {len(broken) - _MOST_NAMED} more." if len(broken) > _MOST_NAMED else ""
        tell_once(f"{where}: {len(broken)} of {len(looked)} pictures are left out. {named}{more}")
    return [found for found in looked if isinstance(found, OwnPicture)]


def _looked_at(picture: OwnPicture) -> OwnPicture | UserError:
    try:
        shown = picture.read()
    except UserError as error:
        return error
    content = hashlib.sha256(f"{shown.width} {shown.height} ".encode())
    content.update(shown.tobytes())
    return replace(picture, sha256=content.hexdigest(), size=shown.size)
