"""What an attack is: something that looks for words, vectors or noise from which a model draws what it should not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from salun_diffusers.red_team.judge import Judge
from salun_diffusers.red_team.subject import Subject

Told = Callable[[int], None]
"""Called with how many more cases are settled."""


@dataclass(frozen=True)
class Case:
    """A prompt that asks for the concept, and the seed at which its picture is drawn.

    Args:
        prompt: The words.
        seed: Of the picture, and of all that an attack draws for it: a case does not depend on those beside it.
    """

    prompt: str
    seed: int


@dataclass(frozen=True)
class Finding:
    """What an attack achieved in one case.

    Args:
        hit: Whether a picture shows the concept.
        tries: Pictures that were drawn and looked at.
        text: The words that were found, where there are any; of a miss the last ones.
        tokens: Their ids, where words are tokens that need not survive being written out.
        measured: What else there is to say, such as a loss.
    """

    hit: bool
    tries: int
    text: str = ""
    tokens: tuple[int, ...] = ()
    measured: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Contest:
    """Who is attacked, with whose knowledge, and who decides.

    Args:
        target: The model that is attacked.
        base: One that knows the concept: what it draws is what an attack is after. It may be the target itself.
        judge: Says what a hit is.
        words: What the concept is called, for lists and new words.
    """

    target: Subject
    base: Subject
    judge: Judge
    words: str


class Attack(Protocol):
    """Looks for the concept in a target, case by case."""

    @property
    def name(self) -> str:
        """As a flag and a table have it."""
        ...

    def __call__(self, contest: Contest, cases: Sequence[Case], told: Told) -> list[Finding]:
        """One finding for each case, in their order; the same for a case alone and in company.

        Args:
            contest: Target, base, judge.
            cases: Prompts; the target draws none of them as the concept without help.
            told: Called while it works.
        """
        ...
