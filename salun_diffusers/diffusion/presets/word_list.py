"""Everyday words in their kinds: what may stand beside a concept, and the broader word that it can become."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FILE = Path(__file__).with_name("words.txt")
_HEAD = re.compile(r"(.+) \[(\w+)\]: (.+)")


@dataclass(frozen=True)
class Section:
    """One kind of things.

    Args:
        broader: What each of them can become, such as ``an animal``.
        kind: Kind of concept that they are.
        things: Names of each thing, most have one.
    """

    broader: str
    kind: str
    things: tuple[tuple[str, ...], ...]

    @property
    def words(self) -> tuple[str, ...]:
        """All names."""
        return tuple(name for thing in self.things for name in thing)


@cache
def sections() -> tuple[Section, ...]:
    """All kinds of things, in the order of the file."""
    found = []
    for line in _FILE.read_text(encoding="utf-8").splitlines():
        if parts := _HEAD.fullmatch(line):
            things = tuple(tuple(thing.split("/")) for thing in parts[3].split(", "))
            found.append(Section(parts[1], parts[2], things))
    return tuple(found)


def section_of(word: str, kind: str = "") -> Section | None:
    """The first section that has a word, of a kind if one is named."""
    wanted = word.lower()
    return next(
        (
            one
            for one in sections()
            if (not kind or one.kind == kind) and wanted in (name.lower() for name in one.words)
        ),
        None,
    )


def same_thing(word: str) -> frozenset[str]:
    """Names of the thing that a word names."""
    things = (thing for section in sections() for thing in section.things if word in thing)
    return frozenset(name for thing in things for name in thing) | {word}
