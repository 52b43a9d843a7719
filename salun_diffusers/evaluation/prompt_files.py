"""Prompt files as the field has them: CSV in the I2P, COCO and Imagenette layouts, or a text file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from salun_diffusers.errors import UserError

# Column names of one meaning, the first that is there counts. I2P on the hub says sd_seed and sd_guidance_scale, its
# copy in rohitgandikota/erasing@3d10dd1 evaluation_seed and evaluation_guidance; COCO names its rows image_id there.
_PROMPT = ("prompt", "caption")
_SEED = ("evaluation_seed", "sd_seed", "seed")
_GUIDANCE = ("evaluation_guidance", "guidance", "guidance_scale", "sd_guidance_scale")
_CASE = ("case_number", "image_id", "coco_id")
_LABEL = ("class", "label")
_I2P = ("nudity_percentage", "inappropriate_percentage", "sd_safety_percentage")
_EXPLICIT_WORDS = frozenset(
    ("nude", "nudes", "naked", "nudity", "topless", "nsfw", "porn", "pornographic", "erotic", "undressed")
)


@dataclass(frozen=True)
class PromptRow:
    """One prompt to draw.

    Args:
        prompt: The words.
        case_number: Number of the case; pictures are named after it.
        seed: Seed of the first picture.
        guidance: Classifier-free guidance that the file asks for, or None.
        label: Class that the picture should show; empty where the file has none.
    """

    prompt: str
    case_number: int
    seed: int
    guidance: float | None = None
    label: str = ""


@dataclass(frozen=True)
class PromptFile:
    """The rows of a prompt file.

    Args:
        rows: In the order of the file; no two with one case number.
        explicit: Whether the file asks for explicit pictures: it has I2P's columns, or a tenth of its prompts says so.
        explicit_prompts: How many prompts say so.
    """

    rows: tuple[PromptRow, ...]
    explicit: bool
    explicit_prompts: int = 0


def read_prompt_file(path: str | Path, *, limit: int | None = None) -> PromptFile:
    """Read a CSV with a column `prompt`, or a text file with one prompt a line.

    A seed that is not given is the case number; a case number that is not given is the number of the row.

    Args:
        path: The file; its ending tells CSV from text.
        limit: Keep the first rows only.

    Raises:
        UserError: If the file cannot be read, is empty, lacks the column, or a value is no number.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts must be a CSV or a text file in UTF-8; {path} cannot be read ({error}).") from error
    if path.suffix.lower() == ".csv":
        rows, i2p = _from_csv(path, text)
    else:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        rows, i2p = [PromptRow(line, number, number) for number, line in enumerate(lines)], False
    if not rows:
        raise UserError(f"--prompts must hold at least one prompt; {path} is empty.")
    cases = [row.case_number for row in rows]
    if len(set(cases)) < len(cases):
        twice = next(case for case in cases if cases.count(case) > 1)
        raise UserError(
            f"Each row of {path} needs a case_number of its own, since pictures are named after it; "
            f"{twice} stands there more than once."
        )
    rows = rows[:limit]
    said = sum(bool(_EXPLICIT_WORDS & set(_words(row.prompt))) for row in rows)
    # COCO's 30,000 captions hold a few such words and no explicit picture.
    return PromptFile(tuple(rows), i2p or said >= 0.1 * len(rows), said)


def _from_csv(path: Path, text: str) -> tuple[list[PromptRow], bool]:
    reader = csv.DictReader(io.StringIO(text))
    columns = [name or "" for name in reader.fieldnames or ()]
    if not set(_PROMPT) & set(columns):
        found = ", ".join(filter(None, columns)) or "no columns"
        raise UserError(f"{path} must have a column `prompt`; found {found}. Name the prompts' column so.")
    try:
        lines = list(reader)
    except csv.Error as error:
        raise UserError(f"{path} is no CSV ({error}); write the columns again with a CSV program.") from error
    ids = [_first(line, _CASE) for line in lines]
    if "case_number" not in columns and len(set(ids)) < len(ids):
        ids = [""] * len(ids)  # Several captions of one COCO picture: rows are numbered then.
    rows = []
    for number, (line, id_) in enumerate(zip(lines, ids, strict=True)):
        prompt = _first(line, _PROMPT).strip()  # May be empty: I2P has such a row.
        case = _number(path, number, id_, number)
        guidance = _first(line, _GUIDANCE)
        rows.append(
            PromptRow(
                prompt=prompt,
                case_number=int(case),
                seed=int(_number(path, number, _first(line, _SEED), case)),
                guidance=_number(path, number, guidance, 0.0) if guidance else None,
                label=_first(line, _LABEL).strip(),
            )
        )
    return rows, bool(set(_I2P) & set(columns))


def _first(line: Mapping[str, str | None], names: Sequence[str]) -> str:
    return next((value for name in names if (value := line.get(name) or "")), "")


def _number(path: Path, row: int, text: str, otherwise: float) -> float:
    try:
        if text.isdecimal():
            return int(text)  # A seed of 63 bits does not fit a float.
        return float(text) if text.strip() else otherwise
    except ValueError as error:
        raise UserError(f"{path} must have numbers for case, seed and guidance; row {row + 1} has {text!r}.") from error


def _words(prompt: str) -> list[str]:
    return "".join(letter if letter.isalpha() else " " for letter in prompt.lower()).split()
