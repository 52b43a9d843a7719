"""What a run would cost, for `--dry_run`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import cast

from salun_diffusers.diffusion.baselines import make_objective
from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.diffusion.stage_peaks import Precision


@dataclass(frozen=True)
class Passes:
    """Rows that go through the denoiser in a run of one process.

    Args:
        drawing: Forward, for latents and pictures; with guidance two for each.
        targets: Forward, for the base's answers.
        saliency: Forward and backward.
        training: Forward and backward.
        steps: Optimizer steps.
    """

    drawing: int
    targets: int
    saliency: int
    training: int
    steps: int

    @classmethod
    def of(cls, concept: Concept, settings: Settings) -> Passes:
        """Count them."""
        guided = 2 if settings.guidance_scale > 1 else 1
        pictures = len(concept.forget_evaluation) + len(concept.retain_evaluation)
        drawn = sum(count for *_, count in concept.sets(settings)) + 2 * pictures * settings.num_validation_images
        objective = make_objective(settings)
        rows = len(objective.halves) * settings.train_batch_size * settings.gradient_accumulation_steps
        steps = settings.length.steps(
            settings.num_forget_images + settings.num_anchor_images,
            settings.train_batch_size * settings.gradient_accumulation_steps,
        )
        return cls(
            drawing=drawn * settings.num_inference_steps * guided,
            targets=rows * steps if objective.teacher == "base" else 0,
            saliency=2 * settings.num_forget_images if settings.mask == "saliency" else 0,
            training=rows * steps,
            steps=steps,
        )


def precision_of(config: EraseConfig) -> Precision:
    """The precision of a run: the user's, or what `accelerate launch` was told."""
    told = config.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return cast(Precision, told) if told in ("fp16", "bf16") else "no"
