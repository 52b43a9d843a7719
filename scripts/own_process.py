"""Call functions in processes of their own, so that peaks and what is left in memory are theirs alone."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from typing import Any


def alone(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function of a module returns when called in a new process."""
    return side_by_side(function, [arguments])[0]


def side_by_side(function: Callable[..., Any], rows: Sequence[tuple[object, ...]]) -> list[Any]:
    """What a function of a module returns for each row of arguments, as many at a time as there are cores."""
    with multiprocessing.get_context("spawn").Pool(min(len(rows), os.cpu_count() or 1), maxtasksperchild=1) as pool:
        return pool.starmap(function, rows, chunksize=1)
