"""One reader for every JSON file, whoever wrote it: what it cannot take is told in one line that names the file."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from salun_diffusers.errors import UserError, one_line

Constants = Callable[[str], Any]
LIMIT = 64_000_000  # bytes; the largest file of our own, a manifest of 100,000 pictures, has about 30 MB


def _refused(word: str) -> Any:
    raise ValueError(f"a finite number is required, found {word}")


def read_json(path: Path, *, limit: int = LIMIT, constants: Constants = _refused) -> Any:
    """Read a JSON file of bounded size.

    Duplicated keys, NaN and infinity are refused: JSON has none, and readers differ in what they make of them.

    Args:
        path: The file.
        limit: Largest size in bytes.
        constants: What NaN and infinities become. JSON has none, and they are refused; but diffusers itself writes
            them into configurations of schedulers.

    Raises:
        UserError: If there is no such file, it may not be read, is too large, or is no JSON.
    """
    try:
        return parse_json(read_bytes(path, limit=limit), constants=constants)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged: JSON is required ({one_line(error, 120)}).") from error


def read_object(path: Path, *, limit: int = LIMIT, constants: Constants = _refused) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        UserError: As for `read_json`, or if it holds something else.
    """
    content = read_json(path, limit=limit, constants=constants)
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: a JSON object is required, found {type(content).__name__}.")
    return content


def parse_json(data: bytes | str, *, constants: Constants = _refused) -> Any:
    """Parse JSON text.

    Args:
        data: Text, or UTF-8.
        constants: As for `read_json`.

    Raises:
        ValueError: If it is none, in one short line.
    """
    try:
        return json.loads(
            data,
            object_pairs_hook=_object,
            parse_constant=constants,
            parse_float=_finite,
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_bytes(path: Path, *, limit: int = LIMIT) -> bytes:
    """Read a regular file of bounded size.

    Raises:
        UserError: If it is none, may not be read, or is larger.
    """
    require_regular(path)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(data) > limit:
        raise UserError(f"{path} must be smaller than {limit / 1e6:.0f} MB to be read; it is larger.")
    return data


def require_regular(path: Path) -> None:
    """Refuse what is no regular file, such as a folder, a device, a pipe, or a link to nowhere.

    Raises:
        UserError: Saying what it is.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        where = "is a link to a file that is not there" if path.is_symlink() else "does not exist"
        raise UserError(f"{path} {where}.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', error)}.") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise UserError(f"{path} must be a file, it is {kind}.")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refused(text[:40])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:40]!r} stands there twice")
    return found
