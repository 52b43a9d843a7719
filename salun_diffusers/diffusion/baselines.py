"""The objectives that SalUn is compared with, and the choice among all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.objectives import (
    EraseBatch,
    Half,
    Objective,
    ObjectiveLoss,
    PromptSwap,
    Teacher,
)
from salun_diffusers.diffusion.robustness import Robustness
from salun_diffusers.diffusion.settings import Settings


@dataclass(frozen=True)
class GradientAscent(Objective):
    """GA: make the noise of the forget set harder to predict (the "ga" method of the official DDPM code).

        ℓ = -‖ε_θ(x_t, c) - ε‖² + α ‖ε_θ(x_r, c_r) - ε_r‖²

    with mean squared errors; unbounded below, so few steps are enough. α = 0 is the published baseline.

    Source: OPTML-Group/Unlearn-Saliency@a6e89fd, DDPM/runners/diffusion.py.

    Args:
        retain_weight: α.
    """

    retain_weight: float = 0.0
    teacher: Teacher = "noise"

    @property
    def halves(self) -> tuple[Half, ...]:  # type: ignore[override]
        return ("forget", "retain") if self.retain_weight else ("forget",)

    def target(self, family: Family, denoiser: nn.Module, batch: EraseBatch) -> Tensor:
        """The drawn noise, as the network would tell it."""
        return batch.truth

    def __call__(self, prediction: Tensor, target: Tensor) -> ObjectiveLoss:
        """The loss of one forward pass."""
        forget, retain = _errors(prediction, target, self.halves)
        return ObjectiveLoss(self.retain_weight * retain - forget, forget, retain)


@dataclass(frozen=True)
class FineTune(Objective):
    """FT and l1-sparse: train on the retain set alone and rely on forgetting by itself.

        ℓ = ‖ε_θ(x_r, c_r) - ε_r‖² + γ (1 - i/n) Σ |θ|

    at step i of n. γ = 0 is FT; γ > 0 is l1-sparse (arXiv 2304.04934), whose penalty covers all weights and decays
    linearly.

    Args:
        l1_weight: γ.
    """

    l1_weight: float = 0.0
    teacher: Teacher = "noise"
    halves: tuple[Half, ...] = ("retain",)

    def target(self, family: Family, denoiser: nn.Module, batch: EraseBatch) -> Tensor:
        """The drawn noise, as the network would tell it."""
        return batch.truth

    def __call__(self, prediction: Tensor, target: Tensor) -> ObjectiveLoss:
        """The loss of one forward pass."""
        forget, retain = _errors(prediction, target, self.halves)
        return ObjectiveLoss(retain, forget, retain)

    def penalty(self, parameters: Iterable[Tensor], progress: float) -> Tensor | float:
        """γ (1 - i/n) Σ |θ|."""
        if self.l1_weight == 0:
            return 0.0
        return self.l1_weight * (1 - progress) * torch.stack([tensor.abs().sum() for tensor in parameters]).sum()


@dataclass(frozen=True)
class NegativeGuidance(Objective):
    """ESD: steer the concept's prediction away from itself (arXiv 2303.07345, eq. 7).

        ℓ = ‖ε_θ(x_t, c) - [ε₀(x_t, ∅) - η (ε₀(x_t, c) - ε₀(x_t, ∅))]‖² + α ‖ε_θ(x_r, c_r) - ε₀(x_r, c_r)‖²

    ε₀ is the base model. α = 0 is the published method.

    Differs from the official code (rohitgandikota/erasing): there x_t is a sample that the present network has
    denoised part of the way; here it is a noised latent of the forget set, like that of the other objectives.

    Args:
        negative_guidance: η, at least 0.
        retain_weight: α.
    """

    negative_guidance: float = 1.0
    retain_weight: float = 0.0
    teacher: Teacher = "base"

    @property
    def halves(self) -> tuple[Half, ...]:  # type: ignore[override]
        return ("forget", "retain") if self.retain_weight else ("forget",)

    @torch.no_grad()
    def target(self, family: Family, denoiser: nn.Module, batch: EraseBatch) -> Tensor:
        """The base's prediction, pushed away from the concept in the forget half."""
        conditional = family.predict(denoiser, batch.noised, batch.timesteps, batch.conditions)
        rows = len(batch.noised) // len(self.halves)
        empty = {name: tensor[:rows] for name, tensor in batch.empty_conditions.items()}
        unconditional = family.predict(denoiser, batch.noised[:rows], batch.timesteps[:rows], empty)
        away = unconditional - self.negative_guidance * (conditional[:rows] - unconditional)
        return torch.cat([away, conditional[rows:]])

    def __call__(self, prediction: Tensor, target: Tensor) -> ObjectiveLoss:
        """The loss of one forward pass."""
        forget, retain = _errors(prediction, target, self.halves)
        return ObjectiveLoss(forget + self.retain_weight * retain, forget, retain)


def make_objective(settings: Settings) -> Objective:
    """The objective that the settings ask for."""
    match settings.objective:
        case "ascent":
            return GradientAscent(settings.retain_weight)
        case "finetune":
            return FineTune()
        case "l1_sparse":
            return FineTune(settings.l1_weight)
        case "esd":
            return NegativeGuidance(settings.negative_guidance, settings.retain_weight)
        case "relabel" if settings.recipe == "paper":
            return PromptSwap(settings.retain_weight, teacher="current", retain_target="noise")
        case "relabel":
            overshoot = Robustness.of(settings).overshoot
            return PromptSwap(settings.retain_weight, "base", "base", overshoot)


def _errors(prediction: Tensor, target: Tensor, halves: tuple[Half, ...]) -> tuple[Tensor, Tensor]:
    """Mean squared errors of the forget and the retain half; 0 for one that is not there."""
    none = prediction.new_zeros(())
    if len(halves) == 1:
        error = F.mse_loss(prediction, target)
        return (error, none) if halves[0] == "forget" else (none, error)
    (forget, retain), (forget_target, retain_target) = prediction.chunk(2), target.chunk(2)
    return F.mse_loss(forget, forget_target), F.mse_loss(retain, retain_target)
