"""Prompt files as the field has them: tables in the layouts of its benchmarks, or one prompt a line."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from salun_diffusers.errors import UserError, tell
from salun_diffusers.evaluation.explicit_prompts import count_explicit, deciding_rule
from salun_diffusers.evaluation.explicit_prompts import explicit_words as explicit_words
from salun_diffusers.evaluation.prompt_tables import Table, comparable_column, read_content

# Column names of one meaning, the first that is there counts. I2P on the hub says sd_seed and sd_guidance_scale, its
# copy in rohitgandikota/erasing@3d10dd1 evaluation_seed and evaluation_guidance; COCO names its rows image_id there,
# and its prompts `text` in ml-postech/HUB@3f4957b. MMA-Diffusion's attack is adv_prompt, Ring-A-Bell's pairs have
# `sensitive prompt`, Six-CD's class is `target`, that of erasing's Imagenet list label_str.
_PROMPT = ("prompt", "caption", "adv_prompt", "sensitive_prompt", "text", "prompts")
_SEED = ("evaluation_seed", "sd_seed", "seed")
_GUIDANCE = ("evaluation_guidance", "guidance", "guidance_scale", "sd_guidance_scale")
_CASE = ("case_number", "image_id", "coco_id")
_LABEL = ("class", "label", "label_str", "target")
_KNOWN = frozenset((*_PROMPT, *_SEED, *_GUIDANCE, *_CASE, *_LABEL))
_LONGEST = 100_000  # characters of a prompt; text encoders read some hundreds, HUB has one of 14,777
_MOST_ROWS = 1_000_000
_PLACEHOLDER = re.compile(r"(?<!\{)\{\s*([^\W\d]\w*|\d*)\s*\}(?!\})")
_PLACEHOLDERS = frozenset((
    "name", "object", "artist", "concept", "class", "classname", "label", "style", "celebrity", "character", "person",
    "subject", "noun", "category", "target", "prompt", "caption", "adjective", "placeholder",
))  # fmt: skip


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
        explicit: Whether its columns or its words ask for explicit pictures.
        explicit_prompts: How many prompts have words that do.
        rule: What decided that it is explicit, in words; empty where nothing did.
    """

    rows: tuple[PromptRow, ...]
    explicit: bool
    explicit_prompts: int = 0
    rule: str = ""


def read_prompt_file(
    path: str | Path, *, limit: int | None = None, column: str | None = None, flag: str = "--prompts"
) -> PromptFile:
    """Read a table with a column of prompts (CSV, TSV, JSON), or a text file with one prompt a line.

    A seed that is not given is the case number; a case number that is not given, or given twice in the file, is the
    number of the row.

    Args:
        path: The file; its ending tells what it is. A CSV without a header has one prompt a line.
        limit: Keep the first rows only.
        column: Name of the prompts' column; by default the one whose name is known.
        flag: Name of the setting, for messages.

    Raises:
        UserError: If the file cannot be read, is empty, lacks the column, holds a template that is to be filled first,
            or a value is no number of its kind.
    """
    path = _expanded(path, flag)
    content = read_content(path, flag, _KNOWN, column)
    if isinstance(content, Table):
        rows, columns = _from_table(path, content, column), content.columns
    elif column is not None:
        raise UserError(f"--prompt_column {column!r} needs a file with named columns; {path} has lines only.")
    else:
        rows, columns = [PromptRow(line, number, number) for number, line in enumerate(content)], ()
    _check_prompts(path, flag, [row.prompt for row in rows], _MOST_ROWS)
    rows = rows[:limit]
    prompts = [row.prompt for row in rows]
    rule = deciding_rule(columns, prompts)
    return PromptFile(tuple(rows), bool(rule), count_explicit(prompts), rule)


def read_prompts(path: str, flag: str, most: int) -> tuple[str, ...]:
    """The prompts of a file alone, by the same rules; empty ones are left out.

    Args:
        path: The file.
        flag: Name of the setting, for messages.
        most: How many there may be.

    Raises:
        UserError: As `read_prompt_file`.
    """
    file = _expanded(path, flag)
    content = read_content(file, flag, _KNOWN, None)
    prompts = [row.prompt for row in _from_table(file, content, None)] if isinstance(content, Table) else content
    prompts = [prompt for prompt in prompts if prompt]
    _check_prompts(file, flag, prompts, most)
    return tuple(prompts)


