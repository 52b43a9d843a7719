"""The memory of a run on real models: an account on imagined tensors, checked against an allocator."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable
from typing import Any

import torch
from own_process import side_by_side
from real_shapes import sd1, sdxl

from salun_diffusers.accelerator import engine
from salun_diffusers.arguments import parse
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.families.known import family_of
from salun_diffusers.diffusion.model_shape import ModelShape
from salun_diffusers.diffusion.presets.known import find_concept
from salun_diffusers.diffusion.quick_peaks import QuickPeaks
from salun_diffusers.diffusion.rehearsal import (
    QuietRun,
    blank_data,
    mask_of_size,
    rehearse_saliency,
    rehearsed_training,
)
from salun_diffusers.diffusion.settings import Settings, resolve
from salun_diffusers.diffusion.stage_peaks import Precision, stage_peaks
from salun_diffusers.errors import is_out_of_memory
from salun_diffusers.files.pipeline_folder import EMBEDDED

Figures = dict[str, Any]

SHAPES: dict[str, Callable[[], ModelShape]] = {
    "sd1": sd1,
    "sdxl": sdxl,
    "small": lambda: ModelShape.of(EMBEDDED["demo"]),
}
_BF16 = "--mixed_precision bf16 --gradient_checkpointing --generation_batch_size 4 "
BARS = (
    ("fp32, no flag, ratio 0.5", "sd1", "--mixed_precision no", None),
    ("bf16, ratio 0.5", "sd1", _BF16, 16.0),
    ("8-bit Adam, ratio 0.1", "sd1", _BF16 + "--mask_ratio 0.1 --use_8bit_adam --saliency_micro_batch_size 4", 10.0),
    (
        "micro-batches of 1, offload", "sd1",
        _BF16 + "--mask_ratio 0.1 --use_8bit_adam --saliency_micro_batch_size 1 --offload_saliency "
        "--train_batch_size 1 --gradient_accumulation_steps 8",
        8.0,
    ),
    (
        "XL, 8-bit Adam, ratio 0.1", "sdxl",
        _BF16 + "--mask_ratio 0.1 --use_8bit_adam --saliency_micro_batch_size 1 "
        "--train_batch_size 4 --gradient_accumulation_steps 2",
        24.0,
    ),
)  # fmt: skip
"""Name, model, flags of `salun erase`, and the gigabytes that it may take; batch 8 + 8, saliency batch 8."""
STATIC_BAR = 10.5


def settings_of(flags: str) -> tuple[Settings, Precision]:
    """What a run of Stable Diffusion does with some flags of `salun erase`, and in which precision."""
    batches = "" if "--train_batch_size" in flags else " --train_batch_size 8"
    config = parse(EraseConfig, ["--concept", "nudity", *shlex.split(flags + batches + " --saliency_batch_size 8")])
    precision: Precision = config.mixed_precision or "no"
    return resolve(config, find_concept(config).numbers), precision


def memory(model: str | None, flags: str) -> tuple[Figures, list[str]]:
    """Account for the bars, or for one model and its flags.

    Args:
        model: A name of `SHAPES`, or None for the bars.
        flags: Of `salun erase`.
    """
    rows = BARS if model is None else ((flags or "no flag", model, flags, None),)
    accounts = side_by_side(scenario, rows)
    for found in accounts:
        found["cuda"] = on_the_gpu(found["model"], found["flags"])
    figures: Figures = {"scenarios": accounts, "validation": validation()}
    lines = []
    for found in figures["scenarios"]:
        stages = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in found["account"].items())
        bar = f" (at most {found['bar_gb']:g})" if found["bar_gb"] else ""
        lines.append(f"{found['name']:28}{found['most_gb']:6.2f} GB{bar}: {stages}")
    for name, found in figures["validation"].items():
        lines.append(f"check, {name}: account {found['account']:,}, allocator {found['allocator']:,} bytes")
    return figures, lines


def scenario(name: str, model: str, flags: str, bar: float | None) -> Figures:
    """One account, and the quick estimate of the same."""
    settings, precision = settings_of(flags)
    shape = SHAPES[model]()
    account = stage_peaks(shape, settings, precision)
    quick = QuickPeaks(shape).peaks(settings, precision)
    return {
        "name": name,
        "model": model,
        "weights": sum(size.numel() for size in shape.denoiser_shapes().values()),
        "flags": flags,
        "bar_gb": bar,
        "most_gb": round(account.most / 1e9, 2),
        "account": dataclasses.asdict(account),
        "estimate": dataclasses.asdict(quick),
    }


def on_the_gpu(model: str, flags: str) -> Figures | str | None:
    """What CUDA's own counter says, that it does not fit, or None where there is no such device."""
    if not torch.cuda.is_available():
        return None
    try:
        return measured(SHAPES[model](), *settings_of(flags))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return "does not fit"
    finally:
        torch.cuda.empty_cache()


