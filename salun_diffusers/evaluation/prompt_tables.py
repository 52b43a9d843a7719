"""What lies in a prompt file: lines, or a table with named columns; read strictly, so that nothing is lost silently."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salun_diffusers.errors import UserError, tell
from salun_diffusers.files.json_files import parse_json

MOST_BYTES = 100 * 10**6
_LINES = ("", ".txt", ".text", ".lst", ".list")
_TABLES = {".csv": ",", ".tsv": "\t"}
_JSON = (".json", ".jsonl", ".ndjson")


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Args:
        columns: Names as the file has them, without spaces around them.
        rows: One cell per column; texts, or of a JSON file any value.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns as they are compared: ``Evaluation Seed`` is ``evaluation_seed``."""
        return tuple(comparable_column(name) for name in self.columns)


def comparable_column(name: str) -> str:
    """A column's name in lower case, its words divided by underscores."""
    return "_".join(name.casefold().replace("-", " ").replace("_", " ").split())


def read_text(path: Path, flag: str) -> str:
    """The text of a prompt file, whose lines end with line feeds.

    Raises:
        UserError: If it is no file, too large, binary or not UTF-8.
    """
    what = f"{flag} must be a text file with one prompt a line, or a CSV, TSV or JSON file, in UTF-8"
    try:
        if not path.is_file():
            raise UserError(f"{what}; {path} cannot be read (there is no such file).")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UserError(f"{what}, of at most {MOST_BYTES:,} bytes; {path} has {size:,}.")
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what}; {path} cannot be read ({error}).") from error
    if text.count("\0") > len(text) / 100:  # Adversarial prompts of HUB have some.
        raise UserError(f"{what}; {path} is binary.")
    if text.startswith("version https://git-lfs.github.com/spec/"):
        raise UserError(f"{path} is a git-lfs pointer, not the prompts: run `git lfs pull` in its folder.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_content(path: Path, flag: str, known: Collection[str], column: str | None) -> Table | list[str]:
    """Read a file by its ending.

    Args:
        path: The file.
        flag: Name of the setting, for messages.
        known: Names that a column may have, as `comparable_column` writes them; a CSV whose first line has none of
            them, nor the user's column, but reads like a prompt has no header, and its lines are prompts.
        column: The prompts' column, where the user names it.

    Raises:
        UserError: If the ending is another one, or the content is not what it says.
    """
    text, ending = read_text(path, flag), path.suffix.lower()
    if ending in _JSON:
        return _from_json(path, flag, text, lines=ending != ".json")
    if ending in _TABLES:
        return _from_table(path, text, _TABLES[ending], known, column)
    if ending not in _LINES:
        endings = ", ".join((*_LINES[1:], *_TABLES, *_JSON))
        raise UserError(f"{flag} must be a file whose ending says what it is ({endings}), got {path}; rename it.")
    return _plain_lines(path, text)


def lines_of(text: str) -> list[str]:
    """Lines without spaces around them, empty ones left out; only a line feed ends a line.

    Unlike `str.splitlines`, which also ends them at U+2028, U+0085, vertical tabs and form feeds.
    """
    return [line.strip() for line in text.split("\n") if line.strip()]


def _plain_lines(path: Path, text: str) -> list[str]:
    lines = lines_of(text)
    if lines and lines[0].startswith(("{", "[")):
        try:
            content = parse_json(lines[0])
        except ValueError:
            content = None
        if isinstance(content, dict | list):
            raise UserError(
                f"{path} holds JSON, which would be drawn word by word; give it the ending .jsonl or .json."
            )
    return lines


def _from_table(path: Path, text: str, delimiter: str, known: Collection[str], column: str | None) -> Table | list[str]:
    start = text.lstrip("\n").split("\n", 1)[0]
    first = [cell.strip() for cell in next(csv.reader([start], delimiter=delimiter, skipinitialspace=True), [])]
    names = {comparable_column(cell) for cell in first}
    if not names & set(known) and column is None:
        other = next(
            (mark for mark in ",;\t|" if {comparable_column(part) for part in start.split(mark)} & set(known)), ""
        )
        if other:
            word = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}[other]
            right = {"\t": "give it the ending .tsv", ",": "give it the ending .csv"}.get(other, "write commas instead")
            raise UserError(f"{path} must have a column `prompt`; its columns are divided by {word}: {right}.")
        if any(len(cell.split()) >= 3 for cell in first):
            tell("note", f"{path} has no header, so each of its lines is a prompt.")
            # Quotes are never open over several lines there: lists of attacks are full of single ones.
            return [_unquoted(line, delimiter) for line in lines_of(text)]
    try:
        cells = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True,
                                           skipinitialspace=True) if any(cell.strip() for cell in row)]  # fmt: skip
    except csv.Error as error:
        raise UserError(
            f"{path} is no whole CSV ({error}); quotes that open must close, and a quote inside must be doubled. "
            "Write it again with a CSV program."
        ) from error
    header, rows = (tuple(name.strip() for name in cells[0]), cells[1:]) if cells else ((), [])
    for number, row in enumerate(rows, 1):
        if len(row) > len(header):
            raise UserError(
                f"{path} has {len(header)} columns, row {number} has {len(row)}: {row[len(header)][:40]!r} would be "
                "lost. Put what has commas in quotes."
            )
    return Table(header, tuple((*row, *[""] * (len(header) - len(row))) for row in rows))


def _unquoted(line: str, delimiter: str) -> str:
    """A line without header: what is in quotes as a whole without them, anything else as it is."""
    try:
        (cells,) = csv.reader([line], delimiter=delimiter, strict=True)
        return cells[0].strip() if len(cells) == 1 else line
    except (csv.Error, ValueError):
        return line


def _from_json(path: Path, flag: str, text: str, *, lines: bool) -> Table | list[str]:
    """A list of texts, or of objects with one key per column."""
    items: list[Any] = []
    try:
        if lines:
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    try:
                        items.append(parse_json(line))
                    except ValueError as error:
                        raise ValueError(f"line {number}: {error}") from error
        else:
            content = parse_json(text) if text.strip() else []
            if not isinstance(content, list):
                raise ValueError(f"a list is required, found {type(content).__name__}")
            items = content
    except ValueError as error:
        raise UserError(f"{flag} must be a list of prompts, or of objects with `prompt`; {path}: {error}.") from error
    if all(isinstance(item, str) for item in items):
        return [item.strip() for item in items]
    wrong = next((item for item in items if not isinstance(item, dict)), None)
    if wrong is not None:
        raise UserError(f"{path} must hold texts only or objects only, found {str(wrong)[:60]!r} among them.")
    columns = tuple(dict.fromkeys(str(name) for item in items for name in item))
    rows = tuple(tuple(item.get(name) for name in columns) for item in items)
    return Table(tuple(name.strip() for name in columns), rows)
