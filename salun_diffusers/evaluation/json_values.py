"""What stands in JSON files of strangers: of the right types, and what is wrong with it in words."""

from __future__ import annotations

import dataclasses
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")


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
