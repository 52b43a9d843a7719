"""Presets of the demo model: erase one of its shapes or drawing styles."""

from __future__ import annotations

import random
from typing import Any

from salun_diffusers.demo.vocabulary import COLOURS, SHAPES, STYLE_PHRASES, STYLES, describe
from salun_diffusers.diffusion.concepts import DEMO, Concept, EvaluationPrompt
from salun_diffusers.diffusion.config import Recipe

# What each shape becomes: a neighbour, so that the swap asks for little.
SHAPE_ANCHORS = {
    "circle": "square", "square": "circle", "triangle": "square", "star": "heart", "heart": "circle",
    "cross": "square", "moon": "circle", "arrow": "triangle", "ring": "circle", "flower": "circle",
}  # fmt: skip
STYLE_ANCHORS = {"filled": "outlined", "outlined": "filled", "striped": "filled"}
_TRAINED_PHRASES = ("a photo of", "an outline of", "a striped drawing of")

_SETTINGS: dict[str, dict[str, Any]] = {
    "frozen_teacher": {
        "num_forget_images": 96, "num_anchor_images": 96, "num_retain_images": 288, "num_inference_steps": 12,
        "guidance_scale": 3.0, "generation_batch_size": 48, "saliency_batch_size": 32, "train_batch_size": 16,
        "max_train_steps": 120, "learning_rate": 1.5e-4, "retain_weight": 3.0, "lr_scheduler": "cosine",
        "empty_prompt_share": 0.2, "snr_power": 0.5, "num_validation_images": 8,
    },
    "paper": {
        "num_forget_images": 100, "num_anchor_images": 0, "num_retain_images": 180, "num_inference_steps": 12,
        "guidance_scale": 3.0, "generation_batch_size": 48, "saliency_batch_size": 32, "train_batch_size": 16,
        "max_train_steps": 100, "learning_rate": 1e-4, "retain_weight": 1.0, "lr_scheduler": "constant",
        "empty_prompt_share": 0.0, "snr_power": 0.0, "num_validation_images": 8,
    },
}  # fmt: skip
# A style touches every shape: more and larger steps, of half the size (measured: 120 steps of 16 leave an outline of a
# star in three cases of four).
_STYLE_SETTINGS: dict[str, dict[str, Any]] = {
    "frozen_teacher": _SETTINGS["frozen_teacher"]
    | {"train_batch_size": 8, "max_train_steps": 240, "learning_rate": 6e-4},
    "paper": _SETTINGS["paper"],
}


def _variety(seed: str, count: int, plain: int = 1) -> list[tuple[str | None, str | None, str]]:
    """(colour, background, opening) as users combine them; a third leave the colour out, half the background.

    Args:
        seed: Of the combinations.
        count: How many.
        plain: How many of these leave out both: then the model is free, and easily disturbed.
    """
    rng = random.Random(seed)
    combinations: list[tuple[str | None, str | None, str]] = [(None, None, "a photo of")]
    combinations += [(None, None, rng.choice(_TRAINED_PHRASES)) for _ in range(plain - 1)]
    while len(combinations) < count:
        colour = rng.choice([None, *COLOURS]) if rng.random() < 0.8 else None
        background = rng.choice([name for name in COLOURS if name != colour]) if rng.random() < 0.5 else None
        combinations.append((colour, background, rng.choice(_TRAINED_PHRASES)))
    return combinations


def shape(name: str, recipe: Recipe) -> Concept:
    """Forget a shape: its prompts come to mean the neighbouring shape."""
    anchor = SHAPE_ANCHORS[name]
    others = tuple(other for other in SHAPES if other != name)
    forget: tuple[str, ...] = (describe(name),)
    anchors: tuple[str, ...] = (describe(anchor),)
    retain: tuple[str, ...] = tuple(map(describe, others))
    if recipe == "frozen_teacher":
        ways = _variety(name, 48)
        forget = tuple(describe(name, *way) for way in ways)
        anchors = tuple(describe(anchor, *way) for way in ways)
        retain = tuple(describe(other, *way) for other in others for way in _variety(other, 32, plain=11))
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
        settings=_SETTINGS[recipe],
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
        ways = [(*way[:2], phrases[row % len(phrases)]) for row, way in enumerate(_variety(name, 6))]
        forget = tuple(describe(shape, *way) for shape in SHAPES for way in ways)
        anchors = tuple(describe(shape, *way[:2], anchor_opening) for shape in SHAPES for way in ways)
        retain = tuple(
            describe(shape, *way, STYLE_PHRASES[other][0])
            for other in kept
            for shape in SHAPES
            for way in [way[:2] for way in _variety(other + shape, 12)]
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
        settings=_STYLE_SETTINGS[recipe],
    )


_UNSEEN = (("red", "white"), ("cyan", "black"), (None, "green"), ("yellow", "blue"))
