"""The exceptions that programs tell in one line, and how they end."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")  # Where accelerate looks, too.


class UserError(ValueError):
    """Something the user asked for cannot be done; the message says what is required, what arrived and what to do.

    Programs print it as one line on stderr and exit with code 2; in Python it is a `ValueError`.
    """


class ReceiptError(RuntimeError):
    """A written pipeline differs from its base where the mask forbids it; programs exit with code 1."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a run was under way.

    Args:
        folder: The run folder, which keeps what was finished.
        kept: Names of what was finished.
    """

    def __init__(self, folder: Path, kept: list[str]) -> None:
        super().__init__()
        self.folder, self.kept = folder, kept

    def __str__(self) -> str:
        return (
            f"{self.folder} keeps {', '.join(self.kept) or 'the settings, no stage was finished'}; the same command "
            f"with --output_dir {self.folder} --resume_from_checkpoint latest goes on from there."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: Python's, numpy's, torch's of any device, or the system's.

    torch's are told by name and words, so that it need not be imported.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    words = ("can't allocate memory", "DefaultCPUAllocator", "out of memory")
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or any(word in str(error) for word in words)
    )


def one_line(message: object, limit: int | None = None) -> str:
    """A message without line breaks and doubled spaces, and without what moves a terminal's cursor or turns its text.

    Args:
        message: An exception or a text; those of other libraries run over several lines.
        limit: Characters to keep; None keeps all.
    """
    plain = "".join(letter if letter.isprintable() else " " for letter in str(message))
    return " ".join(plain.split())[:limit]


def printable(text: str) -> str:
    """A text of several lines without what moves a terminal's cursor or turns its text."""
    return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)


def tell(kind: str, message: object) -> None:
    """Write ``kind: message`` to stderr, as one line whatever the message holds."""
    sys.stderr.write(f"{kind}: {one_line(message)}\n")


def is_first_process() -> bool:
    """Whether this is the only one or the first of several processes: what is told or sent once is this one's."""
    return all(os.environ.get(name, "0") == "0" for name in _RANKS)
