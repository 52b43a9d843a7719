"""Call a function in a process of its own, so that its peaks and what it leaves in memory are its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any


def alone(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function of a module returns when called in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)
