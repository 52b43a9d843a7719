"""The pass that scores the weights of the denoiser: the gradient of the noise loss over a set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from salun_diffusers.diffusion.families.family import Conditions, Family, rows
from salun_diffusers.diffusion.latent_set import Drawn, LatentSet
from salun_diffusers.diffusion.latent_sets import EraseData
from salun_diffusers.diffusion.objectives import EraseBatch, guided_noise_loss, weighted_noise_loss
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.errors import tell
from salun_diffusers.masks.saliency import Saliency, gradient_saliency
from salun_diffusers.masks.trained_tensors import only_trained
from salun_diffusers.progress import Progress
from salun_diffusers.seeds import stream


@dataclass(frozen=True)
class _Part:
    """A set to score by.

    Args:
        name: Of its draws and its progress.
        latents: The set.
        conditions: c, one row per prompt.
        anchors: c′, one row per prompt; nothing where every state counts alike.
        empty: ∅, one row; nothing where the family has no such branch.
    """

    name: str
    latents: LatentSet
    conditions: Conditions
    anchors: Conditions
    empty: Conditions


def forget_saliency(
    run: Run, family: Family, parameters: Mapping[str, nn.Parameter], data: EraseData, settings: Settings
) -> Saliency:
    """Score some weights of the denoiser by the guided noise loss over one pass of the forget set.

    Each process takes every n-th batch; sums over processes are taken before the absolute value. As in the official
    code a smaller last batch counts with its own mean. Of a batch with loss ℓ_b only as many latents are in memory at
    once as a micro-batch M holds, ∇ℓ_b = Σ_M |M|/|b| ∇ℓ_M; its draws are those of the whole batch. Gradients are summed
    with their signs; for a ratio to those of the retain set their squares are.

    Differs from the official code: that of the DDPM shuffles the pictures and pairs timesteps t with T - 1 - t.
    """
    weighted = settings.saliency_weighting == "difference"
    anchors = data.anchor_conditions if weighted else {}
    part = _Part("saliency", data.forget, data.forget_conditions, anchors, data.empty)
    return _saliency(run, family, parameters, part, settings)


def retain_saliency(
    run: Run, family: Family, parameters: Mapping[str, nn.Parameter], data: EraseData, settings: Settings
) -> Saliency:
    """Score them over the retain set instead, all else alike; every state counts the same."""
    part = _Part("saliency of retained", data.retain, data.retain_conditions, {}, data.empty)
    return _saliency(run, family, parameters, part, settings)


def _saliency(
    run: Run, family: Family, parameters: Mapping[str, nn.Parameter], part: _Part, settings: Settings
) -> Saliency:
    accelerator, size = run.accelerator, settings.saliency_batch_size
    starts = range(0, len(part.latents), size)
    mine = [(start, 1.0) for start in starts[accelerator.process_index :: accelerator.num_processes]]
    mine = mine or [(0, 0.0)]  # A process without a batch adds zeros.
    # fp16 gradients would vanish without a loss scaler; this one pass is worth fp32.
    half = accelerator.mixed_precision == "fp16"
    precision = nullcontext if half else accelerator.autocast
    if half and run.main:
        tell(
            "note",
            "the saliency is computed in fp32, as fp16 loses small gradients; --saliency_micro_batch_size and "
            "--gradient_checkpointing lower its memory.",
        )

    measured = weighted_noise_loss if part.anchors else guided_noise_loss

    def losses(batch: tuple[int, float]) -> Iterator[Tensor]:
        start, weight = batch
        index = torch.arange(start, min(start + size, len(part.latents)))
        generator = stream(settings.seed, part.name, start)
        timesteps = family.schedule.sample(len(index), generator)
        drawn = part.latents.draw(index, stream(settings.seed, "posterior", part.name, start))
        noise = torch.randn(drawn.latents.shape, generator=generator)
        value = 0.0
        for rows_of in torch.arange(len(index)).split(int(min(len(index), settings.saliency_micro_batch_size))):
            with precision():
                loss = measured(
                    family,
                    family.denoiser,
                    _batch(family, part, index[rows_of], drawn.of(rows_of), (timesteps[rows_of], noise[rows_of])),
                    settings.saliency_guidance,
                )
            share = len(rows_of) / len(index)
            value += share * float(loss.detach())
            one = weight * share * loss
            del loss  # No graph waits for the next one.
            yield one
            del one
        bar.advance(loss=value)

    def at_once(batch: tuple[int, float]) -> Tensor:
        """The loss of a batch that is one micro-batch: its gradients can be squared and freed one by one."""
        (loss,) = losses(batch)
        return loss

    squared = settings.mask == "saliency_ratio"
    if settings.gradient_checkpointing:
        family.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    family.denoiser.eval()
    trained = only_trained(dict(family.denoiser.named_parameters()), parameters)
    with trained, Progress(part.name, len(mine), run.main) as bar:
        return gradient_saliency(
            parameters,
            mine,
            at_once if squared and settings.saliency_micro_batch_size >= size else losses,
            accumulate="squared" if squared else "signed",
            max_grad_norm=settings.saliency_max_grad_norm,
            reduce=lambda total: accelerator.reduce(total.to(family.device), reduction="sum").cpu(),
            offload=settings.offload_saliency,
        )


def _batch(family: Family, part: _Part, index: Tensor, drawn: Drawn, noising: tuple[Tensor, Tensor]) -> EraseBatch:
    """What the loss sees of some latents, noised to some timesteps by some noise."""
    latents = drawn.latents.to(family.device)
    timesteps, noise = (one.to(family.device) for one in noising)
    empty = {name: tensor.expand(len(index), *tensor.shape[1:]) for name, tensor in part.empty.items()}
    prompts = part.latents.prompt_index[index]
    return EraseBatch(
        noised=family.schedule.noised(latents, noise, timesteps),
        timesteps=timesteps,
        truth=family.schedule.target(latents, noise, timesteps),
        conditions=drawn.told(rows(part.conditions, prompts)),
        anchor_conditions=drawn.told(rows(part.anchors, prompts)),
        empty_conditions=drawn.told(empty),
    )
