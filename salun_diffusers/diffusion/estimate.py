"""What a run would cost, told before it starts: memory of each stage, passes of the network, and flags that save."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from salun_diffusers.diffusion.baselines import make_objective
from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.model_shape import ModelShape
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.diffusion.stage_peaks import (
    Precision,
    StagePeaks,
    drawing_peaks,
    saliency_peak,
    stage_peaks,
    training_peaks,
)

DRIVER = 1.0
"""GB that a GPU's context, the workspaces of its libraries and gaps between blocks take beside the tensors."""


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


def memory_lines(peaks: StagePeaks) -> list[str]:
    """The peaks for people."""
    drawing, decoding, saliency, training, static = (value / 1e9 for value in dataclasses.astuple(peaks))
    found = f"saliency {saliency:.1f}, " if saliency else ""
    return [
        f"memory    {peaks.most / 1e9 + DRIVER:.1f} GB of a GPU: drawing {drawing:.1f}, decoding {decoding:.1f}, {found}"
        f"fine-tuning {training:.1f} (of which {static:.1f} throughout), and {DRIVER:g} for the driver"
    ]


@dataclass(frozen=True)
class Fit:
    """What makes a run fit into some memory.

    Args:
        flags: Flags to add, the smallest sacrifice first; none where it fits as it is.
        peaks: With these.
        fits: Whether that is enough.
    """

    flags: tuple[str, ...]
    peaks: StagePeaks
    fits: bool


def fitting(shape: ModelShape, settings: Settings, precision: Precision, gigabytes: float) -> Fit:
    """Find flags with which every stage of a run fits, in the order of what they cost.

    bf16 costs digits that autocast can spare; micro-batches, checkpointing and smaller batches with accumulation cost
    time and leave the result; then come moments of 8 bits, and at last a smaller mask.

    Args:
        shape: The model.
        settings: Of the run.
        precision: Of the run.
        gigabytes: Memory of the GPU, in 10⁹ bytes.
    """
    limit = int((gigabytes - DRIVER) * 1e9)
    changes: dict[str, Any] = {}

    def changed(more: dict[str, Any]) -> tuple[Settings, Precision]:
        values = {**changes, **more}
        chosen = values.pop("mixed_precision", precision)
        return dataclasses.replace(settings, **values), chosen

    def shrink(peak: Callable[[ModelShape, Settings, Precision], int], remedies: list[dict[str, Any]]) -> bool:
        found = peak(shape, *changed({}))
        for remedy in remedies:
            if found <= limit:
                break
            smaller = peak(shape, *changed(remedy))
            if smaller < found:  # What saves nothing here is not asked for.
                changes.update(remedy)
                found = smaller
        return found <= limit

    fits = shrink(lambda *plan: training_peaks(*plan)[0], _for_training(settings, precision))
    if settings.mask == "saliency":
        fits &= shrink(saliency_peak, _for_saliency(settings, precision))
    fits &= shrink(lambda *plan: max(drawing_peaks(*plan)), _for_drawing(settings, precision))
    flags = tuple(f"--{name}" if value is True else f"--{name} {value:g}" if not isinstance(value, str)
                  else f"--{name} {value}" for name, value in changes.items())  # fmt: skip
    return Fit(flags, stage_peaks(shape, *changed({})), fits)


def _for_training(settings: Settings, precision: Precision) -> list[dict[str, Any]]:
    """What makes a training step smaller, the smallest sacrifice first."""
    batch, accumulation = settings.train_batch_size, settings.gradient_accumulation_steps
    smaller = [batch // 2**power for power in range(1, batch.bit_length()) if batch % 2**power == 0]
    if batch > 1 and 1 not in smaller:
        smaller.append(1)
    remedies = [*_HALVES[precision], {"gradient_checkpointing": True}]
    remedies += [
        {"train_batch_size": size, "gradient_accumulation_steps": accumulation * batch // size} for size in smaller
    ]
    remedies.append({"use_8bit_adam": True})
    if settings.mask in ("saliency", "magnitude", "random") and settings.mask_ratio > 0.1:
        remedies.append({"mask_ratio": 0.1})
    return remedies


def _for_saliency(settings: Settings, precision: Precision) -> list[dict[str, Any]]:
    """What makes the saliency pass smaller."""
    held = min(settings.saliency_batch_size, settings.saliency_micro_batch_size)
    fewer = [{"saliency_micro_batch_size": size} for size in (4, 1) if size < held]
    return [*_HALVES[precision], *fewer[:-1], {"gradient_checkpointing": True}, *fewer[-1:], {"offload_saliency": True}]


def _for_drawing(settings: Settings, precision: Precision) -> list[dict[str, Any]]:
    """What makes drawing smaller."""
    batch = settings.generation_batch_size
    sizes = [batch // 2**power for power in range(1, batch.bit_length())]
    return [*_HALVES[precision], *({"generation_batch_size": size} for size in sizes)]


_HALVES: dict[Precision, list[dict[str, Any]]] = {"no": [{"mixed_precision": "bf16"}], "fp16": [], "bf16": []}
