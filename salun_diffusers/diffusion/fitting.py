"""Flags with which a run fits into the memory of a GPU, the smallest sacrifice first."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from salun_diffusers.diffusion.foreseen import MADE_MASKS
from salun_diffusers.diffusion.global_batch import GlobalBatch
from salun_diffusers.diffusion.quick_peaks import QuickPeaks
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.diffusion.stage_peaks import Precision, StagePeaks

DRIVER = 1.0
"""GB that a GPU's context, the workspaces of its libraries and gaps between blocks take beside the tensors."""


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


def fitting(model: QuickPeaks, settings: Settings, precision: Precision, gigabytes: float) -> Fit:
    """Find flags with which every stage of a run fits, in the order of what they cost.

    bf16 costs digits that autocast can spare; micro-batches, checkpointing and smaller batches with accumulation cost
    time and leave the result; then come moments of 8 bits, and at last a smaller mask.

    Args:
        model: Estimates.
        settings: Of the run.
        precision: Of the run.
        gigabytes: Memory of the GPU, in 10⁹ bytes.
    """
    limit = int((gigabytes - DRIVER) * 1e9)
    chosen: list[dict[str, Any]] = []

    def shrink(peak: Callable[[Settings, Precision], int], remedies: list[dict[str, Any]]) -> bool:
        mine: list[dict[str, Any]] = []

        def peak_with(some: list[dict[str, Any]]) -> int:
            return peak(*_changed(settings, precision, [*chosen, *some]))

        for remedy in remedies:
            if peak_with(mine) <= limit:
                break
            if peak_with([*mine, remedy]) < peak_with(mine):  # What saves nothing here is not asked for.
                mine.append(remedy)
        fits = peak_with(mine) <= limit
        for remedy in mine[-2::-1]:  # What is no longer needed, now that there is more.
            others = [other for other in mine if other is not remedy]
            if fits and peak_with(others) <= limit:
                mine = others
        chosen.extend(mine)
        return fits

    fits = shrink(lambda *plan: model.training(*plan)[0], _for_training(settings, precision))
    if settings.scored:
        fits &= shrink(model.saliency, _for_saliency(settings, precision))
    fits &= shrink(lambda *plan: max(model.drawing(*plan)), _for_drawing(settings, precision))
    named = {name: value for remedy in chosen for name, value in remedy.items()}
    flags = tuple(f"--{name}" if value is True else f"--{name} {value}" for name, value in named.items())
    return Fit(flags, model.peaks(*_changed(settings, precision, chosen)), fits)


def _changed(settings: Settings, precision: Precision, remedies: list[dict[str, Any]]) -> tuple[Settings, Precision]:
    values = {name: value for remedy in remedies for name, value in remedy.items()}
    precision = values.pop("mixed_precision", precision)
    return dataclasses.replace(settings, **values), precision


def _for_training(settings: Settings, precision: Precision) -> list[dict[str, Any]]:
    """What makes a training step smaller, the smallest sacrifice first."""
    batch, accumulation = settings.train_batch_size, settings.gradient_accumulation_steps
    each = GlobalBatch.of(settings, processes=1).largest
    smaller = [size for size in range(each - 1, 0, -1) if each % size == 0]
    remedies = [*_HALVES[precision], {"gradient_checkpointing": True}]
    for size in smaller:
        more: dict[str, Any] = {"gradient_accumulation_steps": accumulation * each // size}
        # A preset's batch is that of a step, however it is cut; the flag's is that of a cut.
        remedies.append(more if settings.batch_of == "step" else {"train_batch_size": batch * size // each, **more})
    remedies.append({"use_8bit_adam": True})
    masked = settings.adapter == "none" and settings.mask in MADE_MASKS and settings.mask != "full"
    if masked and not settings.scales_updates and settings.mask_ratio > 0.1:
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
