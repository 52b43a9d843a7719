"""One step of fine-tuning: this package's against the sequence of the official code, on the same random weights."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from benchmark_memory import Figures, settings_of
from own_process import alone
from step_references import StepSizes, official, optimizers, random_model, seconds_of, shape_of, variants

from salun_diffusers.accelerator import engine
from salun_diffusers.diffusion.rehearsal import QuietRun, blank_data, rehearsed_training
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.packed_bits import bytes_for
from salun_diffusers.masks.selected_weights import SelectedWeights

WAYS = {
    "paper, fp32": "--recipe paper --mixed_precision no",
    "paper, bf16": "--recipe paper --mixed_precision bf16",
    "default, fp32": "--recipe frozen_teacher --mixed_precision no",
    "default, bf16": "--recipe frozen_teacher --mixed_precision bf16",
}
"""What is measured of ours: its name, and flags of `salun erase`."""


def step(sizes: StepSizes) -> tuple[Figures, list[str]]:
    """Both ways on the same weights, and what makes ours faster or slower.

    On a CPU each is measured in a process of its own, as what one leaves in the allocator's hands another could lack.
    """
    call = alone if sizes.device.type == "cpu" else _here
    weights = sum(size.numel() for size in shape_of(sizes).denoiser_shapes().values())
    figures: Figures = {"sizes": {**dataclasses.asdict(sizes), "device": str(sizes.device), "weights": weights}}
    figures["official"] = call(official, sizes)
    figures["ours"] = {name: call(ours, sizes, flags) for name, flags in WAYS.items()}
    figures["variants"] = call(variants, sizes)
    figures["optimizer"] = call(optimizers, sizes)
    for entry in figures["ours"].values():
        entry["times_faster"] = figures["official"]["seconds"] / entry["seconds"]
    return figures, told(figures)


def _here(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function in this process, and give its memory back."""
    try:
        return function(*arguments)
    finally:
        torch.cuda.empty_cache()


def told(figures: Figures) -> list[str]:
    """The figures in lines."""
    found = figures["official"]
    lines = [f"official sequence, fp32       {found['seconds']:8.3f} s"]
    for name, entry in figures["ours"].items():
        lines.append(
            f"ours, {name:22}  {entry['seconds']:8.3f} s  {entry['times_faster']:5.2f} times as fast; mask, gather, "
            f"scatter and optimizer {entry['mask_share']:.1%}"
        )
    lines += [f"{name:30}{entry['seconds']:8.3f} s forward and backward" for name, entry in figures["variants"].items()]
    lines += [f"Adam, {name:24}{entry['seconds']:8.3f} s" for name, entry in figures["optimizer"].items()]
    return lines


def half_at_random(shapes: Mapping[str, torch.Size]) -> SaliencyMask:
    """A mask that selects every weight with probability 1/2: as scattered as a real one, and made in a second."""
    generator = torch.Generator().manual_seed(0)
    packed = {}
    for name, shape in shapes.items():
        bits = torch.randint(256, (bytes_for(shape.numel()),), generator=generator, dtype=torch.uint8)
        if shape.numel() % 8:
            bits[-1] &= (1 << shape.numel() % 8) - 1
        packed[name] = bits
    return SaliencyMask(packed, shapes, {"kind": "random", "ratio": 0.5})


def ours(sizes: StepSizes, flags: str) -> Figures:
    """Median seconds of a step of this package, with its share of the base's answers, and the mask's part of it."""
    settings, precision = _settings(sizes, flags)
    shape, family = random_model(sizes)
    mask = half_at_random(shape.denoiser_shapes())
    with engine(mixed_precision=precision, gradient_accumulation_steps=1, report_to=None) as accelerator:
        data = blank_data(settings, shape.latent_shape, shape.conditions(1, sizes.device))
        run = QuietRun.of(accelerator)
        with (
            _timed_mask(sizes.device) as spent,
            rehearsed_training(run, family, mask, data, settings) as (take, stepper),
        ):
            stepper.step = spent.adding(stepper.step)  # type: ignore[method-assign]
            take()
            seconds, masked = [], []
            for _ in range(sizes.repeats):
                spent.taken()
                seconds.append(seconds_of(take, sizes.device))
                masked.append(spent.taken())
        median = statistics.median(seconds)
        answers = 0.0
        if settings.recipe == "frozen_teacher":
            rows, autocast = 2 * sizes.batch, accelerator.autocast
            noised = torch.randn(rows, *shape.latent_shape, device=sizes.device)
            conditions, timesteps = shape.conditions(rows, sizes.device), torch.ones(rows, device=sizes.device)

            @torch.no_grad()
            def answer() -> None:
                with autocast():
                    family.predict(family.denoiser, noised, timesteps, conditions)

            answer()
            answers = statistics.median(seconds_of(answer, sizes.device) for _ in range(sizes.repeats))
    return {
        "seconds": median + answers,
        "of_which_answers": answers,
        "mask_seconds": statistics.median(masked),
        "mask_share": statistics.median(masked) / (median + answers),
        "all_seconds": seconds,
    }


def _settings(sizes: StepSizes, flags: str) -> tuple[Settings, Any]:
    return settings_of(f"{flags} --train_batch_size {sizes.batch} --mask_ratio 0.5")


class _Spent:
    """Seconds that some functions take: a CPU's by the clock, a GPU's by its own events, which nobody waits for."""

    def __init__(self, device: torch.device) -> None:
        self._on_a_gpu = device.type == "cuda"
        self._pairs: list[tuple[Any, Any]] = []

    def _now(self) -> Any:
        if not self._on_a_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def taken(self) -> float:
        """The seconds since this was asked last."""
        if self._on_a_gpu:
            torch.cuda.synchronize()
            total = sum(begin.elapsed_time(end) for begin, end in self._pairs) / 1000
        else:
            total = sum(end - begin for begin, end in self._pairs)
        self._pairs.clear()
        return float(total)

    def adding(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose time counts."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                self._pairs.append((begin, self._now()))

        return timed


@contextmanager
def _timed_mask(device: torch.device) -> Iterator[_Spent]:
    """Within the block, what gathers and scatters is timed."""
    spent = _Spent(device)
    with (
        mock.patch.object(SelectedWeights, "_gather", spent.adding(SelectedWeights._gather)),
        mock.patch.object(SelectedWeights, "scatter", spent.adding(SelectedWeights.scatter)),
    ):
        yield spent
