"""The concepts known by name, and how the words of a command line become a concept."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from salun_diffusers.demo.vocabulary import SHAPES, STYLES
from salun_diffusers.diffusion.concept_rows import name_of
from salun_diffusers.diffusion.concepts import DEMO, Concept, EvaluationPrompt
from salun_diffusers.diffusion.config import EraseConfig, Recipe
from salun_diffusers.diffusion.presets import shapes
from salun_diffusers.diffusion.presets.demo_words import from_demo_text, kept_words
from salun_diffusers.diffusion.presets.everyday import beside, everyday
from salun_diffusers.diffusion.presets.from_written import from_text, from_written, require_another
from salun_diffusers.diffusion.presets.nudity import NUDITY
from salun_diffusers.diffusion.presets.stable_diffusion import SD_1, Kind
from salun_diffusers.diffusion.presets.text_space import NOT_AT_HAND, TextSpace
from salun_diffusers.diffusion.presets.word_list import section_of
from salun_diffusers.diffusion.presets.written import all_written, is_file, read_own
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.explicit_prompts import explicit_words
from salun_diffusers.evaluation.prompt_files import read_prompts

_MOST_EVALUATED = 8
_MISTYPED = 0.75  # Words as like a preset's name as this are taken for a slip, unless --kind says what they are.
_OF_TOYS = (*SHAPES, *STYLES)
_NAMED = 8  # Presets that an error names.


def presets(kind: Kind = SD_1, space: TextSpace = NOT_AT_HAND) -> dict[str, Callable[[Recipe], Concept]]:
    """Every concept known by name. Shapes and styles are so to models with as few words as the demo model only.

    Args:
        kind: The Stable Diffusion that the others are for.
        space: How near words lie to its text encoder.
    """
    known: dict[str, Callable[[Recipe], Concept]] = {}
    for name, one in all_written().items():
        known[name] = partial(from_written, one, model=kind, space=space)
    known |= {name: partial(shapes.shape, name) for name in SHAPES}
    known |= {name: partial(shapes.style, name) for name in STYLES}
    return known


def find_concept(config: EraseConfig, kind: Kind = SD_1, space: TextSpace = NOT_AT_HAND) -> Concept:
    """The concept that a configuration asks for: a preset, a file, either with other prompts, or any words.

    Args:
        config: The flags.
        kind: The Stable Diffusion that they are for.
        space: How near words lie to its text encoder; by default they are not known yet, and it is no toy.

    Raises:
        UserError: If the name is empty or looks mistyped; if the words or prompts do not make a concept.
    """
    name = " ".join(name_of(config).split())
    if not name:
        raise UserError(
            f"--concept is required: a preset ({NUDITY}, Van Gogh, …; --list_concepts shows all), any words, or a TOML "
            "file with a concept of your own."
        )
    # Each of them is encoded, whether a latent of it is drawn or not.
    retain = read_prompts(config.retain_prompts, "--retain_prompts", 10_000) if config.retain_prompts else ()
    if is_file(name):
        if config.kind:
            raise UserError(f"--kind is for words; {name} says its own `kind`, so leave the flag out.")
        own = from_written(read_own(Path(name_of(config))), config.recipe, kind, space, "as its file says")
        return _with_flags(own, config, retain, of_pictures=True)
    known = presets(kind, space)
    preset = None if config.kind else _preset_of(name)
    if not space.of_a_toy:  # To Stable Diffusion a star is a word like any other, and so is what resembles it.
        known = {one: made for one, made in known.items() if one not in _OF_TOYS}
        preset = preset if preset in known else None
    if preset is not None:
        made = known[preset](config.recipe)
        if made.detector != "none" or made.explicit or not config.forget_prompt:
            return _with_flags(made, config, retain, of_pictures=preset in all_written())
    toy = config.pretrained_model_name_or_path == DEMO
    if config.forget_prompt:
        return _of_prompts(config, name, retain, kind, toy)
    if preset is None and not config.kind and not config.anchor_prompt:
        _refuse_mistyped(name, list(known))
    if toy:
        made = from_demo_text(name, config.kind, config.recipe, space)
    else:
        made = from_text(name, config.kind, config.recipe, kind, space)
    for anchor in config.anchor_prompt:
        require_another(name, anchor)
    return _with_flags(made, config, retain, of_pictures=not toy)


def _preset_of(name: str) -> str | None:
    """The preset that a name or another name of it means, in any spelling of capitals."""
    names = {one.lower(): one for one in _OF_TOYS}
    for one in all_written().values():
        names |= {alias.lower(): one.name for alias in (one.name, *one.aliases)}
    return names.get(name.lower())


def _refuse_mistyped(name: str, known: list[str]) -> None:
    """Refuse what is nearly a preset's name, or asks for explicit pictures in words of its own.

    Raises:
        UserError: Naming the presets that may be meant.
    """
    wanted = {one.lower(): one for one in known}
    close = [wanted[one] for one in difflib.get_close_matches(name.lower(), wanted, n=_NAMED, cutoff=0.0)]
    likeness = difflib.SequenceMatcher(None, name.lower(), close[0].lower()).ratio()
    explicit = bool(explicit_words([name]))
    if explicit or (likeness >= _MISTYPED and section_of(name) is None):
        first = [NUDITY, *(one for one in close if one != NUDITY)] if explicit else close
        raise UserError(
            f"Unknown concept {name!r}. Presets, the closest first: {', '.join(first[:_NAMED])}. "
            "If it is none of them, say by --kind what it is, and the words are taken as they are; or give "
            "--forget_prompt and --anchor_prompt."
        )


def _with_flags(made: Concept, config: EraseConfig, retain: tuple[str, ...], of_pictures: bool) -> Concept:
    """A concept with the prompts of the flags in place of its own.

    Args:
        made: The concept.
        config: The flags.
        retain: Prompts of `--retain_prompts`.
        of_pictures: Whether everyday captions are something to the model.
    """
    if not (config.forget_prompt or config.anchor_prompt or retain):
        return made
    if config.forget_prompt and not config.anchor_prompt:
        raise UserError(
            f"--forget_prompt replaces the prompts of the preset {made.name!r}, so --anchor_prompt is required too: "
            "what they shall mean instead."
        )
    forget = config.forget_prompt or made.forget_prompts
    anchor = config.anchor_prompt or made.anchor_prompts
    changed: dict[str, Any] = {"forget_prompts": forget, "anchor_prompts": _paired(forget, anchor)}
    if config.forget_prompt:
        changed["forget_evaluation"] = tuple(map(EvaluationPrompt, forget[:_MOST_EVALUATED]))
        changed["explicit"] = made.explicit or bool(explicit_words(forget))
    if config.anchor_prompt:
        changed["told"] = tuple(line for line in made.told if line[0] != "becomes")
    if retain and of_pictures and config.recipe == "frozen_teacher":
        retain = beside(retain, everyday(made.name, forget, anchor)[0])
    return replace(made, retain_prompts=retain or made.retain_prompts, **changed)


def _of_prompts(config: EraseConfig, name: str, retain: tuple[str, ...], kind: Kind, toy: bool) -> Concept:
    """A concept of the user's own forget prompts."""
    forget = config.forget_prompt
    anchors = _paired(forget, config.anchor_prompt)
    if toy:
        kept = retain or (kept_words(forget, anchors) if config.anchor_prompt else ())
        shown = _asked(kept)
    else:
        kept, shown = _retained(config, name, retain, anchors)
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
        kind=config.kind if config.kind else "object",
    )


def _retained(
    config: EraseConfig, name: str, given: tuple[str, ...], anchors: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[EvaluationPrompt, ...]]:
    """What free prompts retain of a Stable Diffusion, and which prompts of it the report asks.

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
