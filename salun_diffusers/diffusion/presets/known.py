"""The concepts known by name, and how the words of a command line become a concept."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from salun_diffusers.demo.vocabulary import SHAPES, STYLES
from salun_diffusers.diffusion.concept_rows import name_of
from salun_diffusers.diffusion.concepts import DEMO, Concept, EvaluationPrompt
from salun_diffusers.diffusion.config import EraseConfig, Recipe
from salun_diffusers.diffusion.presets import shapes
from salun_diffusers.diffusion.presets.everyday import beside, everyday
from salun_diffusers.diffusion.presets.nudity import NUDITY, nudity
from salun_diffusers.diffusion.presets.stable_diffusion import SD_1, Kind
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.explicit_prompts import explicit_words
from salun_diffusers.evaluation.prompt_files import read_prompts

_MOST_EVALUATED = 8


def presets(kind: Kind = SD_1) -> dict[str, Callable[[Recipe], Concept]]:
    """Every concept known by name. Shapes and styles mean something to the demo model only.

    Args:
        kind: The Stable Diffusion that the others are for.
    """
    known: dict[str, Callable[[Recipe], Concept]] = {NUDITY: partial(nudity, kind=kind)}
    known |= {name: partial(shapes.shape, name) for name in SHAPES}
    known |= {name: partial(shapes.style, name) for name in STYLES}
    return known


def find_concept(config: EraseConfig, kind: Kind = SD_1) -> Concept:
    """The concept that a configuration asks for: a preset, a preset with other prompts, or free text.

    Args:
        config: The flags.
        kind: The Stable Diffusion that they are for.

    Raises:
        UserError: If the name is empty or unknown and no prompts came with it; if the prompts do not make a concept.
    """
    known = presets(kind)
    name = " ".join(name_of(config).split())
    if not name:
        raise UserError(
            f"--concept is required: a preset ({', '.join(known)}), or any words with --forget_prompt and "
            "--anchor_prompt."
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
            changed["forget_evaluation"] = tuple(map(EvaluationPrompt, forget[:_MOST_EVALUATED]))
            changed["explicit"] = preset.explicit or bool(explicit_words(forget))
        if retain and name.lower() == NUDITY and config.recipe == "frozen_teacher":
            retain = beside(retain, everyday(NUDITY, forget, anchor)[0])
        return replace(preset, retain_prompts=retain or preset.retain_prompts, **changed)
    if not config.forget_prompt and not config.anchor_prompt:
        close = difflib.get_close_matches(name.lower(), known, n=len(known), cutoff=0.0)
        raise UserError(
            f"Unknown concept {name!r}. Presets, the closest first: {', '.join(close)}. "
            "Any other concept needs --forget_prompt and --anchor_prompt."
        )
    forget = config.forget_prompt
    anchors = _paired(forget, config.anchor_prompt)
    toy = config.pretrained_model_name_or_path == DEMO
    kept, shown = _retained(config, name, retain, anchors) if not toy else (retain, _asked(retain))
    return Concept(
        name=name,
        forget_prompts=forget,
        anchor_prompts=anchors,
        retain_prompts=kept,
        forget_evaluation=tuple(map(EvaluationPrompt, forget[:_MOST_EVALUATED])),
        retain_evaluation=shown,
        numbers=shapes.SHAPE[config.recipe] if toy else kind.numbers(config.recipe),
        explicit=bool(explicit_words((name, *forget))),
        numbers_of="" if toy else str(kind),
    )


def _retained(
    config: EraseConfig, name: str, given: tuple[str, ...], anchors: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[EvaluationPrompt, ...]]:
    """What free text retains of a Stable Diffusion, and which prompts of it the report asks.

    Under the paper's recipe that is what the user gives, or else the anchor prompts, as in the official script for
    nudity. Otherwise the user's prompts are half, which are its neighbours, and everyday captions the other half: what
    lies beside a concept is lost first, and FID, the method's known price, is counted on captions of any kind. The
    report asks for the user's prompts, or else for captions that the training has not seen.
    """
    if config.recipe == "paper":
        kept = given or tuple(anchor for anchor in dict.fromkeys(anchors) if anchor not in config.forget_prompt)
        return kept, _asked(kept)
    seen, unseen = everyday(name, config.forget_prompt, anchors)
    unasked = tuple(EvaluationPrompt(caption, trained_on=False) for caption in unseen)
    return beside(given, seen), _asked(given) or unasked[:_MOST_EVALUATED]


def _asked(prompts: tuple[str, ...]) -> tuple[EvaluationPrompt, ...]:
    return tuple(map(EvaluationPrompt, prompts[:_MOST_EVALUATED]))


def _paired(forget: tuple[str, ...], anchor: tuple[str, ...]) -> tuple[str, ...]:
    return anchor * len(forget) if len(anchor) == 1 else anchor
