"""What a folder of generated pictures says of itself: one row per picture, and how all of them were made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from salun_diffusers.errors import UserError
from salun_diffusers.files.whole_files import write_text

FORMAT = "salun_diffusers pictures, version 1"
NAME = "manifest.json"


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
        UserError: If the file is damaged.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        # Earlier manifests have -Infinity among the scheduler's settings, which is no JSON.
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=str)
        if content.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        rows = tuple(PictureRow(**row) for row in content.pop("pictures"))
        return Manifest(rows, **content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no manifest of `salun generate` ({error}); draw the pictures again.") from error


def same_pictures(one: Sequence[PictureRow], other: Sequence[PictureRow]) -> bool:
    """Whether two folders hold pictures of the same prompts and seeds, in the same order."""
    wanted = [field.name for field in fields(PictureRow) if field.name not in ("file", "label")]
    return [tuple(getattr(row, name) for name in wanted) for row in one] == [
        tuple(getattr(row, name) for name in wanted) for row in other
    ]
