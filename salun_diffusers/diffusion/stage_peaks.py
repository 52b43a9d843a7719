"""The most memory that each stage of a run takes, counted on imagined tensors while the run's own code works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn

from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.latent_sets import EraseData
from salun_diffusers.diffusion.memory_account import GPU, LiveBytes, imagined
from salun_diffusers.diffusion.model_shape import ModelShape
from salun_diffusers.diffusion.optimizer import make_optimizer
from salun_diffusers.diffusion.rehearsal import (
    QuietRun,
    blank_data,
    mask_of_size,
    rehearse_saliency,
    rehearsed_training,
)
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.masks.selected_weights import SelectedWeights

Precision = Literal["no", "fp16", "bf16"]
SAMPLING: dict[Precision, torch.dtype] = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""What parts other than the denoiser are loaded in on a GPU, and what is drawn in."""


@dataclass(frozen=True)
class StagePeaks:
    """Bytes on the GPU, without its context and the workspaces of its libraries.

    Args:
        drawing: Peak while latents are drawn.
        decoding: Peak while latents become pictures.
        saliency: Peak of the saliency pass; 0 where the mask is not made of it.
        training: Peak of an optimizer step.
        static: What training holds through the whole of a step: weights, leaves, where they lie, the optimizer's state
            and gradients; the rest of its peak are activations.
    """

    drawing: int
    decoding: int
    saliency: int
    training: int
    static: int

    @property
    def most(self) -> int:
        """The peak of the run."""
        return max(self.drawing, self.decoding, self.saliency, self.training)


def stage_peaks(shape: ModelShape, settings: Settings, precision: Precision) -> StagePeaks:
    """Count what the stages of a run would take on a GPU, in a few seconds.

    Args:
        shape: The model.
        settings: Of the run.
        precision: Of the run, as accelerate names it.
    """
    saliency = saliency_peak(shape, settings, precision) if settings.scored else 0
    return StagePeaks(*drawing_peaks(shape, settings, precision), saliency, *training_peaks(shape, settings, precision))


def drawing_peaks(shape: ModelShape, settings: Settings, precision: Precision) -> tuple[int, int]:
    """Peaks of one pass of the denoiser with guidance, and of decoding what it drew; arguments as for `stage_peaks`."""
    rows = settings.generation_batch_size
    guided = 2 * rows if settings.guidance_scale > 1 else rows
    with imagined() as count, torch.no_grad():
        family = shape.family(SAMPLING[precision])
        with autocast(SAMPLING[precision]):
            noised, timesteps = torch.zeros(guided, *shape.latent_shape, device=GPU), torch.zeros(guided, device=GPU)
            family.predict(family.denoiser, noised, timesteps, shape.conditions(guided))
        drawing = count.peak
        count.restart()
        shape.decode(family, rows)
        return drawing, count.peak


def saliency_peak(shape: ModelShape, settings: Settings, precision: Precision) -> int:
    """Peak of the saliency pass; arguments as for `stage_peaks`."""
    with _after_drawing(shape, settings, precision) as (count, family, data):
        rehearse_saliency(QuietRun.of(_OneProcess(precision)), family, data, settings)
        return count.peak


def training_peaks(shape: ModelShape, settings: Settings, precision: Precision) -> tuple[int, int]:
    """Peak of a step, and what is there right before the update of the weights; arguments as for `stage_peaks`."""
    # Real bits: how much is gathered depends on how many are set.
    mask = mask_of_size(shape.denoiser_shapes(), settings, shape.attention)
    run, static = QuietRun.of(_OneProcess(precision)), []
    with (
        _after_drawing(shape, settings, precision) as (count, family, data),
        rehearsed_training(run, family, mask, data, settings, _optimizer) as (step, stepper),
    ):
        for group in stepper.param_groups:
            for leaf in group["params"]:
                leaf.grad = torch.zeros_like(leaf)
        stepper.step()  # Makes its state.
        stepper.zero_grad()
        stepper.register_step_pre_hook(lambda *_: static.append(count.live))
        count.restart()
        step()
        return count.peak, static[-1]


@contextmanager
def _after_drawing(
    shape: ModelShape, settings: Settings, precision: Precision
) -> Iterator[tuple[LiveBytes, Family, EraseData]]:
    """What is there when sets have been drawn: the denoiser and a few latents."""
    with imagined() as count:
        family = shape.family(SAMPLING[precision])
        family.release_encoders()
        if settings.gradient_checkpointing:
            family.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        count.restart()
        yield count, family, blank_data(settings, shape.latent_shape, shape.conditions(1))


def _optimizer(selected: SelectedWeights, settings: Settings) -> torch.optim.Optimizer:
    """The run's optimizer, without its kernels, which know real tensors only."""
    if settings.use_8bit_adam:
        return _EightBits(selected.weights, {})
    made = make_optimizer(selected, settings)
    for group in made.param_groups:
        group["fused"] = group["foreach"] = False  # One tensor at a time, like the kernel.
    return made


class _EightBits(torch.optim.Optimizer):
    """What bitsandbytes' Adam keeps: two moments in 8 bits and a scale for 256 of each; whole ones in small tensors."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make the state, change nothing."""
        for leaf in self.param_groups[0]["params"]:
            state = self.state[leaf]
            if not state and leaf.numel() < 4096:
                state["moments"] = torch.zeros(2, leaf.numel(), device=leaf.device)
            elif not state:
                state["moments"] = torch.zeros(2, leaf.numel(), dtype=torch.uint8, device=leaf.device)
                state["scales"] = torch.zeros(2, -(-leaf.numel() // 256), device=leaf.device)


def autocast(dtype: torch.dtype) -> torch.autocast:
    """Autocast of imagined tensors; see `memory_account`."""
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)


class _OneProcess:
    """What the stages ask of accelerate, for imagined tensors of one process."""

    num_processes, process_index, is_main_process, step = 1, 0, True, 0
    distributed_type, scaler, device = DistributedType.NO, None, GPU

    def __init__(self, precision: Precision) -> None:
        self.mixed_precision = precision

    def autocast(self) -> torch.autocast:
        """The precision of the run."""
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}
        return autocast(half.get(self.mixed_precision, torch.float32))

    @contextmanager
    def accumulate(self, _: nn.Module) -> Iterator[None]:
        """Nothing to hold back."""
        yield

    def backward(self, loss: Tensor) -> None:
        """Gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def clip_grad_norm_(self, weights: list[Tensor], limit: float) -> None:
        """As accelerate does."""
        nn.utils.clip_grad_norm_(weights, limit)

    def reduce(self, tensor: Tensor, reduction: str = "sum") -> Tensor:
        """There is one summand."""
        return tensor
