"""What a folder of generated pictures says of itself: one row per picture, and how all of them were made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.evaluation.json_values import filled, inner_name, is_of
from salun_diffusers.files.json_files import parse_json, read_bytes
from salun_diffusers.files.whole_files import write_text

FORMAT = "salun_diffusers pictures, version 1"
NAME = "manifest.json"
_MOST_BYTES = 256 * 2**20  # a million pictures


@dataclass(frozen=True)
class PictureRow:
    """One generated picture; what is not known of it keeps its default.

    Args:
        file: Name in the folder.
        prompt: The words.
        seed: Seed of its noise.
        guidance: Classifier-free guidance.
        case_number: Number of its prompt.
        sample: Which of the prompt's pictures, from 0.
        label: Class that it should show, or empty.
    """

    file: str
    prompt: str = ""
    seed: int = 0
    guidance: float = 0.0
    case_number: int = 0
    sample: int = 0
    label: str = ""


@dataclass(frozen=True)
class Manifest:
    """The record of a folder of pictures.

    Args:
        pictures: One row per picture.
        made_with: Model, hash of its files, scheduler, steps, size and the like; JSON values only.
        explicit: Whether pictures were looked at in memory and only their detections kept.
        command: The command that made them.
    """

    pictures: tuple[PictureRow, ...]
    made_with: Mapping[str, Any]
    explicit: bool = False
    command: str = ""

    def save(self, folder: Path) -> None:
        """Write ``manifest.json``."""
        content = {"format": FORMAT, **asdict(self)}
        write_text(folder / NAME, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, or None where there is none.

    Raises:
        UserError: If the file is damaged, or names a file outside the folder.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        # Earlier manifests have -Infinity among the scheduler's settings, which is no JSON.
        content = parse_json(read_bytes(path, limit=_MOST_BYTES), constants=str)
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        pictures = content.get("pictures")
        if not isinstance(pictures, list) or not pictures:
            raise ValueError("a list of pictures is required")
        rows = tuple(_row(number, row) for number, row in enumerate(pictures))
        if len({row.file for row in rows}) < len(rows):
            raise ValueError("two pictures have one name")
        manifest = filled(Manifest, {**content, "pictures": rows})
        _check_made_with(manifest.made_with)
    except ValueError as error:
        raise UserError(
            f"{path} is no manifest of `salun generate` ({one_line(error, 200)}); draw the pictures again."
        ) from error
    return manifest


def _row(number: int, values: Any) -> PictureRow:
    try:
        row = filled(PictureRow, values)
        inner_name(row.file)
        if max(map(abs, (row.seed, row.case_number, row.sample))) >= 2**64:
            raise ValueError("a number has more than 64 bits")
        if not abs(row.guidance) < 1e300:
            raise ValueError("'guidance' must be finite")
    except ValueError as error:
        raise ValueError(f"picture {number}: {error}") from error
    return row


def _check_made_with(made_with: Any) -> None:
    """What comparing looks at must be of the kind that it compares."""
    if not isinstance(made_with, dict):
        raise ValueError("'made_with' must be an object")
    for name in ("num_inference_steps", "height", "width"):
        value = made_with.get(name)
        if value is not None and not is_of(value, int):
            raise ValueError(f"{name!r} must be a whole number, found {str(value)[:60]!r}")
    if not isinstance(made_with.get("scheduler", {}), str | dict):
        raise ValueError("'scheduler' must be a name or an object")
