"""Saliency of the denoiser's weights for a forget set."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from salun_diffusers.diffusion.batches import EraseData
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.families import Family, rows
from salun_diffusers.diffusion.objectives import guided_noise_loss
from salun_diffusers.masks.saliency import Saliency, gradient_saliency
from salun_diffusers.progress import Progress
from salun_diffusers.seeds import stream


def forget_saliency(
    accelerator: Accelerator,
    family: Family,
    parameters: Mapping[str, nn.Parameter],
    data: EraseData,
    config: EraseConfig,
) -> Saliency:
    """Score some weights of the denoiser by the guided noise loss over one pass of the forget set.

    Each process takes every n-th batch; signed gradients are summed over processes before the absolute value. As in
    the official code a smaller last batch counts with its own mean.
    """
    size = config.saliency_batch_size or 8
    starts = range(0, len(data.forget), size)
    mine = [(start, 1.0) for start in starts[accelerator.process_index :: accelerator.num_processes]]
    mine = mine or [(0, 0.0)]  # A process without a batch adds zeros.
    # fp16 gradients would vanish without a loss scaler; this one pass is worth fp32.
    precision = nullcontext if accelerator.mixed_precision == "fp16" else accelerator.autocast

    def loss(batch: tuple[int, float]) -> Tensor:
        start, weight = batch
        index = torch.arange(start, min(start + size, len(data.forget)))
        generator = stream(config.seed, "saliency", start)
        latents = data.forget.latents[index].to(family.device)
        timesteps = torch.randint(family.num_train_timesteps, (len(index),), generator=generator).to(family.device)
        noise = torch.randn(latents.shape, generator=generator).to(family.device)
        empty = {name: tensor.expand(len(index), *tensor.shape[1:]) for name, tensor in data.empty.items()}
        with precision():
            value = guided_noise_loss(
                family, family.denoiser, family.noised(latents, noise, timesteps), timesteps, noise,
                conditions=rows(data.forget_conditions, data.forget.prompt_index[index]), empty=empty,
                guidance=config.saliency_guidance or 0.0,
            )  # fmt: skip
        bar.advance(loss=float(value.detach()))
        return weight * value

    family.denoiser.eval()
    with Progress("saliency", len(mine), accelerator.is_main_process) as bar:
        return gradient_saliency(
            parameters, mine, loss, max_grad_norm=config.saliency_max_grad_norm,
            reduce=lambda total: accelerator.reduce(total.to(family.device), reduction="sum").cpu(),
        )  # fmt: skip
