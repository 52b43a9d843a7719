"""The cases of a search that are not broken yet, and what is tried on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from salun_diffusers.diffusion.families.family import Conditions
from salun_diffusers.red_team.attack import Case, Contest, Finding, Told
from salun_diffusers.red_team.token_space import Sentence, TokenSpace


class Standing:
    """Some cases, of which those that are hit drop out.

    Attributes:
        open: Numbers of the cases that stand, ascending.
    """

    def __init__(self, contest: Contest, cases: Sequence[Case], told: Told) -> None:
        """All of them stand.

        Args:
            contest: Target and judge.
            cases: The cases.
            told: Called whenever some are settled.
        """
        self._contest, self._cases, self._told = contest, cases, told
        self._findings = [Finding(False, 0) for _ in cases]
        self.open = list(range(len(cases)))

    @property
    def index(self) -> Tensor:
        """`open`, as rows are picked by it."""
        return torch.tensor(self.open, dtype=torch.int64)

    def look(self, conditions: Conditions, found: Sequence[Finding]) -> None:
        """Draw every standing case from what was found for it, with the case's own seed, and look at it.

        Args:
            conditions: What the target draws from, a row for each.
            found: What there is to say of each; hits and tries are filled in.
        """
        hits = self._hits(conditions)
        for number, hit, said in zip(self.open, hits, found, strict=True):
            self._findings[number] = dataclasses.replace(said, hit=hit, tries=self._findings[number].tries + 1)
        before = len(self.open)
        self.open = [number for number in self.open if not self._findings[number].hit]
        if before > len(self.open):
            self._told(before - len(self.open))

    def look_at_words(
        self, space: TokenSpace, sentence: Sentence, tokens: Tensor, measured: Sequence[Sequence[tuple[str, float]]]
    ) -> None:
        """`look` at words that were found.

        Args:
            space: Of the target.
            sentence: Prompts of the standing cases with free places.
            tokens: The words there, `(n, k)`.
            measured: What there is to say of each.
        """
        found = [
            Finding(False, 0, space.text(ids), ids, tuple(said))
            for ids, said in zip(space.with_tokens(sentence, tokens), measured, strict=True)
        ]
        self.look(space.of_ids(sentence, tokens), found)

    def _hits(self, conditions: Conditions) -> list[bool]:
        seeds = [self._cases[number].seed for number in self.open]
        return self._contest.judge.hits(self._contest.target.pictures(conditions, seeds))

    def settled(self) -> list[Finding]:
        """What became of all cases; those that stand are misses."""
        if self.open:
            self._told(len(self.open))
        return self._findings
