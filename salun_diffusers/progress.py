"""What a run says of its time: bars with stage, step, loss, rate and time left, and seconds per stage."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from tqdm.auto import tqdm

Watcher = Callable[[str, int, int, Mapping[str, float]], object]
"""Called with the stage, what is done of it, its total, and values such as the loss."""
_WATCHERS: ContextVar[tuple[Watcher, ...]] = ContextVar("watchers", default=())
# In a notebook the bar is a widget, which has its own width.
_NOTEBOOK = any(kind.__name__ == "tqdm_notebook" for kind in tqdm.__mro__)
_BAR = "{bar}" if _NOTEBOOK else "{bar:24}"
_LINE = "{desc} {percentage:3.0f}% |" + _BAR + "| {n_fmt}/{total_fmt} {rate_fmt} {remaining} left{postfix}"


class Progress:
    """One stage's bar, on stderr and on the main process only.

    Args:
        stage: What is going on.
        total: Number of steps or items.
        shown: Whether this process draws the bar.
        done: Steps that an earlier run has done.
    """

    def __init__(self, stage: str, total: int, shown: bool = True, done: int = 0) -> None:
        self._stage, self._total, self._done = stage, total, done
        self._bar = tqdm(
            total=total, initial=done, desc=f"{stage:<17}", disable=not shown, file=sys.stderr, dynamic_ncols=True,
            bar_format=_LINE,
            # A log file gets a line now and then, a terminal a moving bar.
            mininterval=0.2 if sys.stderr.isatty() else 10,
        )  # fmt: skip

    def advance(self, count: int = 1, **values: float) -> None:
        """Move on by `count`, and show values such as the loss."""
        if values:
            self._bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()}, refresh=False)
        self._bar.update(count)
        self._done += count
        for watcher in _WATCHERS.get():
            watcher(self._stage, self._done, self._total, values)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


@contextmanager
def watched(watcher: Watcher | None) -> Iterator[None]:
    """Call somebody at every step of every bar within the block; an exception of theirs ends the work.

    Args:
        watcher: Who, or None for nobody.
    """
    before = _WATCHERS.set((*_WATCHERS.get(), watcher) if watcher is not None else _WATCHERS.get())
    try:
        yield
    finally:
        _WATCHERS.reset(before)


@contextmanager
def loading_quietly() -> Iterator[None]:
    """Hide diffusers' and transformers' own bars while a model of a few files loads or is written."""
    logs: list[Any] = [importlib.import_module(f"{name}.utils.logging") for name in ("diffusers", "transformers")]
    shown = [log for log in logs if log.is_progress_bar_enabled()]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()


@dataclass
class Clock:
    """Seconds per stage, for the report."""

    seconds: dict[str, float]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time that the block takes."""
        started = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 2)
