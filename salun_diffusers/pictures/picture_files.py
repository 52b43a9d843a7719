"""The one walk: which files below a folder are pictures, in which order, and what was left out."""

from __future__ import annotations

import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from salun_diffusers.errors import UserError, tell
from salun_diffusers.pictures.decoding import Header, endings, read_header

_SYSTEM = {"__MACOSX", "Thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Found:
    """What lies below a folder.

    Args:
        files: Pictures, ``2.png`` before ``10.png``.
        left_out: How many files were left out, by reason.
    """

    files: tuple[Path, ...]
    left_out: Counter[str] = field(default_factory=Counter)


def local_folder(path: str | Path, what: str) -> Path:
    """A folder that a user named.

    Raises:
        UserError: If there is none, or it cannot be looked at.
    """
    try:
        folder = Path(path).expanduser()
        there = folder.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # A name too long, the home of nobody, …
        raise UserError(f"{what} is required; {str(path)[:200]!r} is none ({error}).") from error
    if not there:
        raise UserError(f"{what} is required; there is no folder {folder}.")
    return folder


def find_pictures(root: Path, *, apart: Callable[[Path], bool] = lambda folder: False) -> Found:
    """Find the pictures below a folder; links are followed, those that lead back are not.

    Hidden files and folders are left out, among them macOS' ``._0.png`` and ``.ipynb_checkpoints``.

    Args:
        root: The folder.
        apart: Says of a folder below whether it is left out.

    Raises:
        UserError: If a folder cannot be read.
    """
    files: list[Path] = []
    left_out: Counter[str] = Counter()
    for file in _below(root, apart, left_out):
        if file.suffix.lower() not in endings():
            left_out[f"ending {file.suffix.lower() or '(none)'}"] += 1
        elif not file.is_file():
            left_out["no file behind the name"] += 1
        else:
            files.append(file)
    return Found(tuple(sorted(files, key=lambda file: natural(str(file.relative_to(root))))), left_out)


def _below(root: Path, apart: Callable[[Path], bool], left_out: Counter[str]) -> Iterator[Path]:
    """Every file below a folder that is not hidden; counts what is left out."""
    # Folders, and where they and those above them really lie.
    coming: list[tuple[Path, tuple[str, ...]]] = [(root, (os.path.realpath(root),))]
    while coming:
        folder, parents = coming.pop()
        try:
            entries = list(folder.iterdir())
        except OSError as error:
            raise UserError(f"{folder} cannot be read ({error.strerror}); give it permissions or remove it.") from error
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _SYSTEM:
                left_out["hidden or the system's"] += 1
            elif not entry.is_dir():
                yield entry
            elif (real := os.path.realpath(entry)) in parents:
                left_out["a link that leads back"] += 1
            elif not apart(entry):
                coming.append((entry, (*parents, real)))


def natural(name: str) -> list[tuple[int, str]]:
    """Order ``2.png`` before ``10.png``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def tell_left_out(root: Path, left_out: Counter[str]) -> None:
    """Say once how many files were left out, and why."""
    if left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
        tell_once(f"{root}: {left_out.total()} left out ({reasons}).")


def read_headers(root: Path, files: Sequence[Path]) -> list[Header]:
    """Look at every header before any network is loaded; of animations, say once that one frame counts.

    Raises:
        UserError: If a file is no picture.
    """
    headers = [read_header(file) for file in files]
    if several := sum(header.frames for header in headers):
        tell_once(f"{root}: {several} of {len(files)} pictures have several frames; of each the first counts.")
    return headers


@functools.cache
def tell_once(text: str) -> None:
    """A note on stderr: a program may look at a folder several times, in several processes; its user reads it once."""
    if os.environ.get("RANK", "0") == "0":
        tell("note", text)


def no_pictures(root: Path, left_out: Counter[str]) -> UserError:
    """The error of a folder without any."""
    more = f" (left out: {', '.join(f'{count} {reason}' for reason, count in left_out.items())})" if left_out else ""
    return UserError(f"{root} must hold pictures (.png, .jpg, .webp, .tiff, …); it has none{more}.")
