"""Plant errors in a copy of the package, one at a time, and see whether the tests notice.

    python scripts/plant_errors.py --output docs/results/planted_errors.md

Each error of `planted_errors.py` stands in an equation: a sign, a factor, a bound. Its text must be in its file exactly
once, or the program stops: code has moved, and the table must follow. The tests named for it are run until the first
one fails. Before that they are run without an error, since a failing test notices nothing.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from planted_errors import PLANTED, PlantedError

from salun_diffusers.arguments import setting
from salun_diffusers.errors import UserError
from salun_diffusers.files.whole_files import write_text
from salun_diffusers.programs.program import Program

_ROOT = Path(__file__).resolve().parents[1]
_COPIED = ("salun_diffusers", "tests", "scripts", "pyproject.toml", "erase.py")


@dataclass(frozen=True)
class PlantConfig:
    """Settings of the program."""

    output: str | None = setting(None, "Where the table goes, too.")
    only: str = setting("", "Plant only where the file's name has this in it.")
    processes: int = setting(1, "Copies of the package that are tested at once.", minimum=1)
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
    return folder


def tests_fail(root: Path, tests: str, seconds: int) -> str:
    """Run tests in a copy; the name of the first that fails, or an empty text if all pass.

    Raises:
        UserError: If there is no such test, which would notice nothing for ever.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--durations=0"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    words = [word if word.startswith("-") or " " in word else f"tests/{word}" for word in shlex.split(tests)]
    try:
        done = subprocess.run(
            [*command, *words], cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"no end after {seconds} s"
    if done.returncode == 0:
        return ""
    if done.returncode not in (1, 2):
        raise UserError(f"{tests}: pytest ended with {done.returncode}; correct scripts/planted_errors.py.")
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return lines[0].split(" ")[1].removeprefix("tests/") if lines else "the tests do not start"


def plant(root: Path, error: PlantedError, seconds: int) -> str:
    """What notices an error in a copy, which is as it was afterwards."""
    path = root / "salun_diffusers" / error.file
    text = path.read_text(encoding="utf-8")
    try:
        path.write_text(text.replace(error.right, error.wrong), encoding="utf-8")
        return tests_fail(root, error.tests, seconds)
    finally:
        path.write_text(text, encoding="utf-8")


def table(errors: Sequence[PlantedError], noticed: Sequence[str], command: str, seconds: float) -> str:
    """The Markdown page."""
    killed = sum(map(bool, noticed))
    rows = [
        f"| `{error.file}` | `{error.right}` | `{error.wrong}` | {f'`{by}`' if by else '**survived**'} |"
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
        *(row.replace("||", "|") for row in rows),
    ]
    return "\n".join(lines) + "\n"


def work(config: PlantConfig, command: str) -> tuple[str, int]:
    """Plant all errors; the exit code is 1 if less than 95 % are noticed."""
    errors = [error for error in PLANTED if config.only in error.file]
    if not errors:
        raise UserError(f"--only must be part of a file's name in the table, {config.only!r} is of none.")
    check(errors, _ROOT)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        copies = [copy_of_the_package(Path(scratch) / str(number)) for number in range(config.processes)]
        for tests in dict.fromkeys(error.tests for error in errors):
            if failed := tests_fail(copies[0], tests, config.seconds):
                raise UserError(f"{failed} fails without a planted error; mend it first.")
        noticed = [""] * len(errors)

        def share(number: int) -> None:
            for place in range(number, len(errors), config.processes):
                noticed[place] = plant(copies[number], errors[place], config.seconds)
                verdict = noticed[place] or "SURVIVED"
                sys.stderr.write(f"{place + 1}/{len(errors)} {errors[place].file}: {errors[place].wrong} - {verdict}\n")

        with ThreadPoolExecutor(config.processes) as pool:
            list(pool.map(share, range(config.processes)))
    page = table(errors, noticed, command, time.perf_counter() - started)
    if config.output:
        write_text(Path(config.output), page)
    return page, 0 if sum(map(bool, noticed)) >= 0.95 * len(errors) else 1


main = Program("scripts/plant_errors.py", PlantConfig, work, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
