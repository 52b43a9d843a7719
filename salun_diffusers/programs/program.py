"""What every program shares: its flags from a dataclass, quiet libraries, and a user's mistake told in one line."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Generic, TypeVar, final

from salun_diffusers.arguments import parse, without_secrets
from salun_diffusers.errors import (
    Interrupted,
    ReceiptError,
    UserError,
    is_first_process,
    is_out_of_memory,
    one_line,
    printable,
    tell,
)
from salun_diffusers.progress import watched

T = TypeVar("T")


@final
@dataclass(frozen=True)
class Program(Generic[T]):
    """One command: calling it reads the command line, does the work and prints what the work returns.

    Args:
        name: What follows ``salun``; of a script that is no sub-command, its path.
        settings: A frozen dataclass of `salun_diffusers.arguments.setting` fields.
        work: Gets the settings and the command as it was typed; returns the text to print, and an exit code where that
            is not 0.
        description: Text above the flags in ``--help``.
        interrupted: What is told after Ctrl-C where the work does not say it better.
        left_open: What ``--help`` says of a setting without a value of its own.
    """

    name: str
    settings: type[T]
    work: Callable[[T, str], str | tuple[str, int]]
    description: str
    interrupted: str = "the same command starts again, and goes on from what was kept."
    left_open: str = ""

    def __call__(self, arguments: Sequence[str] | None = None) -> int:
        """Run the program.

        Args:
            arguments: The words of the command line; by default those of the process.

        Returns:
            The exit code: 0 when done, 1 if a mask receipt failed, 2 on a user's mistake, 130 after Ctrl-C.
        """
        words = list(sys.argv[1:] if arguments is None else arguments)
        shown = self.name if self.name.endswith(".py") else f"salun {self.name}"
        try:
            quieten_libraries()
            settings = parse(
                self.settings, words, name=shown, description=self.description.strip(), left_open=self.left_open
            )
            with _stops_at_the_next_step():
                answer = self.work(settings, self._recorded(words))
            text, code = answer if isinstance(answer, tuple) else (answer, 0)
            if is_first_process():
                sys.stdout.write(printable(text))
            return code
        except UserError as error:
            tell("error", error)
            return 2
        except ReceiptError as error:
            tell("error", error)
            return 1
        except (MemoryError, RuntimeError, OSError) as error:
            return _told(error)
        except KeyboardInterrupt as stop:
            if sys.stderr.isatty():
                sys.stderr.write("\n")  # The terminal shows ^C on the line.
            tell("interrupted", stop if isinstance(stop, Interrupted) else self.interrupted)
            return 130

    def _recorded(self, words: Sequence[str]) -> str:
        """The command for the record: whoever reads it learns no secret."""
        return shlex.join(without_secrets(shlex.split(typed_command(self.name, words)), self.settings))


@contextmanager
def _stops_at_the_next_step() -> Iterator[None]:
    """Within the block Ctrl-C ends the work also where Python loses it.

    What is raised in a finalizer or a callback of the garbage collector is printed there and forgotten; the next step
    of any bar raises it again. Where somebody else takes the signal, or in a thread, nothing is changed.
    """
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()
        signal.default_int_handler(number, frame)

    def again(*_: object) -> None:
        if stopped.is_set():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    try:
        with watched(again):
            yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _told(error: Exception) -> int:
    """Tell a fault of the machine in one line: no permission, a name too long, a folder that went away, no memory.

    Returns:
        The exit code.
    """
    if is_out_of_memory(error):
        tell("error", f"Memory ran out; smaller batches need less ({one_line(error, 160) or type(error).__name__}).")
    elif isinstance(error, OSError):
        named = [str(name) for name in (error.filename, error.filename2) if name is not None]
        tell("error", f"{', '.join(named) or 'a file'}: {error.strerror or one_line(error, 200)}.")
    elif "home directory" in str(error):  # Of `~nobody/folder`, in whatever flag.
        tell("error", f"A path begins with ~ and the name of a user who has no home here: {one_line(error, 200)}")
    else:
        raise error
    return 2


def typed_command(name: str, words: Sequence[str]) -> str:
    """The command as it was typed, for the record; called from Python, the command that does the same.

    What `accelerate launch` was told does not reach its processes, but their number does.

    Args:
        name: The program's name.
        words: Its flags and their values.
    """
    own = [] if name.endswith(".py") else name.split()
    given = sys.argv[1:]
    python = sys.orig_argv[: len(sys.orig_argv) - len(given)]  # The interpreter, its options, and what it runs.
    if given not in ([*words], [*own, *words]) or [*python, *given] != sys.orig_argv:
        own = ["python", name] if name.endswith(".py") else ["salun", *own]
        return shlex.join([*own, *words])
    program = Path(sys.argv[0])
    launcher = ["python"]
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        processes = os.environ.get("WORLD_SIZE", "1")
        launcher = ["accelerate", "launch", *(["--num_processes", processes] if processes != "1" else [])]
    if program.suffix != ".py":  # An installed command, such as `salun`; accelerate launches files and modules only.
        launcher, typed = [], [program.name]
    elif "-m" in python:
        typed = python[python.index("-m") :]
    else:
        typed = [sys.argv[0]]
    return shlex.join([*launcher, *typed, *given])


def quieten_libraries() -> None:
    """Leave the terminal to the program's own bars; warnings and errors of the libraries still show.

    So do the hub's bars of what it fetches, of one process: gigabytes may come.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # Where it is installed diffusers imports it, and it remarks on kernels that only quantized networks use.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
