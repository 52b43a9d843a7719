"""Ctrl-C ends a program, wherever Python was when it came."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from salun_diffusers.arguments import setting
from salun_diffusers.programs.program import Program
from salun_diffusers.progress import Progress


@dataclass(frozen=True)
class Nothing:
    """No settings to speak of."""

    steps: int = setting(9, "Steps of the work.")


class Dropped:
    """Something whose finalizer is at work when the user stops the program."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """What a shell starts in the background hears no Ctrl-C, tests among it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def done() -> list[int]:
    return []


@pytest.fixture
def program(done: list[int]) -> Callable[[Callable[[], object]], int]:
    """The exit code of a program whose second of nine steps begins with what is given."""

    def run(second: Callable[[], object]) -> int:
        def work(settings: Nothing, command: str) -> str:
            with Progress("stage", settings.steps, shown=False) as bar:
                for step in range(settings.steps):
                    if step == 1:
                        second()
                    done.append(step)
                    bar.advance()
            return "done\n"

        return Program("nothing", Nothing, work, "Steps.")([])

    return run


def test_a_stop_is_heard(program, done, capsys):
    assert program(lambda: signal.raise_signal(signal.SIGINT)) == 130
    assert done == [0] and capsys.readouterr().err.count("interrupted: ") == 1


def test_a_stop_that_a_finalizer_swallows_is_heard_at_the_next_step(program, done, capsys, monkeypatch):
    lost: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    assert program(lambda: Dropped() and None) == 130
    assert len(lost) == 1 and done == [0, 1]
    captured = capsys.readouterr()
    assert "interrupted: " in captured.err and "done" not in captured.out


def test_the_next_program_begins_anew(program, done, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    assert program(lambda: Dropped() and None) == 130
    assert program(lambda: None) == 0 and done == [0, 1, *range(9)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_owner_of_the_signal_keeps_it(program):
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        assert program(lambda: signal.raise_signal(signal.SIGINT)) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]
