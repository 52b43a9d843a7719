"""From a written concept, or from free text by the template of its kind, to the concept of a run."""

from __future__ import annotations

from salun_diffusers.diffusion.concepts import Concept, EvaluationPrompt
from salun_diffusers.diffusion.config import Recipe
from salun_diffusers.diffusion.presets.everyday import beside, content_words, everyday
from salun_diffusers.diffusion.presets.stable_diffusion import SD_1, Kind
from salun_diffusers.diffusion.presets.surroundings import (
    Surroundings,
    around,
    guessed_kind,
    in_a_sentence,
    without_article,
)
from salun_diffusers.diffusion.presets.text_space import NOT_AT_HAND, TextSpace
from salun_diffusers.diffusion.presets.written import Written, filled, replaced, written
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.explicit_prompts import explicit_words

_ASKED = 4  # Neighbours, and everyday captions, that the report asks for where a concept names none.
_MEASURED = 12


def from_text(name: str, kind: str | None, recipe: Recipe, model: Kind, space: TextSpace) -> Concept:
    """A concept of any words, by the template of its kind.

    Args:
        name: The words.
        kind: Its kind, or None: then it is guessed, and the plan says why.
        recipe: Which prompts and numbers.
        model: The Stable Diffusion.
        space: How near words lie to its text encoder.

    Raises:
        UserError: If the model has no words for it.
    """
    chosen, why = (kind, "as --kind says") if kind else guessed_kind(name)
    require_known(name, space)
    return from_written(Written(name=name, kind=chosen), recipe, model, space, why)


def require_known(name: str, space: TextSpace) -> None:
    """Refuse words that a model would spell letter by letter.

    Raises:
        UserError: Naming them.
    """
    if not space.knows(without_article(name)):
        raise UserError(
            f"The model's tokenizer has no word for {name!r} and would spell it letter by letter, so nothing it draws "
            "is asked for by it; write it in words that people put under such pictures, or give --forget_prompt."
        )


def from_written(
    one: Written, recipe: Recipe, model: Kind = SD_1, space: TextSpace = NOT_AT_HAND, why: str = "as its preset says"
) -> Concept:
    """The concept of a run.

    What it leaves out is its template's; anchor and neighbours that neither names are found. Half of what the default
    recipe retains are neighbours, the other half everyday captions.

    Args:
        one: What is written.
        recipe: Under the paper's, its one swap.
        model: The Stable Diffusion that it is for.
        space: How near words lie to its text encoder.
        why: Where its kind comes from.
    """
    template = written("templates")[one.kind]
    words = {**template.words, **one.words} if not one.swaps else dict(one.words)
    swaps, keep, ask = one.swaps or template.swaps, one.keep, one.ask or template.ask
    found = Surroundings()
    if not one.swaps and not one.neighbours:
        found = around(without_article(one.name), one.kind, space)
    neighbours = one.neighbours or found.neighbours
    by_kind = template.keep if not one.swaps or one.neighbours else ()
    anchor = one.anchor or (found.broader if one.kind in ("object", "colour") else "") or template.anchor
    if one.kind == "colour" and not one.anchor:
        anchor = next(iter(neighbours), template.anchor)
    named = one.phrase or in_a_sentence(one.name, one.kind)
    if not one.swaps:
        require_another(one.name, anchor)
    stay = tuple(in_a_sentence(word, one.kind) for word in neighbours if word != anchor)
    places = {"name": (named,), "anchor": (anchor,), "neighbour": stay, **words}
    [swap] = filled([_pair(one.paper or template.paper)], places)
    pairs = filled(list(swaps), places) if recipe == "frozen_teacher" else [swap]
    forgets, anchors = (tuple(side) for side in zip(*pairs, strict=True))
    of_kind = {**template.words, **places}
    kept = tuple(text for (text,) in filled([(text,) for text in (*keep, *by_kind)], of_kind) if text not in forgets)
    if recipe == "paper":
        retains = one.paper_keep or (anchors[0],)
    else:
        seen, unseen = everyday(one.name, forgets, anchors)
        retains = beside(kept, seen)
    asked = tuple(text for (text,) in filled([(text,) for text in ask], places))
    beside_it = _measured(by_kind, stay, of_kind) or kept[:_MEASURED]
    others = one.ask_kept
    if not others:
        others = (*beside_it[:_ASKED], *(unseen[:_ASKED] if recipe == "frozen_teacher" else retains[:_ASKED]))
    trained = {*forgets, *retains}
    own = {**one.numbers, **(one.paper_numbers if recipe == "paper" else {})}
    return Concept(
        name=one.name,
        forget_prompts=forgets,
        anchor_prompts=anchors,
        retain_prompts=retains,
        forget_evaluation=tuple(EvaluationPrompt(text, trained_on=text in trained) for text in asked),
        retain_evaluation=_asked(tuple(dict.fromkeys(others)), trained),
        target_labels=frozenset(one.labels),
        detector=one.detector,
        explicit=one.explicit or bool(explicit_words((one.name, *forgets))),
        numbers=replaced(model.numbers(recipe), own),
        numbers_of=str(model),
        neighbours=_asked(beside_it, trained),
        told=_told(one, why, anchor, found, neighbours),
        kind=one.kind,
    )


def _told(
    one: Written, why: str, anchor: str, found: Surroundings, neighbours: tuple[str, ...]
) -> tuple[tuple[str, str], ...]:
    """What a plan says of how the concept was made."""
    lines = [("kind", f"{one.kind}, {why}")]
    if not one.swaps:
        origin = "the nearest broader word" if anchor == found.section else "of its kind"
        lines.append(("becomes", f"{anchor} ({'as written' if one.anchor else origin})"))
    elif not neighbours:
        return tuple(lines)
    source = "as written" if one.neighbours else "the nearest by the model's text encoder, or of the list"
    listed = ", ".join(neighbours) if neighbours else "none yet: they are found when the weights are there"
    lines.append(("beside", f"{listed} ({source})" if neighbours else listed))
    return tuple(lines)


def _measured(patterns: tuple[str, ...], stay: tuple[str, ...], places: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """One prompt for each neighbour, all of the same words."""
    pattern = next((text for text in patterns if "{neighbour}" in text), "")
    if not pattern:
        return ()
    plain = {name: some[:1] for name, some in places.items()} | {"neighbour": stay}
    return tuple(text for (text,) in filled([(pattern,)], plain))[:_MEASURED]


def _asked(prompts: tuple[str, ...], trained: set[str]) -> tuple[EvaluationPrompt, ...]:
    return tuple(EvaluationPrompt(text, trained_on=text in trained) for text in prompts)


def _pair(texts: tuple[str, ...]) -> tuple[str, str]:
    return texts[0], texts[1]


def require_another(name: str, anchor: str) -> None:
    """Refuse an anchor that names the concept.

    Raises:
        UserError: Saying so.
    """
    own = content_words(name)
    if own and own <= content_words(anchor):
        raise UserError(
            f"The anchor {anchor!r} names the concept {name!r} itself, so nothing would be forgotten; an anchor says "
            "what the words shall mean instead, such as the broader word."
        )
