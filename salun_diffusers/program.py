"""What every small program shares: quiet libraries, and a user's mistake told in one line."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from salun_diffusers.arguments import parse
from salun_diffusers.errors import ReceiptError, UserError, tell

T = TypeVar("T")


def run_program(
    config_type: type[T],
    work: Callable[[T, str], str],
    arguments: Sequence[str] | None,
    *,
    file: str,
    description: str,
    launcher: str = "python",
    interrupted: str = "the same command starts again, and goes on from what was kept.",
) -> int:
    """Parse the command line, do the work, print what it returns.

    Args:
        config_type: A frozen dataclass of settings.
        work: Gets the settings and the command line, and returns the text to print.
        arguments: The words of the command line; by default those of the process.
        file: The program's own file, for the record of the command.
        description: Text above the flags in ``--help``.
        launcher: What the record says the program was started with.
        interrupted: What is told after Ctrl-C.

    Returns:
        The exit code: 0 when done, 1 if a mask receipt failed, 2 on a user's mistake, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = f"{launcher} scripts/{Path(file).name} {shlex.join(words)}".strip()
    try:
        quieten_libraries()
        sys.stdout.write(work(parse(config_type, words, description=description), command))
    except UserError as error:
        tell("error", error)
        return 2
    except ReceiptError as error:
        tell("error", error)
        return 1
    except KeyboardInterrupt:
        tell("interrupted", interrupted)
        return 130
    return 0


def quieten_libraries() -> None:
    """Leave the terminal to the program's own bars; warnings and errors of the libraries still show."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
