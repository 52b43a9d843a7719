"""Plant errors in a copy of the package, one at a time, and see whether the tests notice.

    python scripts/plant_errors.py --output docs/results/planted_errors.md

Each error of `planted_errors.py` stands in an equation: a sign, a factor, a bound. Its text must be in its file exactly
once, or the program stops: code has moved, and the table must follow. The tests named for it are run until the first
one fails. Before that they are run without an error, since a failing test notices nothing.
"""

from __future__ import annotations

import compileall
import contextlib
import importlib
import multiprocessing
import os
import platform
import py_compile
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from planted_errors import PLANTED, PlantedError

from salun_diffusers.arguments import setting
from salun_diffusers.errors import UserError
from salun_diffusers.files.whole_files import write_text
from salun_diffusers.programs.program import Program

_SCRIPTS = Path(__file__).resolve().parent
_ROOT = _SCRIPTS.parent
_NO_TEST_RAN = 70
_COPIED = ("salun_diffusers", "tests", "scripts", "pyproject.toml", "erase.py")


@dataclass(frozen=True)
class PlantConfig:
    """Settings of the program."""

    output: str | None = setting(None, "Where the table goes, too.")
    only: str = setting("", "Plant only where the file's name has this in it.")
    seconds: int = setting(300, "Longest time of one run of tests.", minimum=1)


def check(errors: Sequence[PlantedError], root: Path) -> None:
    """Refuse a table that the package has moved away from.

    Raises:
        UserError: Naming the first text that is not there exactly once, or the first error that is there twice.
    """
    if len(set(errors)) < len(errors):
        twice = next(error for error in errors if errors.count(error) > 1)
        raise UserError(f"{twice.file}: {twice.right!r} → {twice.wrong!r} is in the table twice; remove one.")
    for error in errors:
        path = root / "salun_diffusers" / error.file
        if not path.is_file():
            raise UserError(f"There is no {path} to plant an error in; correct scripts/planted_errors.py.")
        count = path.read_text(encoding="utf-8").count(error.right)
        if count != 1:
            raise UserError(
                f"{error.file} must hold {error.right!r} exactly once, it is there {count} times; correct "
                "scripts/planted_errors.py."
            )


def copy_of_the_package(folder: Path) -> Path:
    """A folder with what the tests need."""
    for name in _COPIED:
        source = _ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    # By contents: an error of the same length in the same second would pass for the module as it was.
    by_contents = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(folder / "salun_diffusers", quiet=1, invalidation_mode=by_contents)
    return folder


def tests_fail(root: Path, tests: str, seconds: int) -> str:
    """Run tests in a copy; the name of the first that fails, or an empty text if all pass.

    They run in a fork of this process, which has imported what takes long and none of what is tested.

    Raises:
        UserError: If there is no such test, which would notice nothing for ever.
    """
    split = shlex.split(tests)
    words = [
        word if word.startswith("-") or before in ("-k", "-m") else f"tests/{word}"
        for before, word in zip(["", *split], split, strict=False)
    ]
    told = root / "told.txt"
    child = multiprocessing.get_context("fork").Process(target=_run_tests, args=(root, words, told))
    child.start()
    child.join(seconds)
    if child.exitcode is None:
        child.kill()
        child.join()
        return f"no end after {seconds} s"
    if child.exitcode == 0:
        return ""
    if child.exitcode not in (1, 2):
        raise UserError(f"{tests}: pytest ended with {child.exitcode}; correct scripts/planted_errors.py.")
    lines = [line for line in told.read_text().splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return lines[0].split(" ", 1)[1].split(" - ")[0].removeprefix("tests/") if lines else "the tests do not start"


def _run_tests(root: Path, words: Sequence[str], told: Path) -> None:
    """Be pytest in a copy of the package; the process ends with pytest's code."""
    file = told.open("w", buffering=1)  # Line by line: nothing is flushed at the end of a fork.
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = file
    os.chdir(root)
    for name in list(sys.modules):
        if name.split(".")[0] in (
            "salun_diffusers",
            "planted_errors",
            "planted_in_measures",
            "planted_in_red_team",
            "plant_errors",
        ):
            del sys.modules[name]
    others = [place for place in sys.path if not (Path(place) / "salun_diffusers").is_dir() and place != str(_SCRIPTS)]
    sys.path[:] = [str(root), *others]
    os.environ["PYTHONPATH"] = str(root)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # It would warn of plugins that are imported already.
    sys.dont_write_bytecode = True
    code = _NO_TEST_RAN
    try:
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *words]))
    finally:
        os._exit(code)


def import_what_takes_long() -> None:
    """Import the libraries that the tests need, so that each fork has them."""
    os.environ["TRITON_INTERPRET"] = "1"  # As tests/conftest.py has it; Triton reads it once.
    import torch

    torch.set_num_threads(1)
    for name in (
        "transformers",
        "diffusers",
        "accelerate",
        "sklearn.svm",
        "torchmetrics",
        "scipy.linalg",
        "matplotlib",
    ):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def plant(root: Path, error: PlantedError, seconds: int) -> str:
    """What notices an error in a copy, which is as it was afterwards."""
    path = root / "salun_diffusers" / error.file
    text = path.read_text(encoding="utf-8")
    try:
        path.write_text(text.replace(error.right, error.wrong), encoding="utf-8")
        return tests_fail(root, error.tests, seconds)
    finally:
        path.write_text(text, encoding="utf-8")


def code(text: str) -> str:
    """Text as code in a table, where a bar would end the cell."""
    return f"`{text}`".replace("|", "\\|")


def table(errors: Sequence[PlantedError], noticed: Sequence[str], command: str, seconds: float) -> str:
    """The Markdown page."""
    killed = sum(map(bool, noticed))
    rows = [
        f"| `{error.file}` | {code(error.right)} | {code(error.wrong)} | {code(by) if by else '**survived**'} |"
        for error, by in zip(errors, noticed, strict=True)
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [
        "# Planted errors",
        "",
        f"{killed} of {len(errors)} planted errors are noticed ({100 * killed / len(errors):.1f} %), each alone in a "
        f"copy of the package, by the tests that are named for it. It took {seconds:.0f} s on {cores} CPU cores "
        f"({platform.machine()}).",
        "",
        "```bash",
        command,
        "```",
        "",
        "| file | right | planted | noticed first by |",
        "|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def work(config: PlantConfig, command: str) -> tuple[str, int]:
    """Plant all errors; the exit code is 1 if less than 95 % are noticed."""
    errors = [error for error in PLANTED if config.only in error.file]
    if not errors:
        raise UserError(f"--only must be part of a file's name in the table, {config.only!r} is of none.")
    check(errors, _ROOT)
    started = time.perf_counter()
    import_what_takes_long()
    noticed: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        copy = copy_of_the_package(Path(scratch))
        for tests in dict.fromkeys(error.tests for error in errors):
            if failed := tests_fail(copy, tests, config.seconds):
                raise UserError(f"{failed} fails without a planted error; mend it first.")
        for error in errors:
            noticed.append(plant(copy, error, config.seconds))
            said = f"{len(noticed)}/{len(errors)} {error.file}: {error.wrong}"
            sys.stderr.write(f"{said} - {noticed[-1] or 'SURVIVED'}\n")
    page = table(errors, noticed, command, time.perf_counter() - started)
    if config.output:
        write_text(Path(config.output), page)
    return page, 0 if sum(map(bool, noticed)) >= 0.95 * len(errors) else 1


main = Program("scripts/plant_errors.py", PlantConfig, work, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
