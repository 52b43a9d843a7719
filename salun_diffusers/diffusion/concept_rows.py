"""Several concepts as a user names them: words of the command line, or the rows of a table."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from pathlib import Path

from salun_diffusers.diffusion.concepts import same_words
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.source_config import ConceptKind
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.prompt_tables import Table, read_content

COLUMNS = ("concept", "anchor", "kind")
KINDS: tuple[ConceptKind, ...] = typing.get_args(ConceptKind)
_LONGEST = 1000  # characters of a cell
_MOST = 100
_FLAG = "--concepts"


@dataclass(frozen=True)
class ConceptRow:
    """One of several concepts.

    Args:
        name: Its words.
        anchor: What it shall become; empty where that is left open.
        kind: What kind of thing it is; None where that is left open.
    """

    name: str
    anchor: str = ""
    kind: ConceptKind | None = None


def asked_concepts(config: EraseConfig) -> tuple[ConceptRow, ...]:
    """The concepts that a configuration names, in its order.

    Raises:
        UserError: If both flags name some, one is empty or comes twice, a flag of one concept comes with several, or
            the table is none.
    """
    words = (config.concept,) if isinstance(config.concept, str) else config.concept
    if config.concepts is not None:
        if any(word.strip() for word in words):
            raise UserError(f"{_FLAG} names the concepts of {config.concepts}, so --concept has none; leave one out.")
        rows = read_concepts(config.concepts)
    else:
        rows = tuple(ConceptRow(" ".join(word.split())) for word in words)
    if len(rows) < 2:
        return rows
    seen: set[str] = set()
    for row in rows:
        if not row.name:
            raise UserError(f"Each of the {len(rows)} concepts needs a name, one is empty; leave it out.")
        if same_words(row.name) in seen:
            raise UserError(f"The concepts must differ, {row.name!r} comes twice; leave one out.")
        seen.add(same_words(row.name))
    for name in ("forget_prompt", "anchor_prompt", "detector_labels"):
        if getattr(config, name):
            raise UserError(
                f"--{name} belongs to one concept, got {len(rows)}: anchors of several stand in the table of {_FLAG}."
            )
    return rows


def name_of(config: EraseConfig) -> str:
    """The one concept of a configuration, as it was typed.

    Raises:
        UserError: If there are several.
    """
    if isinstance(config.concept, str):
        return config.concept
    if len(config.concept) != 1:
        raise UserError(f"One concept is required here, got {len(config.concept)}.")
    return config.concept[0]


def read_concepts(path: str) -> tuple[ConceptRow, ...]:
    """The rows of a table of concepts: CSV, TSV or JSON with the columns `COLUMNS`, or a text with one a line.

    Args:
        path: The file; its ending tells what it is.

    Raises:
        UserError: If it cannot be read, is empty or too long, has another column, lacks `concept`, or has a kind that
            is not known.
    """
    file = Path(path)
    content = read_content(file, _FLAG, COLUMNS, "concept")
    if not isinstance(content, Table):
        content = Table(("concept",), tuple((line,) for line in content))
    names = content.names
    if "concept" not in names:
        found = ", ".join(filter(None, content.columns))[:300] or "no columns"
        raise UserError(f"{_FLAG} must have a column `concept`, and may have anchor and kind; {path} has {found}.")
    for name in names:
        if name not in COLUMNS or names.count(name) > 1:
            what = f"no column {name!r}" if name not in COLUMNS else f"one column {name!r}"
            raise UserError(f"{_FLAG} must have {what}, only {', '.join(COLUMNS)}; take it out of {path}.")
    if not content.rows:
        raise UserError(f"{_FLAG} must hold at least one concept; {path} is empty.")
    if len(content.rows) > _MOST:
        raise UserError(f"{_FLAG} must hold at most {_MOST} concepts; {path} has {len(content.rows):,}. Cut it.")
    return tuple(
        _row(path, number, dict(zip(names, cells, strict=True))) for number, cells in enumerate(content.rows, 1)
    )


def _row(path: str, number: int, cells: dict[str, object]) -> ConceptRow:
    """One row, checked."""
    texts = {}
    for name, cell in cells.items():
        if not isinstance(cell, str | None):
            raise UserError(f"{path}: row {number} has {str(cell)[:40]!r} as its {name}, where a text is required.")
        texts[name] = " ".join((cell or "").split())
        if len(texts[name]) > _LONGEST:
            raise UserError(f"{path}: row {number} has a {name} of {len(texts[name]):,} characters; cut it.")
        if any(0xD800 <= ord(letter) < 0xE000 for letter in texts[name]):
            raise UserError(f"{path}: row {number} has half a character (a lone surrogate) as its {name}.")
    if not texts["concept"]:
        raise UserError(f"{path}: row {number} has no concept; write one or take the row out.")
    kind = texts.get("kind", "").lower()
    if kind and kind not in KINDS:
        raise UserError(f"{path}: row {number} has the kind {texts['kind'][:40]!r}; known are {', '.join(KINDS)}.")
    return ConceptRow(texts["concept"], texts.get("anchor", ""), next((one for one in KINDS if one == kind), None))
