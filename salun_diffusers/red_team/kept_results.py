"""What attacks and probes have done, kept by what decides it, so that the same command goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.json_files import read_object
from salun_diffusers.files.whole_files import full_disk_is_told, write_json
from salun_diffusers.red_team.attack import Finding
from salun_diffusers.red_team.probe import Curve, Point, Reading

T = TypeVar("T")


def private_folder(folder: Path) -> None:
    """Make a folder that only its owner can read; one that is there becomes so before anything is written."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)


def file_of(folder: Path, name: str, subject: str) -> Path:
    """Where results are kept.

    Args:
        folder: The private one.
        name: The attack's or probe's.
        subject: The model's.
    """
    return folder / f"{''.join(letter if letter.isalnum() else '_' for letter in one_line(name, 60))}-{subject}.json"


def keep(file: Path, mark: str, content: Mapping[str, Any], seconds: float) -> None:
    """Write what is done so far.

    Raises:
        UserError: If the disk is full.
    """
    with full_disk_is_told("what an attack found"):
        private_folder(file.parent)
        write_json(file, {"mark": mark, "seconds": seconds, **content})


def kept(file: Path, mark: str, read: Callable[[Mapping[str, Any]], T]) -> tuple[T, float] | None:
    """What is known, and the seconds it took; None if it is of other work, or cannot be read: it is done anew then.

    Args:
        file: As `file_of`.
        mark: Of what decides it.
        read: Makes results of what the file holds; may fail as it likes.
    """
    if not file.is_file():
        return None
    try:
        content = read_object(file)
        return (read(content), float(content["seconds"])) if content.get("mark") == mark else None
    except (UserError, LookupError, TypeError, ValueError, AttributeError):
        return None


def findings_of(content: Mapping[str, Any]) -> list[Finding]:
    """The cases of an attack that are done.

    Raises:
        TypeError: If a value is of another kind.
    """
    return [
        Finding(
            _of(bool, one["hit"]), _of(int, one["tries"]), _of(str, one["text"]),
            tuple(_of(int, token) for token in one["tokens"]),
            tuple((_of(str, name), _number(value)) for name, value in one["measured"]),
        )
        for one in content["findings"]
    ]  # fmt: skip


def reading_of(content: Mapping[str, Any], subject: str) -> Reading:
    """What a probe saw.

    Raises:
        TypeError: If a value is of another kind.
        ValueError: If a rate is none.
    """
    curves = tuple(
        Curve(_of(str, one["name"]), subject, _of(str, one["axis"]), tuple(map(_point, one["points"])))
        for one in content["curves"]
    )
    numbers = {name: None if value is None else _number(value) for name, value in content["numbers"].items()}
    return Reading(curves, numbers)


def _point(content: Mapping[str, Any]) -> Point:
    point = Point(_number(content["at"]), _of(int, content["hits"]), _of(int, content["n"]))
    if not 0 <= point.hits <= point.n or not point.n:
        raise ValueError(f"{point.hits} hits of {point.n} pictures are no rate.")
    return point


def _number(value: Any) -> float:
    return value if type(value) is int else _of(float, value)


def _of(kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        raise TypeError(f"{kind.__name__} is required, found {type(value).__name__}.")
    return value
