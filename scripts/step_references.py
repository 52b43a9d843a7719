"""What benchmark_step measures besides this package's step: the official sequence, and other ways of computing.

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
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from benchmark_memory import SHAPES, Figures
from real_shapes import sd1
from torch import Tensor, nn

from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.model_shape import ModelShape


@dataclasses.dataclass(frozen=True)
class StepSizes:
    """What is measured.

    Args:
        model: ``sd1``, ``sd1-half`` (half as wide: a quarter of its 16 GB) or another name of `SHAPES`.
        side: Height and width of the latents.
        batch: Forget pictures a step; as many retain pictures go with them.
        repeats: Steps that count, after one that does not.
        device: Where.
        compiled: Whether a pass of the compiled network is measured, too; that takes minutes on a CPU.
    """

    model: str
    side: int
    batch: int
    repeats: int
    device: torch.device
    compiled: bool = False


def shape_of(sizes: StepSizes) -> ModelShape:
    """The model that is measured."""
    widths = {"sd1": 320, "sd1-half": 160}
    return sd1(sizes.side, widths[sizes.model]) if sizes.model in widths else SHAPES[sizes.model]()


def random_model(sizes: StepSizes) -> tuple[ModelShape, Family]:
    """The model with random weights, in every process the same."""
    torch.manual_seed(0)
    shape = shape_of(sizes)
    return shape, shape.family(torch.float32, sizes.device)


def official(sizes: StepSizes) -> Figures:
    """Median seconds of a step of the official sequence."""
    shape, family = random_model(sizes)
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
    seconds = [seconds_of(work, device) for _ in range(sizes.repeats)]
    return {"seconds": statistics.median(seconds), "all_seconds": seconds}


def variants(sizes: StepSizes) -> Figures:
    """Median seconds of one pass over both halves in other ways of computing it."""
    shape, family = random_model(sizes)
    network: Any = family.denoiser
    found: Figures = {}
    for precision, name in (("bf16", "bf16"), ("no", "fp32")):
        found[f"contiguous, default, {name}"] = forward_backward(sizes, shape, family, precision)
    network.to(memory_format=torch.channels_last)
    for precision, name in (("bf16", "bf16"), ("no", "fp32")):
        found[f"channels_last, default, {name}"] = forward_backward(sizes, shape, family, precision)
    network.to(memory_format=torch.contiguous_format)
    network.set_attn_processor(_without_sdpa())
    found["without SDPA, default, bf16"] = forward_backward(sizes, shape, family, "bf16")
    network.set_default_attn_processor()
    if sizes.device.type == "cuda":
        with torch.backends.cudnn.flags(benchmark=True):
            found["cudnn.benchmark, default, bf16"] = forward_backward(sizes, shape, family, "bf16")
            network.to(memory_format=torch.channels_last)
            found["channels_last, cudnn.benchmark, default, bf16"] = forward_backward(sizes, shape, family, "bf16")
            network.to(memory_format=torch.contiguous_format)
    if sizes.compiled:
        network.compile()
        found["compiled, default, bf16"] = forward_backward(sizes, shape, family, "bf16")
    network.to(torch.bfloat16)
    found["weights in bf16, default"] = forward_backward(sizes, shape, family, "weights")
    return found


def optimizers(sizes: StepSizes) -> Figures:
    """Median seconds of Adam alone on half of the weights: fused, and one operation over all tensors after another."""
    halves = [shape.numel() // 2 for shape in shape_of(sizes).denoiser_shapes().values() if shape.numel() > 1]
    found: Figures = {}
    for name, way in (("fused", {"fused": True}), ("foreach", {"foreach": True})):
        leaves = [nn.Parameter(torch.randn(size, device=sizes.device)) for size in halves]
        for leaf in leaves:
            leaf.grad = torch.randn_like(leaf)
        adam = torch.optim.Adam(leaves, **way)  # type: ignore[arg-type]
        adam.step()
        seconds = [seconds_of(adam.step, sizes.device) for _ in range(sizes.repeats)]
        found[name] = {"seconds": statistics.median(seconds), "all_seconds": seconds}
    return found


def forward_backward(sizes: StepSizes, shape: ModelShape, family: Family, precision: str) -> Figures:
    """Median seconds of one pass over both halves, forward and backward, gradients freed as they come.

    Args:
        sizes: Rows and repeats.
        shape: Of the model.
        family: The model.
        precision: ``no``, ``bf16`` for autocast, or ``weights`` for weights that are bf16 themselves.
    """
    rows, network = 2 * sizes.batch, family.denoiser
    kind = torch.bfloat16 if precision == "weights" else torch.float32
    noised = torch.randn(rows, *shape.latent_shape, device=sizes.device, dtype=kind)
    conditions, timesteps = shape.conditions(rows, sizes.device), torch.ones(rows, device=sizes.device)
    conditions = {name: value.to(kind) if value.is_floating_point() else value for name, value in conditions.items()}
    hooks = [parameter.register_post_accumulate_grad_hook(_drop) for parameter in network.parameters()]

    def work() -> None:
        with torch.autocast(sizes.device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            loss = family.predict(network, noised, timesteps, conditions).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]

    work()
    seconds = [seconds_of(work, sizes.device) for _ in range(sizes.repeats)]
    for hook in hooks:
        hook.remove()
    return {"seconds": statistics.median(seconds), "all_seconds": seconds}


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of some work, all of it done."""
    wait_for(device)
    started = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - started


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _drop(parameter: nn.Parameter) -> None:
    parameter.grad = None


def _without_sdpa() -> Any:
    from diffusers.models.attention_processor import AttnProcessor

    return AttnProcessor()
