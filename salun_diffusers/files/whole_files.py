"""Files and folders that are there whole or not at all, and a disk that is full."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.json_files import parse_json

_LARGEST_HEADER = 100_000_000  # bytes; safetensors itself reads no larger one


@contextmanager
def whole_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """A place to write a file, which gets its name when the block ends well; missing folders are made.

    The file has the mode that the umask gives, whatever wrote it: safetensors 0.8 leaves files that only their owner
    can read.

    Args:
        path: The file's name; an older file there stays until the new one is whole.
        shared: Whether another process may be writing the same file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path, f"{os.getpid()}." if shared else "")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)
        _flush(partial)
        partial.replace(path)
        _flush_names(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to write in, which gets its name when the block ends well; its files have modes of the umask.

    Args:
        path: The folder's name; an older folder there stays until the new one is whole.
    """
    partial = partial_of(path)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        _as_the_umask_says(partial)
        for folder in (partial, *(path for path in partial.rglob("*") if path.is_dir() and not path.is_symlink())):
            _flush_names(folder)
        if path.exists():
            old = path.with_name(f".{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            path.replace(old)
            partial.replace(path)
            shutil.rmtree(old)
        else:
            partial.replace(path)
        _flush_names(path.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def partial_of(path: Path, who: str = "") -> Path:
    """Where a file or folder is written before it gets its name."""
    return path.with_name(f".{path.name}.{who}partial")


def _as_the_umask_says(folder: Path) -> None:
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)
            _flush(file)


def _flush(file: Path) -> None:
    """Have the disk hold what the file holds, before a name promises it."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _flush_names(folder: Path) -> None:
    """Have the disk hold the names in a folder; where folders cannot be opened, there is no such thing."""
    if os.name == "posix":
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def check_whole(file: Path) -> dict[str, Any]:
    """Compare the length of a safetensors file with what its header promises.

    Returns:
        The header: a tensor's ``dtype``, ``shape`` and ``data_offsets`` by its name, and ``__metadata__`` where there
        is some.

    Raises:
        UserError: If they differ, or it is no safetensors file.
    """
    length = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        size = int.from_bytes(start, "little")
        text = stream.read(size) if size < min(length, _LARGEST_HEADER) else b""
        begins = text[:1] or stream.read(1)
    if start == b"version ":
        raise UserError(f"{file} is a git-lfs pointer, not the weights: run `git lfs pull` in its folder.")
    if length < 10 or begins != b"{":
        raise UserError(
            f"{file} is damaged or no safetensors file: a header is required, found {length} bytes without one; "
            "copy it again."
        )
    if not text:
        raise UserError(
            f"{file} is truncated or damaged: a header of {size} bytes is required, found {length} bytes in all; "
            "copy it again."
        )
    try:
        header: dict[str, Any] = parse_json(text)
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        ends = [int(entry["data_offsets"][1]) for entry in entries if isinstance(entry["shape"], list)]
        expected = 8 + size + max(ends, default=0)
        if len(ends) != len(entries):
            raise ValueError("a tensor without a shape")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise UserError(
            f"{file} is damaged or no safetensors file: a JSON header of tensors is required, found "
            f"{one_line(repr(error), 80)}; copy it again."
        ) from error
    if length != expected:
        raise UserError(
            f"{file} is truncated or damaged: {expected} bytes are required, found {length}; copy it again."
        )
    return header


@contextmanager
def full_disk_is_told(what: str) -> Iterator[None]:
    """Turn a full disk into one sentence.

    Raises:
        UserError: If the block ran out of space.
    """
    sentence = (
        f"The disk is full: {what} could not be written. What was finished before is kept: free some space, then give "
        "the same command again, `salun erase` with the run's --output_dir and --resume_from_checkpoint latest."
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
