"""The account of a run's memory in a moment: only activations are counted, the rest is arithmetic.

    saliency   4 N + 4 T + a(2 b_s)           b_s latents in memory at once, with and without their prompt; T trained
    training   4 N + N/8 + 4 S + A + max(a(b), 4 S)     b rows; S of the N weights are selected

in bytes, where a(rows) are the activations of one pass and what backward adds to them, and A is the state of Adam: 8 S,
or 2 S and its scales in 8 bits. Gradients of the selected weights, 4 S, come as activations go.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, cached_property

import torch
from torch import nn

from salun_diffusers.diffusion.baselines import make_objective
from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.foreseen import MADE_MASKS, trained_names
from salun_diffusers.diffusion.global_batch import GlobalBatch
from salun_diffusers.diffusion.memory_account import GPU, LiveBytes, imagined
from salun_diffusers.diffusion.model_shape import ModelShape
from salun_diffusers.diffusion.rehearsal import moved_of
from salun_diffusers.diffusion.robustness import Robustness
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.diffusion.stage_peaks import SAMPLING, Precision, StagePeaks, autocast


class QuickPeaks:
    """Estimates for one model, as `stage_peaks` would count them, within 15 %."""

    def __init__(self, shape: ModelShape) -> None:
        """Take a model.

        Args:
            shape: Its configurations.
        """
        self._shape = shape
        self._activations = cache(self._count_activations)
        self._drawn = cache(self._count_drawing)

    def peaks(self, settings: Settings, precision: Precision) -> StagePeaks:
        """Of all stages.

        Args:
            settings: Of the run.
            precision: Of the run, as accelerate names it.
        """
        return StagePeaks(
            *self.drawing(settings, precision),
            self.saliency(settings, precision) if settings.scored else 0,
            *self.training(settings, precision),
        )

    def drawing(self, settings: Settings, precision: Precision) -> tuple[int, int]:
        """Of drawing and of decoding."""
        return self._drawn(settings.generation_batch_size, settings.guidance_scale > 1, precision)

    def saliency(self, settings: Settings, precision: Precision) -> int:
        """Of the saliency pass."""
        held = int(min(settings.saliency_batch_size, settings.saliency_micro_batch_size))
        trained = self._trained(settings.train_method)
        # Clipping, and squares of what comes in parts, want a batch's whole gradient.
        in_parts = held < settings.saliency_batch_size and settings.mask == "saliency_ratio"
        whole = in_parts or settings.saliency_max_grad_norm < float("inf")
        sums = 4 * trained * ((not settings.offload_saliency) + whole)
        # Under fp16 this pass is fp32.
        halves: Precision = "bf16" if precision == "bf16" else "no"
        at_once = self._activations(2 * held, halves, settings.gradient_checkpointing, settings.train_method)
        return 4 * self._weights + sums + at_once

    def training(self, settings: Settings, precision: Precision) -> tuple[int, int]:
        """Of a step, and of what it holds throughout."""
        ratio = settings.mask_ratio if settings.mask in MADE_MASKS and not settings.scales_updates else 1.0
        whole = settings.mask == "full" or ratio == 1
        selected = int((1.0 if whole else ratio) * self._trained(settings.train_method))
        if lora := settings.adapter == "lora":
            names = trained_names(self._sizes, settings.train_method, self._shape.attention)
            shapes = self._shape.denoiser_shapes()
            selected = sum(moved_of(name, shapes[name], 1.0, settings) for name in names)
        moments = 2 * selected + selected // 32 if settings.use_8bit_adam else 8 * selected
        # A tensor that is selected whole is its own leaf, and needs no bits.
        averages = 4 * selected if settings.use_ema else 0
        beside = 4 * selected if lora else 0 if whole else 4 * selected + self._weights // 8
        beside += 4 * selected if settings.soft_threshold == "proximal" else 6 * selected * settings.scales_updates
        resident = 4 * self._weights + moments + averages + beside
        robust = Robustness.of(settings)
        trains_back = robust.weight_steps > 0
        resident += 4 * selected * trains_back  # The way of who trains back.
        # Gradients of retaining and of forgetting, and the weights that come back.
        held = 4 * selected * ((robust.rows > 0) * 2 + trains_back)
        halves = 1 if robust.rows else len(make_objective(settings).halves)  # One half at a time.
        rows = halves * GlobalBatch.of(settings, processes=1).largest
        at_once = self._activations(rows, precision, settings.gradient_checkpointing, settings.train_method)
        accumulated = 4 * selected if settings.gradient_accumulation_steps > 1 else 0
        static = resident + 4 * selected
        return max(static, resident + accumulated + held + at_once), static

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {name: size.numel() for name, size in self._shape.denoiser_shapes().items()}

    @property
    def _weights(self) -> int:
        return sum(self._sizes.values())

    def _trained(self, method: str) -> int:
        return sum(self._sizes[name] for name in trained_names(self._sizes, method, self._shape.attention))

    def _count_activations(self, rows: int, precision: Precision, checkpointing: bool, method: str) -> int:
        """The most that a pass forward and backward adds, each gradient freed when it is there."""
        with self._family(precision) as (count, family):
            family.release_encoders()
            network = family.denoiser
            if checkpointing:
                network.enable_gradient_checkpointing()  # type: ignore[operator]
            trained = set(trained_names(self._sizes, method, self._shape.attention))
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(name in trained)
                if name in trained:
                    parameter.register_post_accumulate_grad_hook(_drop)
            before = count.live
            count.restart()
            self._pass(family, rows, precision).square().mean().backward()  # type: ignore[no-untyped-call]
            return count.peak - before

    def _count_drawing(self, rows: int, guided: bool, precision: Precision) -> tuple[int, int]:
        with self._family(precision) as (count, family), torch.no_grad():
            self._pass(family, 2 * rows if guided else rows, precision)
            drawing = count.peak
            count.restart()
            self._shape.decode(family, rows)
            return drawing, count.peak

    def _pass(self, family: Family, rows: int, precision: Precision) -> torch.Tensor:
        noised = torch.zeros(rows, *self._shape.latent_shape, device=GPU)
        with autocast(SAMPLING[precision]):
            conditions = self._shape.conditions(rows)
            return family.predict(family.denoiser, noised, torch.zeros(rows, device=GPU), conditions)

    @contextmanager
    def _family(self, precision: Precision) -> Iterator[tuple[LiveBytes, Family]]:
        with imagined() as count:
            yield count, self._shape.family(SAMPLING[precision])


def _drop(parameter: nn.Parameter) -> None:
    parameter.grad = None
