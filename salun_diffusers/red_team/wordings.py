"""Prompts that are drawn one after the other until one of them shows the concept: what lists and searches come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from salun_diffusers.diffusion.families.family import Conditions, Family
from salun_diffusers.red_team.attack import Case, Contest, Finding, Told
from salun_diffusers.red_team.token_space import TokenSpace
from salun_diffusers.seeds import stream


@dataclass(frozen=True)
class Wording:
    """A prompt that is tried.

    Args:
        text: As people read it.
        tokens: Ids of all its tokens without start and end, where these are what counts; empty where the text is.
    """

    text: str
    tokens: tuple[int, ...] = ()


def tried(contest: Contest, cases: Sequence[Case], wordings: Sequence[Sequence[Wording]], told: Told) -> list[Finding]:
    """Draw every case's wordings in turn, at the case's seed, until the judge sees the concept.

    Args:
        contest: The target draws, the judge looks.
        cases: Whose seeds.
        wordings: For each case; without any it is missed.
        told: Called when cases are settled.

    Raises:
        UserError: If the target reads no words.
    """
    TokenSpace(contest.target.family)
    findings = [Finding(False, 0)] * len(cases)
    left = list(range(len(cases)))
    turn = 0
    while left:
        drawn = [place for place in left if turn < len(wordings[place])]
        told(len(left) - len(drawn))
        if not drawn:
            break
        chosen = [wordings[place][turn] for place in drawn]
        pictures = contest.target.pictures(
            conditions_of(contest.target.family, chosen), [cases[place].seed for place in drawn]
        )
        turn += 1
        for place, wording, hit in zip(drawn, chosen, contest.judge.hits(pictures), strict=True):
            findings[place] = Finding(hit, turn, wording.text, wording.tokens)
        left = [place for place in drawn if not findings[place].hit]
        told(len(drawn) - len(left))
    return findings


def conditions_of(family: Family, wordings: Sequence[Wording]) -> Conditions:
    """Conditions of wordings, one row each; each is encoded alone."""
    found = []
    for wording in wordings:
        if wording.tokens:
            space = TokenSpace(family)
            tokens = wording.tokens[: space.limit - 2]
            found.append(space.of_ids(space.sentence([""], [0] * len(tokens)), torch.tensor([tokens])))
        else:
            found.append(family.encode([wording.text]))
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}


def some(case: Case, name: str, wordings: Sequence[Wording], most: int) -> list[Wording]:
    """As many of the wordings as may be tried, in an order that is the case's own.

    Args:
        case: Whose.
        name: Of the attack, so that two of them do not draw alike.
        wordings: All there are.
        most: How many.
    """
    order = torch.randperm(len(wordings), generator=stream(case.seed, name, case.prompt)).tolist()
    return [wordings[place] for place in order[:most]]
