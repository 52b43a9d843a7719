"""Presets of the demo model: erase one of its shapes or drawing styles.

Differs from the official code: `paper` is the objective as published with rates, weights, sets and lengths that suit so
small a model.
"""

from __future__ import annotations

import dataclasses
import random
from typing import NamedTuple

from salun_diffusers.demo.vocabulary import COLOURS, SHAPES, STYLE_PHRASES, STYLES, describe
from salun_diffusers.diffusion.concepts import DEMO, Concept, EvaluationPrompt
from salun_diffusers.diffusion.config import Recipe
from salun_diffusers.diffusion.settings import Length, Numbers

# What each shape becomes: a neighbour, so that the swap asks for little.
SHAPE_ANCHORS = {
    "circle": "square", "square": "circle", "triangle": "square", "star": "heart", "heart": "circle",
    "cross": "square", "moon": "circle", "arrow": "triangle", "ring": "circle", "flower": "circle",
}  # fmt: skip
STYLE_ANCHORS = {"filled": "outlined", "outlined": "filled", "striped": "filled"}
TRAINED_PHRASES = ("a photo of", "an outline of", "a striped drawing of")
# Colours and backgrounds that no style is trained with.
_UNSEEN: tuple[tuple[str | None, str], ...] = (
    ("red", "white"),
    ("cyan", "black"),
    (None, "green"),
    ("yellow", "blue"),
)

SHAPE: dict[Recipe, Numbers] = {
    "frozen_teacher": Numbers(
        num_forget_images=96,
        num_anchor_images=96,
        num_retain_images=288,
        num_inference_steps=12,
        guidance_scale=3.0,
        generation_batch_size=48,
        saliency_guidance=7.5,
        saliency_batch_size=32,
        train_batch_size=16,
        length=Length(120, "steps"),
        learning_rate=1.5e-4,
        lr_scheduler="cosine",
        retain_weight=3.0,
        snr_power=0.5,
        empty_prompt_share=0.2,
        num_validation_images=8,
    ),
    "paper": Numbers(
        num_forget_images=100,
        num_anchor_images=0,
        num_retain_images=180,
        num_inference_steps=12,
        guidance_scale=3.0,
        generation_batch_size=48,
        saliency_guidance=7.5,
        saliency_batch_size=32,
        train_batch_size=16,
        length=Length(100, "steps"),
        learning_rate=1e-4,
        lr_scheduler="constant",
        retain_weight=1.0,
        snr_power=0.0,
        empty_prompt_share=0.0,
        num_validation_images=8,
    ),
}
# A style touches every shape: more and larger steps, of half the size (measured: 120 steps of 16 leave an outline of a
# star in three cases of four).
STYLE: dict[Recipe, Numbers] = {
    "frozen_teacher": dataclasses.replace(
        SHAPE["frozen_teacher"], train_batch_size=8, length=Length(240, "steps"), learning_rate=6e-4
    ),
    "paper": SHAPE["paper"],
}


class Way(NamedTuple):
    """How a prompt asks for a shape: its colour, its background (either may be left out) and its first words."""

    colour: str | None
    background: str | None
    opening: str


def variety(seed: str, count: int, plain: int = 1) -> list[Way]:
    """Ways as users combine them; a third leave the colour out, half the background.

    Args:
        seed: Of the combinations.
        count: How many.
        plain: How many of these leave out both: then the model is free, and easily disturbed.
    """
    rng = random.Random(seed)
    ways = [Way(None, None, "a photo of")]
    ways += [Way(None, None, rng.choice(TRAINED_PHRASES)) for _ in range(plain - 1)]
    while len(ways) < count:
        colour = rng.choice([None, *COLOURS]) if rng.random() < 0.8 else None
        background = rng.choice([name for name in COLOURS if name != colour]) if rng.random() < 0.5 else None
        ways.append(Way(colour, background, rng.choice(TRAINED_PHRASES)))
    return ways


def shape(name: str, recipe: Recipe) -> Concept:
    """Forget a shape: its prompts come to mean the neighbouring shape."""
    return swapped(name, SHAPE_ANCHORS[name], recipe)


def swapped(name: str, anchor: str, recipe: Recipe) -> Concept:
    """Forget a shape: its prompts come to mean another one.

    Args:
        name: The shape.
        anchor: What it becomes.
        recipe: Which prompts and numbers.
    """
    others = tuple(other for other in SHAPES if other != name)
    forget: tuple[str, ...] = (describe(name),)
    anchors: tuple[str, ...] = (describe(anchor),)
    retain: tuple[str, ...] = tuple(map(describe, others))
    if recipe == "frozen_teacher":
        ways = variety(name, 48)
        forget = tuple(describe(name, *way) for way in ways)
        anchors = tuple(describe(anchor, *way) for way in ways)
        retain = tuple(describe(other, *way) for other in others for way in variety(other, 32, plain=11))
    return Concept(
        name=name,
        forget_prompts=forget,
        anchor_prompts=anchors,
        retain_prompts=retain,
        forget_evaluation=(
            EvaluationPrompt(describe(name)),
            EvaluationPrompt(f"a red {name}", trained_on=False),
            EvaluationPrompt(f"{name} on a green background", trained_on=False),
        ),
        retain_evaluation=tuple(
            EvaluationPrompt(describe(other), f"shape:{other}", expected_across="style:filled") for other in others
        ),
        target_labels=frozenset({f"shape:{name}"}),
        detector=DEMO,
        numbers=SHAPE[recipe],
    )


def style(name: str, recipe: Recipe) -> Concept:
    """Forget a drawing style: its prompts come to mean another style."""
    opening, anchor_opening = STYLE_PHRASES[name][0], STYLE_PHRASES[STYLE_ANCHORS[name]][0]
    kept = tuple(other for other in STYLES if other != name)
    forget = tuple(describe(shape, opening=opening) for shape in SHAPES)
    anchors = tuple(describe(shape, opening=anchor_opening) for shape in SHAPES)
    retain = tuple(describe(shape, opening=STYLE_PHRASES[other][0]) for other in kept for shape in SHAPES)
    if recipe == "frozen_teacher":
        phrases = STYLE_PHRASES[name]
        ways = [way._replace(opening=phrases[row % len(phrases)]) for row, way in enumerate(variety(name, 6))]
        forget = tuple(describe(shape, *way) for shape in SHAPES for way in ways)
        anchors = tuple(describe(shape, *way._replace(opening=anchor_opening)) for shape in SHAPES for way in ways)
        retain = tuple(
            describe(shape, *way._replace(opening=STYLE_PHRASES[other][0]))
            for other in kept
            for shape in SHAPES
            for way in variety(other + shape, 12)
        )
    return Concept(
        name=name,
        forget_prompts=forget,
        anchor_prompts=anchors,
        retain_prompts=retain,
        forget_evaluation=tuple(
            EvaluationPrompt(describe(shape, *way, phrase), trained_on=False)
            for shape, way, phrase in zip(SHAPES[::3], _UNSEEN, STYLE_PHRASES[name] * 4, strict=False)
        ),
        retain_evaluation=tuple(
            EvaluationPrompt(
                describe(shape, opening=STYLE_PHRASES[other][0]), f"style:{other}", expected_across=f"shape:{shape}"
            )
            for other in kept
            for shape in SHAPES[::2]
        ),
        target_labels=frozenset({f"style:{name}"}),
        detector=DEMO,
        numbers=STYLE[recipe],
        kind="style",
    )
