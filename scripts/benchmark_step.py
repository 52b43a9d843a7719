"""One step of fine-tuning: this package's against the sequence of the official code, on the same random weights.

The official sequence is that of OPTML-Group/Unlearn-Saliency@a6e89fd, SD/train-scripts/nsfw_removal.py, in diffusers'
networks: of a batch of b forget and b retain pictures three VAE encodes and three text encodes, three forward passes
of the U-Net that all build a graph, gradients of all weights times an int64 mask, and Adam on all weights, in fp32. Its
pause of 0.1 s a step is left out. Encodes build no graph here, and one int64 mask serves all tensors of its size or
less, so that both ways fit into the memory of a small machine; both favour the official side.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from benchmark_memory import SHAPES, Figures, settings_of
from real_shapes import sd1
from torch import Tensor, nn

from salun_diffusers.accelerator import engine
from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.model_shape import ModelShape
from salun_diffusers.diffusion.rehearsal import QuietRun, blank_data, rehearsed_training
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.packed_bits import bytes_for
from salun_diffusers.masks.selected_weights import SelectedWeights


@dataclasses.dataclass(frozen=True)
class StepSizes:
    """What is measured.

    Args:
        model: ``sd1``, ``sd1-half`` (half as wide: a quarter of its 16 GB) or another name of `SHAPES`.
        side: Height and width of the latents.
        batch: Forget pictures a step; as many retain pictures go with them.
        repeats: Steps that count, after one that does not.
        device: Where.
    """

    model: str
    side: int
    batch: int
    repeats: int
    device: torch.device


def step(sizes: StepSizes) -> tuple[Figures, list[str]]:
    """Both ways on the same weights, and what makes ours faster or slower."""
    widths = {"sd1": 320, "sd1-half": 160}
    shape = sd1(sizes.side, widths[sizes.model]) if sizes.model in widths else SHAPES[sizes.model]()
    torch.manual_seed(0)
    family = shape.family(torch.float32, sizes.device)
    mask = half_at_random(shape.denoiser_shapes())
    weights = sum(size.numel() for size in shape.denoiser_shapes().values())
    figures: Figures = {"sizes": {**dataclasses.asdict(sizes), "device": str(sizes.device), "weights": weights}}
    figures["ours"] = {
        "paper, fp32": ours(sizes, shape, family, mask, "--recipe paper --mixed_precision no"),
        "paper, bf16": ours(sizes, shape, family, mask, "--recipe paper --mixed_precision bf16"),
        "default, fp32": ours(sizes, shape, family, mask, "--recipe frozen_teacher --mixed_precision no"),
        "default, bf16": ours(sizes, shape, family, mask, "--recipe frozen_teacher --mixed_precision bf16"),
    }
    family.denoiser.to(memory_format=torch.channels_last)
    figures["variants"] = {"channels_last, default, bf16": forward_backward(sizes, shape, family, "bf16")}
    figures["variants"]["channels_last, default, fp32"] = forward_backward(sizes, shape, family, "no")
    family.denoiser.to(memory_format=torch.contiguous_format)
    figures["variants"]["contiguous, default, bf16"] = forward_backward(sizes, shape, family, "bf16")
    figures["variants"]["contiguous, default, fp32"] = forward_backward(sizes, shape, family, "no")
    family.denoiser.set_attn_processor(_without_sdpa())  # type: ignore[operator]
    figures["variants"]["without SDPA, default, bf16"] = forward_backward(sizes, shape, family, "bf16")
    family.denoiser.set_default_attn_processor()  # type: ignore[operator]
    figures["official"] = official(sizes, shape, family)
    for entry in figures["ours"].values():
        entry["times_faster"] = figures["official"]["seconds"] / entry["seconds"]
    return figures, told(figures)


def told(figures: Figures) -> list[str]:
    """The figures in lines."""
    found = figures["official"]
    lines = [f"official sequence, fp32       {found['seconds']:8.2f} s"]
    for name, entry in figures["ours"].items():
        lines.append(
            f"ours, {name:22}  {entry['seconds']:8.2f} s  {entry['times_faster']:5.2f} times as fast; mask, gather, "
            f"scatter and optimizer {entry['mask_share']:.1%}"
        )
    lines += [f"{name:30}{entry['seconds']:8.2f} s forward and backward" for name, entry in figures["variants"].items()]
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


def ours(sizes: StepSizes, shape: ModelShape, family: Family, mask: SaliencyMask, flags: str) -> Figures:
    """Median seconds of a step of this package, with its share of the base's answers, and the mask's part of it."""
    settings, precision = _settings(sizes, flags)
    spent = [0.0]
    with engine(mixed_precision=precision, gradient_accumulation_steps=1, report_to=None) as accelerator:
        data = blank_data(settings, shape.latent_shape, shape.conditions(1, sizes.device))
        run = QuietRun.of(accelerator)
        with (
            _timed_mask(spent, sizes.device),
            rehearsed_training(run, family, mask, data, settings) as (take, stepper),
        ):
            stepper.step = _adding(stepper.step, spent, sizes.device)  # type: ignore[method-assign]
            take()
            seconds, masked = [], []
            for _ in range(sizes.repeats):
                spent[0] = 0.0
                seconds.append(_seconds(take, sizes.device))
                masked.append(spent[0])
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
            answers = statistics.median(_seconds(answer, sizes.device) for _ in range(sizes.repeats))
    return {
        "seconds": median + answers,
        "of_which_answers": answers,
        "mask_seconds": statistics.median(masked),
        "mask_share": statistics.median(masked) / (median + answers),
        "all_seconds": seconds,
    }


def _settings(sizes: StepSizes, flags: str) -> tuple[Settings, Any]:
    return settings_of(f"{flags} --train_batch_size {sizes.batch} --mask_ratio 0.5")


def forward_backward(sizes: StepSizes, shape: ModelShape, family: Family, precision: str) -> Figures:
    """Median seconds of one pass over both halves, forward and backward, gradients freed as they come."""
    rows, network = 2 * sizes.batch, family.denoiser
    noised = torch.randn(rows, *shape.latent_shape, device=sizes.device)
    conditions, timesteps = shape.conditions(rows, sizes.device), torch.ones(rows, device=sizes.device)
    hooks = [parameter.register_post_accumulate_grad_hook(_drop) for parameter in network.parameters()]

    def work() -> None:
        with torch.autocast(sizes.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            loss = family.predict(network, noised, timesteps, conditions).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]

    work()
    seconds = [_seconds(work, sizes.device) for _ in range(sizes.repeats)]
    for hook in hooks:
        hook.remove()
    return {"seconds": statistics.median(seconds), "all_seconds": seconds}


def official(sizes: StepSizes, shape: ModelShape, family: Family) -> Figures:
    """Median seconds of a step of the official sequence."""
    unet, pipe, device, b = family.denoiser, family.pipe, sizes.device, sizes.batch  # type: ignore[attr-defined]
    _, height, width = shape.latent_shape
    scale = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    pictures = torch.rand(2 * b, pipe.vae.config.in_channels, height * scale, width * scale, device=device) * 2 - 1
    forget, retain = pictures.chunk(2)
    tokens = torch.ones(b, pipe.text_encoder.config.max_position_embeddings, dtype=torch.int64, device=device)
    optimizer = torch.optim.Adam(unet.parameters(), lr=1e-5)
    largest = max(parameter.numel() for parameter in unet.parameters())
    mask = torch.randint(2, (largest,), device=device)  # int64, as the official file holds it.

    @torch.no_grad()
    def encoded(images: Tensor) -> Tensor:
        latents: Tensor = pipe.vae.encode(images).latent_dist.sample() * pipe.vae.config.scaling_factor
        return latents

    @torch.no_grad()
    def read() -> Tensor:
        states: Tensor = pipe.text_encoder(tokens)[0]
        return states

    def asked(latents: Tensor, noise: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        return family.predict(
            unet, family.schedule.noised(latents, noise, timesteps), timesteps, {"encoder_hidden_states": states}
        )

    def work() -> None:
        optimizer.zero_grad()
        remain, first, second = encoded(retain), encoded(forget), encoded(forget)
        noise, timesteps = torch.randn_like(remain), torch.randint(1000, (b,), device=device)
        remain_loss = F.mse_loss(asked(remain, noise, timesteps, read()), noise)
        noise, timesteps = torch.randn_like(first), torch.randint(1000, (b,), device=device)
        student = asked(first, noise, timesteps, read())
        target = asked(second, noise, timesteps, read()).detach()
        (F.mse_loss(student, target) + 0.1 * remain_loss).backward()  # type: ignore[no-untyped-call]
        for parameter in unet.parameters():
            if parameter.grad is not None:
                parameter.grad *= mask[: parameter.numel()].view_as(parameter)
        optimizer.step()

    work()
    seconds = [_seconds(work, device) for _ in range(sizes.repeats)]
    return {"seconds": statistics.median(seconds), "all_seconds": seconds}


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _adding(function: Callable[..., Any], spent: list[float], device: torch.device) -> Callable[..., Any]:
    """A function that adds its seconds to those spent; on a GPU it is waited for, so that a step takes longer."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        _wait(device)
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            _wait(device)
            spent[0] += time.perf_counter() - started

    return timed


@contextmanager
def _timed_mask(spent: list[float], device: torch.device) -> Iterator[None]:
    """Within the block, what gathers and scatters is timed."""
    with (
        mock.patch.object(SelectedWeights, "_gather", _adding(SelectedWeights._gather, spent, device)),
        mock.patch.object(SelectedWeights, "scatter", _adding(SelectedWeights.scatter, spent, device)),
    ):
        yield


def _drop(parameter: nn.Parameter) -> None:
    parameter.grad = None


def _without_sdpa() -> Any:
    from diffusers.models.attention_processor import AttnProcessor

    return AttnProcessor()
