"""Everyday captions of our own: scenes that no erasure should touch, so that every Stable Diffusion keeps them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_FILE = Path(__file__).with_name("everyday.txt")
_HELD_OUT = 30  # Every 30th caption is kept for reports: pictures of prompts that no training has seen.
_SMALL = frozenset((
    "a", "an", "and", "at", "by", "for", "from", "in", "into", "its", "of", "on", "or", "over", "the", "their", "to",
    "under", "with",
))  # fmt: skip
_SHORTEST = 3  # Letters that two words must share to count as the same one: dog and dogs.


@cache
def captions() -> tuple[str, ...]:
    """All captions, in the order of the file."""
    return tuple(_FILE.read_text(encoding="utf-8").splitlines())


def everyday(
    name: str, forget_prompts: Iterable[str], anchor_prompts: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Captions to train with, and others for the report; none names what is to be forgotten.

    A caption is left out if it has a word, or one that begins like it, of the concept's name or of a forget prompt that
    no anchor prompt has.

    Args:
        name: Of the concept.
        forget_prompts: Prompts that lose it.
        anchor_prompts: What they come to mean.
    """
    words = content_words(" ".join((name, *forget_prompts))) - content_words(" ".join(anchor_prompts))
    seen: list[str] = []
    unseen: list[str] = []
    for number, caption in enumerate(captions(), 1):
        if not any(same_word(word, other) for word in words for other in content_words(caption)):
            (unseen if number % _HELD_OUT == 0 else seen).append(caption)
    return tuple(seen), tuple(unseen)


def content_words(text: str) -> set[str]:
    """The words of a text that say something, in lower case.

    >>> sorted(content_words("A painting by Van Gogh"))
    ['gogh', 'painting', 'van']
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    return set("".join(letter if letter.isalnum() else " " for letter in plain).split()) - _SMALL


def beside(neighbours: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    """Neighbours and others in turn, so that each are half of whatever is drawn of them; the shorter list goes round.

    >>> beside(("a dog",), ("a cup", "a car"))
    ('a dog', 'a cup', 'a dog', 'a car')
    """
    if not neighbours or not others:
        return neighbours or others
    rows = range(max(len(neighbours), len(others)))
    pairs = ((neighbours[row % len(neighbours)], others[row % len(others)]) for row in rows)
    return tuple(prompt for pair in pairs for prompt in pair)


def same_word(word: str, other: str) -> bool:
    """Whether one of two words begins like the other: dog and dogs."""
    short, long = sorted((word, other), key=len)
    return len(short) >= _SHORTEST and long.startswith(short)
