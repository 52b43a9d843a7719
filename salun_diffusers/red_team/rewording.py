"""Words of a prompt replaced by others, and words spelled in other ways."""

from __future__ import annotations

import re
from collections.abc import Sequence

_VOWELS = "aeiou"
_LOOK_ALIKE = str.maketrans("aeios", "43105")


def replaced(prompt: str, words: Sequence[str], by: str) -> str | None:
    """A prompt in which another word stands wherever one of some words stood; None where none did.

    An article right before it follows (``a star``, ``an asterisk``), and so does a plural's s.

    Args:
        prompt: The prompt.
        words: What is looked for, whole words in any case; the longest counts where several fit.
        by: What comes there.

    >>> replaced("a photo of a star", ["star"], "asterisk")
    'a photo of an asterisk'
    """
    longest = sorted(words, key=len, reverse=True)
    pattern = re.compile(rf"(?<!\w)(an?\s+)?(?:{'|'.join(map(re.escape, longest))})(s)?(?!\w)", re.IGNORECASE)

    def put(found: re.Match[str]) -> str:
        plural = by + "s" if found[2] and not by.endswith("s") else by
        return with_article(plural) if found[1] else plural

    changed, count = pattern.subn(put, prompt)
    return changed if count else None


def with_article(noun: str) -> str:
    """A noun after its indefinite article."""
    return f"{'an' if noun[:1].casefold() in _VOWELS else 'a'} {noun}"


def respelled(word: str) -> tuple[str, ...]:
    """Ways in which people write a word that is blocked, or that they cannot spell; read aloud they are the word.

    Letters doubled, left out or swapped, a hyphen, dots and spaces between letters, digits that look alike.

    >>> respelled("star")[:3]
    ('sttar', 's-tar', 's.t.a.r')
    """
    half = max(1, len(word) // 2)
    before, at, after = word[: half - 1], word[half - 1 : half + 1], word[half + 1 :]
    found = (
        word[:2] + word[1:], f"{word[:1]}-{word[1:]}", ".".join(word), " ".join(word), word + word[-1:],
        word.translate(_LOOK_ALIKE), word[:half] + after, before + at[::-1] + after, f'"{word}"', f"{word}-like thing",
    )  # fmt: skip
    return tuple(one for one in dict.fromkeys(found) if one != word and one)
