"""Concepts of class-conditional models: to forget a class is to relabel it as another one.

Differs from the official code: for the embedded digits `paper` is the objective as published with a weight, sets and a
length that suit so small a model; CIFAR-10 has the official ones.

Differs from the official code: the sets are drawn by the model, 100 steps of its scheduler, unless `--train_data` gives
real pictures as there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from salun_diffusers.diffusion.concept_rows import name_of
from salun_diffusers.diffusion.concepts import Concept, EvaluationPrompt
from salun_diffusers.diffusion.config import EraseConfig, Recipe
from salun_diffusers.diffusion.settings import Length, Numbers
from salun_diffusers.errors import UserError

DIGITS = "digits"
# The official CIFAR-10 values (Unlearn-Saliency@a6e89fd, DDPM/configs/cifar10_saliency_unlearn.yml and DDPM/README.md).
# Its α = 1e-3 weighs a sum over 3 · 32 · 32 pixels; our mean over pixels needs 1e-3 · 3072 = 3.072.
CIFAR10 = Numbers(
    num_forget_images=5000,
    num_anchor_images=0,
    num_retain_images=45000,
    num_inference_steps=100,
    guidance_scale=3.0,
    generation_batch_size=128,
    saliency_guidance=2.0,
    saliency_batch_size=128,
    saliency_max_grad_norm=1.0,
    train_batch_size=128,
    length=Length(1000, "steps"),
    learning_rate=1e-4,
    lr_scheduler="constant",
    retain_weight=3.072,
    snr_power=0.0,
    empty_prompt_share=0.1,
    max_grad_norm=1.0,
    num_validation_images=8,
)
_DIGITS: dict[Recipe, Numbers] = {
    "frozen_teacher": Numbers(
        num_forget_images=96,
        num_anchor_images=96,
        num_retain_images=288,
        num_inference_steps=20,
        guidance_scale=2.0,
        generation_batch_size=16,
        saliency_guidance=2.0,
        saliency_batch_size=64,
        train_batch_size=16,
        length=Length(200, "steps"),
        learning_rate=1.5e-4,
        lr_scheduler="cosine",
        retain_weight=3.0,
        snr_power=0.0,
        empty_prompt_share=0.2,
        num_validation_images=8,
    ),
    "paper": dataclasses.replace(
        CIFAR10,
        num_forget_images=128,
        num_retain_images=288,
        num_inference_steps=20,
        guidance_scale=2.0,
        generation_batch_size=16,
        saliency_batch_size=64,
        train_batch_size=16,
        length=Length(100, "steps"),
        retain_weight=1.0,
    ),
}


def class_concept(config: EraseConfig, index: Mapping[str, Any], network: Mapping[str, Any]) -> Concept:
    """Forget one class: by default it becomes the next one, c′ = (c + 1) mod K, as in the official code.

    Args:
        config: Its `concept`, and `anchor_prompt` if given, are names or ids of classes.
        index: The pipeline's model_index.json.
        network: The denoiser's config.json.

    Raises:
        UserError: If a class is unknown, is its own anchor, or there is no other class.
    """
    names = {int(number): str(name) for number, name in dict(index.get("id2label") or {}).items()}
    if not names:
        raise UserError("The model's classes are not known: its model_index.json must hold id2label.")
    if config.forget_prompt or config.retain_prompts or config.kind:
        raise UserError(
            "A class-conditional model knows classes, not prompts or kinds: --concept names the class to forget, "
            "--anchor_prompt the class it becomes; all others are retained."
        )
    forget = _class_of(name_of(config), names, "--concept")
    if len(names) == 1:
        raise UserError(f"The model has one class, {names[forget]!r}: relabelling needs another one.")
    if len(config.anchor_prompt) > 1:
        raise UserError(f"--anchor_prompt takes one class here, got {len(config.anchor_prompt)}.")
    anchor = (forget + 1) % len(names)
    if config.anchor_prompt:
        anchor = _class_of(config.anchor_prompt[0], names, "--anchor_prompt")
    others = tuple(name for number, name in sorted(names.items()) if number != forget)
    numbers, made_for = _numbers_for(names, network, config.recipe)
    judged = config.pretrained_model_name_or_path == DIGITS  # Its detector knows these pictures and no others.
    expected = {name: f"digit:{name}" if judged else "" for name in names.values()}
    return Concept(
        name=names[forget],
        forget_prompts=(names[forget],),
        anchor_prompts=(names[anchor],),
        retain_prompts=others,
        forget_evaluation=(EvaluationPrompt(names[forget]),),
        retain_evaluation=tuple(EvaluationPrompt(name, expected[name]) for name in others),
        target_labels=frozenset({expected[names[forget]]} - {""}),
        detector=DIGITS if judged else "none",
        numbers=numbers,
        numbers_of=made_for,
    )


def _numbers_for(names: Mapping[int, str], network: Mapping[str, Any], recipe: Recipe) -> tuple[Numbers, str]:
    """Settings for a model by its classes and the size of its pictures, and what they were made for, in words.

    Names alone say nothing: a model that was saved without any gets those of the digits.
    """
    size, channels = network.get("sample_size"), network.get("in_channels")
    told = f"{len(names)} classes of {size} x {size} x {channels}"
    if (size, channels) == (32, 1) and set(names.values()) == set("0123456789"):
        return _DIGITS[recipe], f"the embedded digits' ({told})"
    if (len(names), size, channels) == (10, 32, 3):
        return CIFAR10, f"CIFAR-10's of the official code ({told})"
    return CIFAR10, f"CIFAR-10's of the official code, which this model is not ({told})"


def _class_of(text: str, names: Mapping[int, str], flag: str) -> int:
    """The id of a class given by name or, where no class has that name, by id."""
    known = {name.lower(): number for number, name in names.items()}
    wanted = text.strip().lower()
    if wanted in known:
        return known[wanted]
    if wanted.isdecimal() and int(wanted) in names:
        return int(wanted)
    null = wanted.isdecimal() and int(wanted) == len(names)
    raise UserError(
        f"{flag} must be one of the model's classes ({', '.join(names[number] for number in sorted(names))}), or an id "
        f"from 0 to {len(names) - 1}; got {text!r}"
        + (", the null class, which stands for no class at all." if null else ".")
    )
