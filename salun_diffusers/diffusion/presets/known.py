"""The concepts known by name, and how the words of a command line become a concept."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from salun_diffusers.demo.vocabulary import SHAPES, STYLES
from salun_diffusers.diffusion.concepts import Concept, EvaluationPrompt
from salun_diffusers.diffusion.config import EraseConfig, Recipe
from salun_diffusers.diffusion.presets import shapes
from salun_diffusers.diffusion.presets.nudity import nudity
from salun_diffusers.diffusion.presets.stable_diffusion import STABLE_DIFFUSION
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.explicit_prompts import explicit_words
from salun_diffusers.evaluation.prompt_files import read_prompts


def presets() -> dict[str, Callable[[Recipe], Concept]]:
    """Every concept known by name. Shapes and styles mean something to the demo model only."""
    known: dict[str, Callable[[Recipe], Concept]] = {"nudity": nudity}
    known |= {name: partial(shapes.shape, name) for name in SHAPES}
    known |= {name: partial(shapes.style, name) for name in STYLES}
    return known


def find_concept(config: EraseConfig) -> Concept:
    """The concept that a configuration asks for: a preset, a preset with other prompts, or free text.

    Raises:
        UserError: If the name is empty or unknown and no prompts came with it; if the prompts do not make a concept.
    """
    known = presets()
    name = " ".join(config.concept.split())
    if not name:
        raise UserError(
            f"--concept is required: a preset ({', '.join(known)}), or any words with --forget_prompt, "
            "--anchor_prompt and --retain_prompts FILE."
        )
    # Each of them is encoded, whether a latent of it is drawn or not.
    retain = read_prompts(config.retain_prompts, "--retain_prompts", 10_000) if config.retain_prompts else ()
    if name.lower() in known:
        preset = known[name.lower()](config.recipe)
        if not (config.forget_prompt or config.anchor_prompt or retain):
            return preset
        if config.forget_prompt and not config.anchor_prompt:
            raise UserError(
                f"--forget_prompt replaces the prompts of the preset {name!r}, so --anchor_prompt is required too: "
                "what they shall mean instead."
            )
        forget = config.forget_prompt or preset.forget_prompts
        anchor = config.anchor_prompt or preset.anchor_prompts
        changed: dict[str, Any] = {"forget_prompts": forget, "anchor_prompts": _paired(forget, anchor)}
        if config.forget_prompt:
            changed["forget_evaluation"] = tuple(map(EvaluationPrompt, forget[:8]))
            changed["explicit"] = preset.explicit or bool(explicit_words(forget))
        return replace(preset, retain_prompts=retain or preset.retain_prompts, **changed)
    if not config.forget_prompt and not config.anchor_prompt:
        close = difflib.get_close_matches(name.lower(), known, n=len(known), cutoff=0.0)
        raise UserError(
            f"Unknown concept {name!r}. Presets, the closest first: {', '.join(close)}. "
            "Any other concept needs --forget_prompt, --anchor_prompt and --retain_prompts FILE."
        )
    forget = config.forget_prompt
    return Concept(
        name=name,
        forget_prompts=forget,
        anchor_prompts=_paired(forget, config.anchor_prompt),
        retain_prompts=retain,
        forget_evaluation=tuple(map(EvaluationPrompt, forget[:8])),
        retain_evaluation=tuple(map(EvaluationPrompt, retain[:8])),
        numbers=STABLE_DIFFUSION[config.recipe],
        explicit=bool(explicit_words((name, *forget))),
    )


def _paired(forget: tuple[str, ...], anchor: tuple[str, ...]) -> tuple[str, ...]:
    return anchor * len(forget) if len(anchor) == 1 else anchor
