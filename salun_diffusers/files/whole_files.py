"""Files and folders that are there whole or not at all, and a disk that is full."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from salun_diffusers.errors import UserError


def replace_folder(source: Path, target: Path) -> None:
    """Rename `source` to `target`; a folder already at `target` stays until the very end."""
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.replace(old)
        source.replace(target)
        shutil.rmtree(old)
    else:
        source.replace(target)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def full_disk_is_told(what: str) -> Iterator[None]:
    """Turn a full disk into one sentence.

    Raises:
        UserError: If the block ran out of space.
    """
    sentence = (
        f"The disk is full: {what} could not be written. What was finished before is kept: free some space, "
        "then the same command with --resume_from_checkpoint latest goes on."
    )
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(sentence) from error
    except Exception as error:  # safetensors reports a full disk in a type and text of its own.
        if "No space left" not in str(error):
            raise
        raise UserError(sentence) from error


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to start what cannot be stored.

    Args:
        folder: Where it goes; it need not exist yet.
        needed: Bytes.
        what: What needs them.

    Raises:
        UserError: If fewer than `needed` bytes are free.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(f"{what} needs about {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free.")


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