def measured(shape: ModelShape, settings: Settings, precision: Precision) -> Figures:
    """The peaks of the same stages by CUDA's own counter, with random weights."""
    device = torch.device("cuda")
    found: Figures = {}
    with engine(
        mixed_precision=precision, gradient_accumulation_steps=settings.gradient_accumulation_steps, report_to=None
    ) as accelerator:
        run, family = QuietRun.of(accelerator), shape.family(torch.bfloat16, device)
        family.release_encoders()
        if settings.gradient_checkpointing:
            family.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        data = blank_data(settings, shape.latent_shape, shape.conditions(1, device))
        torch.cuda.reset_peak_memory_stats()
        rehearse_saliency(run, family, data, settings)
        found["saliency"] = torch.cuda.max_memory_allocated()
        mask = mask_of_size(shape.denoiser_shapes(), settings, shape.attention)
        with rehearsed_training(run, family, mask, data, settings) as (step, _):
            step()
            torch.cuda.reset_peak_memory_stats()
            step()
            found["training"] = torch.cuda.max_memory_allocated()
    return found


def validation() -> Figures:
    """The account of the embedded model in fp32 and what the CPU's allocator handed out while the same code ran.

    The run on the CPU keeps indices instead of bits and a copy of the leaves, which the account is told.
    """
    settings, _ = settings_of("--mixed_precision no --recipe frozen_teacher")
    shape = SHAPES["small"]()
    account = stage_peaks(shape, settings, "no")
    weights = sum(size.numel() for size in shape.denoiser_shapes().values())
    mask = mask_of_size(shape.denoiser_shapes(), settings, shape.attention)
    selected = mask.number_selected
    bits = sum(packed.numel() for packed in mask.packed.values())
    os.environ["ACCELERATE_USE_CPU"] = "true"
    with engine(mixed_precision="no", gradient_accumulation_steps=1, report_to=None) as accelerator:
        run, device = QuietRun.of(accelerator), torch.device("cpu")
        family = family_of(shape.pipeline)(EMBEDDED["demo"], device=device)
        family.release_encoders()
        data = blank_data(settings, shape.latent_shape, shape.conditions(1, device))
        saliency = allocated(lambda: rehearse_saliency(run, family, data, settings))

        def train() -> None:
            with rehearsed_training(run, family, mask, data, settings) as (step, _):
                step()
                step()

        training = allocated(train)
    return {
        "saliency": {"account": account.saliency, "allocator": 4 * weights + saliency},
        "training": {"account": account.training - bits + 8 * selected, "allocator": 4 * weights + training},
    }


def allocated(work: Callable[[], None]) -> int:
    """The most bytes that the CPU's allocator had handed out at once while some work was done."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    live = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def bars(figures: Figures) -> list[str]:
    """What does not meet its bar; nothing where all do."""
    missed = [row["name"] for row in figures["scenarios"] if row["bar_gb"] and row["most_gb"] > row["bar_gb"]]
    static = [row for row in figures["scenarios"] if row["name"] == "bf16, ratio 0.5"]
    return missed + ["static part" for row in static if row["account"]["static"] > STATIC_BAR * 1e9]
