"""Free text on the demo model, whose vocabulary is small: prompts are combinations of all the words that it has."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable

from salun_diffusers.demo.vocabulary import COLOURS, SHAPES, STYLES, describe
from salun_diffusers.diffusion.concepts import DEMO, Concept, EvaluationPrompt
from salun_diffusers.diffusion.config import Recipe
from salun_diffusers.diffusion.presets import shapes
from salun_diffusers.diffusion.presets.everyday import content_words
from salun_diffusers.diffusion.presets.text_space import TextSpace
from salun_diffusers.errors import UserError

_LEFT_OPEN = 8  # Retained prompts of each shape that say no colour: there the model is free, and easily disturbed.
_PER_COLOUR = 3
_FORGOTTEN = 12  # Prompts of each shape in the forgotten colour; every third has it behind the shape.


def from_demo_text(name: str, kind: str | None, recipe: Recipe, space: TextSpace) -> Concept:
    """A concept of one of the demo's words.

    Args:
        name: Free text with one word of the vocabulary, such as ``a star`` or ``red``.
        kind: Its kind, if the user says one.
        recipe: Which prompts and numbers.
        space: How near words lie to the model's text encoder.

    Raises:
        UserError: If it has none of the words or several, or is of another kind.
    """
    said = [word for word in (*SHAPES, *COLOURS, *STYLES) if word in content_words(name)]
    if len(said) != 1:
        raise UserError(
            f"The demo model's tokenizer has {'no' if not said else 'several'} words for {name!r}: required is one of "
            f"its shapes ({', '.join(SHAPES)}), colours ({', '.join(COLOURS)}) or styles ({', '.join(STYLES)}); any "
            "others go with --forget_prompt and --anchor_prompt."
        )
    [word] = said
    right = "object" if word in SHAPES else "colour" if word in COLOURS else "style"
    if kind and kind != right:
        raise UserError(f"--kind {kind} does not go with {name!r}, which is of the kind {right} to the demo model.")
    if right == "style":
        return shapes.style(word, recipe)
    others = nearest_first(word, SHAPES if right == "object" else COLOURS, space)
    made = shapes.swapped(word, others[0], recipe) if right == "object" else _colour(word, others, recipe)
    group = "shape" if right == "object" else "colour"
    asked = {
        other: describe(other) if right == "object" else describe(SHAPES[row % len(SHAPES)], other)
        for row, other in enumerate(others)
    }
    trained = {*made.retain_prompts}
    return dataclasses.replace(
        made,
        name=name,
        neighbours=tuple(
            EvaluationPrompt(prompt, f"{group}:{other}", trained_on=prompt in trained)
            for other, prompt in asked.items()
        ),
        told=(
            ("kind", f"{right}, {'as --kind says' if kind else f'as {word!r} is a {group} of the vocabulary'}"),
            ("becomes", f"{others[0]} (the nearest by the model's text encoder)"),
            ("beside", f"{', '.join(others)} (the nearest first)"),
        ),
    )


def nearest_first(word: str, group: Iterable[str], space: TextSpace) -> tuple[str, ...]:
    """The other words of a group that the tokenizer knows, by their nearness to one of them."""
    others = tuple(other for other in group if other != word)
    near = space.similarities(word, others)
    return tuple(sorted(others, key=lambda other: -near.get(other, -1.0)))


def kept_words(forget: tuple[str, ...], anchors: tuple[str, ...]) -> tuple[str, ...]:
    """What free prompts of the user's retain where the user names nothing: all combinations without their words.

    Args:
        forget: The forget prompts.
        anchors: Their anchors, whose words stay.
    """
    lost = content_words(" ".join(forget)) - content_words(" ".join(anchors))
    ways = [
        (shape, way)
        for shape in SHAPES
        if shape not in lost
        for way in shapes.variety(shape, 32, plain=11)
        if way.colour not in lost and way.background not in lost
    ]
    return tuple(prompt for shape, way in ways if (prompt := describe(shape, *way)) not in forget)


def _colour(name: str, others: tuple[str, ...], recipe: Recipe) -> Concept:
    """Forget a colour: every shape that has it, or stands before it, takes the nearest other colour.

    Retained are all shapes in the other colours and without one.
    """
    forget, anchors = [describe(SHAPES[0], name)], [describe(SHAPES[0], others[0])]
    retain = [describe(shape, other) for shape in SHAPES for other in others]
    if recipe == "frozen_teacher":
        pairs: dict[str, str] = {}
        for shape in SHAPES:
            for way in _ways_in(name, shape, others):
                nearest = next(other for other in others if other not in (way.colour, way.background))
                other_way = way._replace(
                    colour=nearest if way.colour == name else way.colour,
                    background=nearest if way.background == name else way.background,
                )
                pairs[describe(shape, *way)] = describe(shape, *other_way)
        rows = _in_turn(list(pairs.items()))
        forget, anchors = [pair[0] for pair in rows], [pair[1] for pair in rows]
        retain = _in_turn([prompt for shape in SHAPES for prompt in _kept_of(shape, name, others)])
    return Concept(
        name=name,
        forget_prompts=tuple(forget),
        anchor_prompts=tuple(anchors),
        retain_prompts=tuple(retain),
        forget_evaluation=tuple(EvaluationPrompt(f"a {name} {shape}", trained_on=False) for shape in SHAPES),
        retain_evaluation=tuple(
            EvaluationPrompt(
                f"a {other} {shape}", f"colour:{other}", trained_on=False, expected_across=f"shape:{shape}"
            )
            for row, shape in enumerate(SHAPES)
            for other in (others[row % len(others)],)
        ),
        target_labels=frozenset({f"colour:{name}"}),
        detector=DEMO,
        numbers=shapes.STYLE[recipe],
        kind="colour",
    )


def _ways_in(name: str, shape: str, others: tuple[str, ...]) -> list[shapes.Way]:
    """Ways to ask for a shape in a colour, and now and then before it."""
    rng = random.Random(name + shape)
    ways = [shapes.Way(name, None, opening) for opening in shapes.TRAINED_PHRASES]
    while len(ways) < _FORGOTTEN:
        opening = rng.choice(shapes.TRAINED_PHRASES)
        if len(ways) % 3 == 2:
            ways.append(shapes.Way(rng.choice([None, *others]), name, opening))
        else:
            ways.append(shapes.Way(name, rng.choice([None, *others]), opening))
    return ways


def _kept_of(shape: str, name: str, others: tuple[str, ...]) -> list[str]:
    """Retained prompts of a shape: its other colours and no colour, on any background but the forgotten one."""
    rng = random.Random(shape + name)
    colours = [other for other in others for _ in range(_PER_COLOUR)]
    found = [describe(shape)]
    for colour in [*colours, *[None] * (_LEFT_OPEN - 1)]:
        background = rng.choice([one for one in others if one != colour]) if rng.random() < 0.5 else None
        found.append(describe(shape, colour, background, rng.choice(shapes.TRAINED_PHRASES)))
    return found


def _in_turn(rows: list) -> list:  # type: ignore[type-arg]
    """Rows that lie shape by shape, one of each shape after the other."""
    each = -(-len(rows) // len(SHAPES))
    return [rows[start] for offset in range(each) for start in range(offset, len(rows), each)]
