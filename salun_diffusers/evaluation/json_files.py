"""JSON files of strangers: read once by one rule, and what is wrong with them in words."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")
_MOST_BYTES = 256 * 2**20


def read_json(path: Path, *, constants: Callable[[str], Any] | None = None) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        constants: What NaN and infinities become, which are no JSON; None refuses them.

    Raises:
        ValueError: If it cannot be read, is no JSON, too large or too deep, names one thing twice, or holds a number
            that is not finite. The message is a few words.
    """
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise ValueError(f"it has {size:,} bytes, at most {_MOST_BYTES:,} are read")
        return parse_json(path.read_text(encoding="utf-8"), constants=constants)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error


def parse_json(text: str, *, constants: Callable[[str], Any] | None = None) -> Any:
    """Parse JSON as `read_json` does.

    Raises:
        ValueError: As there.
    """
    try:
        return json.loads(
            text, parse_constant=constants or _not_finite, parse_float=_finite, object_pairs_hook=_names_once
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _not_finite(word: str) -> Any:
    raise ValueError(f"a finite number is required, found {word}")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _not_finite(text)


def _names_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for at, name in enumerate(names) if name in names[:at])
        raise ValueError(f"{twice!r} stands there twice")
    return found


def filled(kind: type[T], values: Any) -> T:
    """Make a dataclass of texts, numbers and truth values from a JSON object.

    Raises:
        ValueError: If it is no object, or a value is missing, unknown or of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"an object is required, found {type(values).__name__}")
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{name!r} is unknown")
        if hints[name] in (str, int, float, bool) and not is_of(value, hints[name]):
            raise ValueError(f"{name!r} must be {_WORDS[hints[name]]}, found {str(value)[:60]!r}")
        if isinstance(value, str):
            value.encode()  # Half a character, which JSON can say, is no text: UnicodeEncodeError is a ValueError.
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    missing = [
        field.name
        for field in fields
        if field.name not in values and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{missing[0]!r} is missing")
    return kind(**values)


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def is_of(value: Any, kind: type) -> bool:
    """Whether a JSON value is of a type; a whole number will do for a fraction, a truth value for none of them."""
    if kind in (int, float):
        return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    return isinstance(value, kind)


def inner_name(name: str) -> str:
    """The name of a file inside a folder, as it is.

    Raises:
        ValueError: If it leads out of the folder (it is absolute, has a step up, or is empty), or no file can have it.
    """
    path, elsewhere = PurePosixPath(name), PureWindowsPath(name)
    steps = {*path.parts, *elsewhere.parts}
    if not path.parts or path.is_absolute() or elsewhere.drive or elsewhere.root or ".." in steps or "\0" in name:
        raise ValueError(f"the name {name[:80]!r} leads out of the folder")
    if len(name) > 1000 or any(len(part.encode()) > 200 for part in path.parts):
        raise ValueError(f"the name {name[:40]!r}… is too long")
    return name