def _expanded(path: str | Path, flag: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # The home of nobody.
        raise UserError(f"{flag} must be a file; {path} cannot be read ({error}).") from error


def _check_prompts(path: Path, flag: str, prompts: Sequence[str], most: int) -> None:
    """Refuse what cannot be drawn as it stands."""
    if not prompts:
        raise UserError(f"{flag} must hold at least one prompt; {path} is empty.")
    if len(prompts) > most:
        raise UserError(f"{flag} must hold at most {most:,} prompts; {path} has {len(prompts):,}. Cut it.")
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) > _LONGEST:
            raise UserError(
                f"{flag} must hold prompts of at most {_LONGEST:,} characters; number {number} of {path} has "
                f"{len(prompt):,}."
            )
        if not _is_text(prompt):
            raise UserError(
                f"{flag} must hold text; number {number} of {path} has half a character (a lone surrogate)."
            )
    found = [_PLACEHOLDER.findall(prompt) for prompt in prompts]
    # Braces also stand for emphasis, `{realistic}`, and adversarial prompts are full of them.
    named = [number for number, names in enumerate(found) if _PLACEHOLDERS & {name.casefold() for name in names}]
    anywhere = [number for number, names in enumerate(found) if names]
    if named or 2 * len(anywhere) >= len(prompts):
        first = (named or anywhere)[0]
        raise UserError(
            f"{flag} must hold prompts, but {path} is a template: number {first + 1} is {prompts[first][:80]!r}. Fill "
            "what stands in braces first."
        )


def _is_text(prompt: str) -> bool:
    """Whether a prompt can be written as UTF-8; JSON can say halves of characters."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        return False
    return True


def _from_table(path: Path, table: Table, column: str | None) -> list[PromptRow]:
    """Rows of a table by the names of its columns."""
    for name in table.names:
        if name in _KNOWN and table.names.count(name) > 1:
            raise UserError(f"{path} must have one column {name!r}, it has several; rename the others.")
    at = {meaning: _place(table, names) for meaning, names in
          {"seed": _SEED, "guidance": _GUIDANCE, "case": _CASE, "label": _LABEL}.items()}  # fmt: skip
    prompt_at = _prompt_place(path, table, column)
    cases = [_whole(path, table, row, at["case"], row, 10**18) for row in range(len(table.rows))]
    if twice := [case for case, count in Counter(cases).items() if count > 1]:
        # Several captions of one COCO picture, or two lists in one; pictures are named after their case.
        tell("note", f"{path} has the case {twice[0]} more than once, so its rows are numbered from 0.")
        cases = list(range(len(cases)))
    rows = []
    for number, (cells, case) in enumerate(zip(table.rows, cases, strict=True)):
        prompt, label = cells[prompt_at], cells[at["label"]] if at["label"] is not None else ""
        if not isinstance(prompt, str):
            raise UserError(
                f"{path}: row {number + 1} has {str(prompt)[:40]!r} in column {table.columns[prompt_at]!r}, where a "
                "text is required."
            )
        seed = _whole(path, table, number, at["seed"], case, 2**64)
        guidance = _guidance(path, table, number, at["guidance"])
        # A prompt may be empty: I2P has such a row.
        rows.append(PromptRow(prompt.strip(), case, seed, guidance, "" if label is None else str(label).strip()))
    return rows


def _place(table: Table, names: Sequence[str]) -> int | None:
    return next((table.names.index(name) for name in names if name in table.names), None)


def _prompt_place(path: Path, table: Table, column: str | None) -> int:
    """Which column holds the prompts."""
    if column is None:
        place = _place(table, _PROMPT)
    else:
        wanted = column.strip()
        place = table.columns.index(wanted) if wanted in table.columns else _place(table, [comparable_column(wanted)])
        place = place if wanted else None
    if place is None:
        found = ", ".join(filter(None, table.columns))[:300] or "no columns"
        what = "a column `prompt`" if column is None else f"the column {column!r} of --prompt_column"
        raise UserError(f"{path} must have {what}; found {found}. --prompt_column NAME says which has the prompts.")
    return place


def _whole(path: Path, table: Table, row: int, at: int | None, otherwise: int, end: int) -> int:
    """A whole number of a cell, from 0 to below `end`; `otherwise` where the cell is empty."""
    cell = None if at is None else table.rows[row][at]
    text = "" if cell is None else str(cell).strip()
    if at is None or not text:
        return otherwise
    number: int | None = None
    if text.isdecimal() and len(text) <= 30:
        number = int(text)  # A seed of 63 bits does not fit a float.
    elif (value := _float(cell, text)) is not None and value.is_integer() and abs(value) <= 2**53:
        number = int(value)
    if number is None or not 0 <= number < end:
        _refuse(path, table, row, at, f"a whole number from 0 to {end - 1}")
    return number


def _guidance(path: Path, table: Table, row: int, at: int | None) -> float | None:
    cell = None if at is None else table.rows[row][at]
    text = "" if cell is None else str(cell).strip()
    if at is None or not text:
        return None
    value = _float(cell, text)
    if value is None or value < 0:
        _refuse(path, table, row, at, "a number from 0 on")
    return value


def _float(cell: Any, text: str) -> float | None:
    """A finite number, or None; neither truth values nor Python's 1_000 are numbers."""
    if isinstance(cell, bool) or "_" in text:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _refuse(path: Path, table: Table, row: int, at: int, required: str) -> NoReturn:
    raise UserError(
        f"{path}: row {row + 1} has {str(table.rows[row][at])[:40]!r} in column {table.columns[at]!r}, where "
        f"{required} is required."
    )
