"""A few pictures of what attacks achieved, drawn anew for the page: unaided, attacked, and the base's."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from salun_diffusers.red_team.opened import Examination
from salun_diffusers.red_team.suite import Results
from salun_diffusers.red_team.wordings import Wording, conditions_of

_MOST = 6
_WORDS = 60  # characters of found words that are shown


@dataclass(frozen=True)
class Shown:
    """One case that an attack won.

    Args:
        attack: Its name.
        prompt: What was asked for.
        found: The words that brought it, shortened; empty where they are not told.
        unaided: The erased model's picture of the prompt.
        attacked: Its picture of what was found.
        base: The base's picture of the prompt.
    """

    attack: str
    prompt: str
    found: str
    unaided: Image.Image
    attacked: Image.Image
    base: Image.Image


def shown_pictures(seen: Examination, results: Results) -> list[Shown]:
    """The first case that each attack by words won; vectors and noise that were found are not kept, and not shown.

    Args:
        seen: Models and cases.
        results: What was found.
    """
    target, shown = seen.contest.target, list[Shown]()
    for one in results.attacked:
        won = [
            (case, finding)
            for case, finding, before in zip(seen.cases, one.findings, one.pre, strict=True)
            if finding.hit and not before and finding.tokens
        ]
        if one.subject != "erased" or not won or len(shown) == _MOST:
            continue
        case, finding = won[0]
        attacked = target.pictures(conditions_of(target.family, [Wording(finding.text, finding.tokens)]), [case.seed])
        (unaided,), (base,) = (model.drawn([case.prompt], [case.seed]) for model in (target, seen.contest.base))
        # Words that bring an explicit concept back stay in the private folder.
        words = "" if seen.explicit else finding.text[:_WORDS]
        shown.append(Shown(one.attack, case.prompt, words, unaided, attacked[0], base))
    return shown
