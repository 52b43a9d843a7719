"""Captions of pictures in a folder: `metadata.jsonl` or `metadata.csv` beside them, or the class folder they lie in."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.json_files import parse_json, read_bytes

METADATA = ("metadata.jsonl", "metadata.csv")
"""Where imagefolders (the `datasets` package) keep what is known of each picture."""
COLUMNS = ("text", "caption")
"""Columns that hold captions where the user names none."""
IMAGENETTE = {
    "n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw",
    "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump",
    "n03445777": "golf ball", "n03888257": "parachute",
}  # fmt: skip
"""Names of the class folders of fastai/imagenette."""
_FILE_NAME = "file_name"
_PARTS = ("train", "training", "test", "testing", "val", "valid", "validation")


def class_name(label: str) -> str:
    """The words of a class folder's name; Imagenette's folders have ids of WordNet.

    >>> class_name("garbage_truck"), class_name("n03417042")
    ('garbage truck', 'garbage truck')

    Raises:
        UserError: If it is an id that is none of Imagenette's.
    """
    known = IMAGENETTE.get(label, label)
    if re.fullmatch(r"n\d{8}", known):
        raise UserError(
            f"A class folder must be named in words, {label} is an id of WordNet; only Imagenette's ten are known "
            "here. Rename it."
        )
    return " ".join(known.replace("_", " ").replace("-", " ").split())


def class_caption(label: str) -> str:
    """The caption of a class as the official code words it, ``an image of a <class>``, whatever its first letter.

    >>> class_caption("English-springer")
    'an image of a English springer'
    """
    return f"an image of a {class_name(label)}"


def folder_captions(root: Path, files: Sequence[Path], column: str | None) -> dict[Path, str]:
    """The captions that metadata files give; empty where there are none.

    The nearest metadata file counts, from a picture's own folder up to `root`; its names are relative to its folder.

    Args:
        root: The folder.
        files: Its pictures.
        column: Name of the column with captions; None takes ``text``, else ``caption``.

    Raises:
        UserError: If a file is damaged or lacks a column, or a picture has no caption though others have.
    """
    tables: dict[Path, dict[str, str]] = {}
    found, without = {}, []
    for file in files:
        above = next((folder for folder in _folders(file, root) if _table(folder, column, tables)), None)
        caption = "" if above is None else tables[above].get(file.relative_to(above).as_posix(), "")
        if caption:
            found[file] = caption
        else:
            without.append(file)
    if column and not found:
        raise UserError(
            f"--caption_column {column} is a column of {' or '.join(METADATA)}, and {root} has neither. Leave the flag "
            f"out, or write one with the columns {_FILE_NAME} and {column}."
        )
    if found and without:
        raise UserError(
            f"Every picture of {root} needs a caption in its metadata; {len(without)} of {len(files)} have none, the "
            f"first is {without[0].relative_to(root)}."
        )
    return found


def class_labels(root: Path, files: Sequence[Path]) -> dict[Path, str]:
    """The class folder that each picture lies in, directly below `root`; pictures of no class folder are left out.

    Raises:
        UserError: If those folders are named after the parts of a data set instead, ``train`` and the like.
    """
    labels = {file: file.relative_to(root).parts[0] for file in files if len(file.relative_to(root).parts) > 1}
    if labels and all(label.lower() in _PARTS for label in labels.values()):
        first = sorted(set(labels.values()))[-1]
        raise UserError(
            f"{root} must hold one folder per class; {', '.join(sorted(set(labels.values())))} are parts of a data "
            f"set: name {root / first}."
        )
    return labels


def _folders(file: Path, root: Path) -> list[Path]:
    """The folder of a file and those above it, up to the root."""
    parents = list(file.parents)
    return parents[: parents.index(root) + 1]


def _table(folder: Path, column: str | None, tables: dict[Path, dict[str, str]]) -> bool:
    """Whether a folder has metadata, which are read once."""
    if folder not in tables:
        there = [folder / name for name in METADATA if (folder / name).is_file()]
        if len(there) > 1:
            raise UserError(
                f"{folder} has {' and '.join(METADATA)}; which one counts is not clear, remove one of them."
            )
        tables[folder] = _captions(there[0], column) if there else {}
    return bool(tables[folder])


def _captions(path: Path, column: str | None) -> dict[str, str]:
    rows = _rows(path)
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    if _FILE_NAME not in columns:
        raise UserError(f"{path} must have a column {_FILE_NAME}; its columns are {', '.join(columns) or 'none'}.")
    chosen = caption_column(columns, column, str(path))
    captions = {}
    for number, row in enumerate(rows, 1):
        name, caption = row.get(_FILE_NAME), row.get(chosen)
        if not isinstance(name, str) or not isinstance(caption, str) or not caption.strip():
            raise UserError(
                f"Row {number} of {path} must have texts as {_FILE_NAME} and {chosen}; found {name!r} and "
                f"{one_line(repr(caption), 60)}."
            )
        captions[Path(name).as_posix()] = " ".join(caption.split())
    return captions


def caption_column(columns: Sequence[str], wanted: str | None, where: str) -> str:
    """The column with captions: the one that the user names, else ``text``, else ``caption``.

    Raises:
        UserError: If there is none.
    """
    chosen = next((name for name in ((wanted,) if wanted else COLUMNS) if name in columns), None)
    if chosen is None:
        asked = f"--caption_column {wanted}" if wanted else f"a column {' or '.join(COLUMNS)}"
        raise UserError(
            f"Captions are required: {asked} is none of the columns of {where}, which are {', '.join(columns)}; name "
            "the right one by --caption_column."
        )
    return chosen


def _rows(path: Path) -> list[Mapping[str, Any]]:
    try:
        text = read_bytes(path).decode("utf-8-sig")
        if path.suffix == ".jsonl":
            rows = [parse_json(line) for line in text.split("\n") if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("each line must be an object")
        else:
            rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
            if any(None in row for row in rows):
                raise ValueError("a row has more cells than there are columns; put what has commas in quotes")
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as metadata of pictures ({one_line(error, 160)}).") from error
    if not rows:
        raise UserError(f"{path} must have one row per picture, it has none.")
    return rows
