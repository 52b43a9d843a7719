"""One prompt at one seed, drawn by the base and by every erased model, as the page shows it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.evaluation.explicit_prompts import explicit_words
from salun_diffusers.studio.easel import BASE, Asked, Easel
from salun_diffusers.studio.line import STRONGEST
from salun_diffusers.studio.panels import Figure, figure_of, pictures_panel
from salun_diffusers.studio.shown import Shown


def side_by_side(easel: Easel, asked: Asked, strength: float, show: bool) -> Iterator[str]:
    """Draw one picture after the other, and give the panel anew after each.

    Args:
        easel: Draws.
        asked: What is drawn.
        strength: How far the erased models go: 0 is the base.
        show: Whether explicit pictures are shown as they are.

    Yields:
        The panel: first without pictures, last with all of them. A mistake of the user's ends it with a sentence.
    """
    shown, begun = easel.shown, time.monotonic()
    hidden = "" if show else why_hidden(shown, asked.prompt)
    titles = [("base", shown.base_name), *((f"{one.name} erased", _at(strength)) for one in shown.erased)]
    figures = [Figure(title, note) for title, note in titles]
    what = f"“{asked.prompt}”, seed {asked.seed}, {asked.steps} steps, guidance {asked.guidance:g}"
    yield pictures_panel(figures, f"Drawing {what} …", hidden=hidden)
    for number, (title, note) in enumerate(titles):
        model = BASE if number == 0 else number - 1
        try:
            picture = easel.picture(model, strength, asked)
        except UserError as error:
            yield pictures_panel(figures[:number], "", hidden=hidden, trouble=one_line(error))
            return
        figures[number] = figure_of(title, note, picture, asked.prompt, bool(hidden))
        last = number == len(titles) - 1
        status = f"{what}: drawn in {time.monotonic() - begun:.1f} s" if last else f"Drawing {what} …"
        yield pictures_panel(figures, status, hidden=hidden)


def why_hidden(shown: Shown, prompt: str) -> str:
    """Why pictures are blurred, in words; empty where they may be shown.

    All pictures of a model that had an explicit concept are: such models draw it for harmless prompts, too.
    """
    if shown.where.explicit == "no":
        return ""
    explicit = [one.name for one in shown.erased if one.explicit]
    if explicit:
        return f"the concept {explicit[0]} is explicit"
    return f"the prompt says “{words[0]}”" if (words := explicit_words([prompt])) else ""


def read_strength(value: object) -> float:
    """The strength that a page sends.

    Raises:
        UserError: If it is no number, or outside.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"The strength must be a number, got {one_line(value, 40)}.")
    if not 0 <= value <= STRONGEST:
        raise UserError(f"The strength must be at least 0 and at most {STRONGEST}, got {value:g}.")
    return float(value)


def _at(strength: float) -> str:
    named = {0.0: " (the base)", 1.0: " (as erased)"}.get(strength, "")
    return f"strength {strength:g}{named}"
