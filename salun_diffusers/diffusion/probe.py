"""A probe before the work: does it fit, and how long will it take? Nothing of the run is touched by it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from salun_diffusers.accelerator import sharding_plugin
from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.fitting import fitting
from salun_diffusers.diffusion.foreseen import at_most
from salun_diffusers.diffusion.model_shape import ModelShape
from salun_diffusers.diffusion.out_of_memory import saving_flags
from salun_diffusers.diffusion.quick_peaks import QuickPeaks
from salun_diffusers.diffusion.rehearsal import (
    QuietRun,
    blank_data,
    mask_of_size,
    rehearse_saliency,
    rehearsed_rows,
    rehearsed_training,
)
from salun_diffusers.diffusion.request import Request
from salun_diffusers.diffusion.row_forwards import sampling_calls
from salun_diffusers.diffusion.stage_peaks import Precision
from salun_diffusers.errors import UserError, is_out_of_memory

T = TypeVar("T")
SMALL = 50_000_000
"""Weights of a denoiser below which a probe is not worth its time: such a model fits anywhere."""


@dataclass(frozen=True)
class Probed:
    """What a probe measured.

    Args:
        row_seconds: One row through the denoiser, forward, as latents are drawn.
        gradient_row_seconds: One row forward and backward, with its part of the optimizer step.
        scheduler: Class of the scheduler that draws.
        peaks: The most bytes of the device each stage took, by name; empty on a CPU, which does not count them.
    """

    row_seconds: float
    gradient_row_seconds: float
    scheduler: str
    peaks: dict[str, int]


def probe_is_wanted(request: Request, accelerator: Accelerator, weights: int) -> bool:
    """Whether a run begins with a probe: as `--probe` says, and by itself on a GPU unless the model is small.

    A network that FSDP2 will share out is not there yet, so that nothing can be said of it.

    Args:
        request: Holds the flag.
        accelerator: Of the run.
        weights: Of the denoiser.
    """
    wanted = request.config.probe
    by_itself = accelerator.device.type != "cpu" and weights >= SMALL
    return sharding_plugin(accelerator) is None and (wanted == "on" or (wanted == "auto" and by_itself))


def probe(accelerator: Accelerator, family: Family, request: Request) -> Probed:
    """Draw, take a micro-batch or two of the saliency pass and a step of training, at the run's sizes.

    Weights and random numbers are afterwards what they were, bit for bit; the optimizer is thrown away.

    Args:
        accelerator: Of the run.
        family: Its base model, as it was loaded.
        request: Its settings.

    Raises:
        UserError: If memory runs out; the message names the flags with which it would not.
    """
    settings, concept = request.settings, request.concept
    run, peaks = QuietRun.of(accelerator), {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        with _memory_is_told(name, accelerator, request):
            _restart_peak(family.device)
            yield
            peaks.update({name: peak} if (peak := _peak(family.device)) else {})

    devices = [family.device] if family.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        with stage("drawing"):
            rows, steps = settings.generation_batch_size, min(2, settings.num_inference_steps)

            def draw() -> Tensor:
                return family.generate(
                    [concept.retain_prompts[0]] * rows, list(range(rows)), num_inference_steps=steps,
                    guidance_scale=settings.guidance_scale,
                )  # fmt: skip

            latents, seconds = _timed(draw, family.device)
            family.decode(latents)
        guided = 2 if settings.guidance_scale > 1 else 1
        scheduler = type(family.pipe.scheduler).__name__  # type: ignore[attr-defined]
        row_seconds = seconds / (rows * sampling_calls(scheduler, steps) * guided)
        data = blank_data(settings, tuple(latents.shape[1:]), family.encode([concept.forget_prompts[0]]))
        if settings.gradient_checkpointing:
            family.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        if settings.scored:
            with stage("saliency"):
                rehearse_saliency(run, family, data, settings)
        shapes = {name: tensor.shape for name, tensor in family.denoiser.named_parameters()}
        with (
            stage("fine-tuning"),
            rehearsed_training(
                run, family, mask_of_size(shapes, at_most(settings, concept.groups), family.attention), data, settings
            ) as (
                step,
                _,
            ),
        ):
            _, step_seconds = _timed(step, family.device)
    return Probed(row_seconds, step_seconds / rehearsed_rows(run, settings), scheduler, peaks)


def told(probed: Probed, device: torch.device) -> str:
    """The probe's result for people, in one line."""
    return f"probe: {', '.join(f'{name} takes {peak / 1e9:.1f} GB' for name, peak in probed.peaks.items())}" + (
        f" of the {_total(device) / 1e9:.1f} of this device." if probed.peaks else "the stages fit."
    )


@contextmanager
def _memory_is_told(stage: str, accelerator: Accelerator, request: Request) -> Iterator[None]:
    """Turn exhausted memory into the sentence that names the flags with which the run fits."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        total = _total(accelerator.device)
        flags, fits = tuple(saving_flags(request.config)), False
        if total:
            precision: Precision = accelerator.mixed_precision  # type: ignore[assignment]
            found = fitting(
                QuickPeaks(ModelShape.of(request.base, request.settings.resolution)),
                request.settings,
                precision,
                total / 1e9,
            )
            flags, fits = found.flags or flags, found.fits
        size = f"the {total / 1e9:.1f} GB of this device" if total else "memory"
        advice = f"it fits with {' '.join(flags)}" if fits else f"less is needed with {', '.join(flags)}"
        raise UserError(
            f"A first {stage} at the run's sizes does not fit into {size}; {advice}. Nothing was drawn or written."
        ) from error


def _timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """What some work gives, and its seconds; a GPU has done it once before."""
    if device.type != "cpu":
        work()
        torch.accelerator.synchronize()
    started = time.perf_counter()
    made = work()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return made, time.perf_counter() - started


def _restart_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0


def _total(device: torch.device) -> int:
    """Bytes that the device has, or 0 where they are not known."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else 0
