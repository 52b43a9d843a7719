"""Objectives: what the selected weights are trained towards."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_diffusers.diffusion.families.family import Conditions, Family
from salun_diffusers.errors import UserError

Teacher = Literal["base", "current", "noise"]
Half = Literal["forget", "retain"]


class EraseBatch(NamedTuple):
    """One step's draws; forget and retain halves have the same number of rows.

    An objective that uses one half alone is given that half's rows only.

    Attributes:
        noised: x_t of the forget latents, then of the retain latents, `(2b, channels, height, width)`.
        timesteps: `(2b,)`.
        truth: What a network that knew the drawn noise would answer, like `noised`: ε, v or x₀, as it speaks.
        conditions: c of the forget half, then c_r of the retain half.
        anchor_conditions: c′ of the forget half, then c_r again.
        empty_conditions: ∅, as many rows; none of a family that has no unconditional branch.
        weight: Its loss counts so much beside those of the other processes and micro-batches of a step.
    """

    noised: Tensor
    timesteps: Tensor
    truth: Tensor
    conditions: Conditions
    anchor_conditions: Conditions = {}  # noqa: RUF012  # never written to
    empty_conditions: Conditions = {}  # noqa: RUF012
    weight: float = 1.0


class ObjectiveLoss(NamedTuple):
    """The loss to differentiate and its two terms, all scalars."""

    total: Tensor
    forget: Tensor
    retain: Tensor


class Objective(ABC):
    """What fine-tuning minimises; a subclass is a frozen dataclass of hyper-parameters with the equation as its call.

    Attributes:
        teacher: Whose predictions make the targets: the base's (computed before fine-tuning), those of the present
            network, or nobody's (the target tells the drawn noise).
        halves: The halves of a batch that it uses.
    """

    teacher: Teacher
    halves: tuple[Half, ...] = ("forget", "retain")

    @abstractmethod
    def target(self, family: Family, denoiser: nn.Module, batch: EraseBatch) -> Tensor:
        """What the prediction is compared with, in its shape.

        Args:
            family: How the denoiser is called.
            denoiser: The teacher: the base model or the present one.
            batch: The step's draws.
        """

    @abstractmethod
    def __call__(self, prediction: Tensor, target: Tensor) -> ObjectiveLoss:
        """The loss of one forward pass."""

    def penalty(self, parameters: Iterable[Tensor], progress: float) -> Tensor | float:
        """A term on the weights themselves, added to the loss; none by default.

        Args:
            parameters: All weights of the denoiser.
            progress: Share of the steps that are done, in [0, 1).
        """
        return 0.0


@dataclass(frozen=True)
class PromptSwap(Objective):
    """Relabelling: the forget prompt comes to mean what the anchor prompt means (arXiv 2310.12508, eq. 6).

        ℓ = ‖ε_θ(x_t, c) - ε_T(x_t, c′)‖² + α ‖ε_θ(x_r, c_r) - y_r‖²

    with mean squared errors over all elements. Student and teacher see the same x_t. As everywhere here, ε_θ is the
    network's own answer: v or x₀ where it predicts those.

    With ``teacher="current"``, ε_T is the present network without gradient, and with ``retain_target="noise"``, y_r is
    the drawn noise, in the form that the network predicts: SalUn as published. With ``teacher="base"`` and
    ``retain_target="base"``, both are predictions of the base model: retained pictures then keep their composition at
    equal seed.

    With η > 0 the base's forget target is ε₀(x_t, c′) + η (ε₀(x_t, c′) - ε₀(x_t, c)): past the anchor and farther from
    the concept, so that the way back is longer.

    Differs from the official code (OPTML-Group/Unlearn-Saliency@a6e89fd, SD/train-scripts/nsfw_removal.py): there the
    teacher's input is a second sample of the VAE posterior. Generated latents have none, and of a picture both see the
    same sample.

    Args:
        retain_weight: α, the weight of the retain term.
        teacher: Which weights make the forget target.
        retain_target: What the retained half is held to.
        overshoot: η, of the base as teacher only: the present network would have to flee from itself.

    Raises:
        UserError: If the present network is the teacher, and the base model should give the retain target or a target
            past the anchor.

    Example:
        >>> objective = PromptSwap(retain_weight=1.0, teacher="base", retain_target="base")
        >>> prediction = torch.zeros(2, 1, 1, 1)
        >>> float(objective(prediction, target=torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)).total)
        5.0
    """

    retain_weight: float
    teacher: Teacher
    retain_target: Literal["base", "noise"]
    overshoot: float = 0.0

    def __post_init__(self) -> None:
        if self.teacher == "current" and self.retain_target == "base":
            raise UserError('retain_target="base" needs teacher="base": the present network cannot give both targets.')
        if self.teacher == "current" and self.overshoot:
            raise UserError(f'An overshoot needs teacher="base", got {self.overshoot:g} with the present network.')

    @torch.no_grad()
    def target(self, family: Family, denoiser: nn.Module, batch: EraseBatch) -> Tensor:
        """Targets of both halves, `(2b, channels, height, width)`."""
        if self.retain_target == "base":
            anchored = family.predict(denoiser, batch.noised, batch.timesteps, batch.anchor_conditions)
            return self._beyond(anchored, family, denoiser, batch) if self.overshoot else anchored
        half = len(batch.noised) // 2
        anchors = {name: tensor[:half] for name, tensor in batch.anchor_conditions.items()}
        forget = family.predict(denoiser, batch.noised[:half], batch.timesteps[:half], anchors)
        return torch.cat([forget, batch.truth[half:]])

    def _beyond(self, anchored: Tensor, family: Family, denoiser: nn.Module, batch: EraseBatch) -> Tensor:
        """ε₀(x_t, c′) + η (ε₀(x_t, c′) - ε₀(x_t, c)) in the forget half."""
        half = len(batch.noised) // 2
        concept = {name: tensor[:half] for name, tensor in batch.conditions.items()}
        known = family.predict(denoiser, batch.noised[:half], batch.timesteps[:half], concept)
        return torch.cat([anchored[:half] + self.overshoot * (anchored[:half] - known), anchored[half:]])

    def __call__(self, prediction: Tensor, target: Tensor) -> ObjectiveLoss:
        """The loss of one forward pass over both halves."""
        forget_prediction, retain_prediction = prediction.chunk(2)
        forget_target, retain_target = target.chunk(2)
        forget = F.mse_loss(forget_prediction, forget_target)
        retain = F.mse_loss(retain_prediction, retain_target)
        return ObjectiveLoss(forget + self.retain_weight * retain, forget, retain)


def guided_noise_loss(family: Family, denoiser: nn.Module, batch: EraseBatch, guidance: float) -> Tensor:
    """The loss whose gradient ranks the weights: the noise loss of the guided prediction.

        ε̂ = (1 + w) ε_θ(x_t, c) - w ε_θ(x_t, ∅),   ℓ = mean (ε - ε̂)²

    w = 7.5 here is 8.5 in diffusers' convention. Both branches carry gradient. The official code uses -ℓ; saliency is
    an absolute value, so the sign has no effect. Of a network that predicts v or x₀ these are compared, guided alike.

    Args:
        family: How the denoiser is called.
        denoiser: The base model.
        batch: x_t, its timesteps and what is true of it, c and ∅ of the forget set.
        guidance: w, at least 0; 0 without ∅.

    Source: OPTML-Group/Unlearn-Saliency@a6e89fd, SD/train-scripts/generate_mask.py.
    """
    return F.mse_loss(_guided(family, denoiser, batch, guidance), batch.truth)


def weighted_noise_loss(family: Family, denoiser: nn.Module, batch: EraseBatch, guidance: float) -> Tensor:
    """The same, where each state counts by how far the concept and its anchor are apart there.

        ℓ = mean_i u_i mean (ε - ε̂)²_i,   u_i = mean (ε_θ(x_t, c) - ε_θ(x_t, c′))²_i

    with i a latent at its timestep, and u_i without gradient. States in which both prompts ask for the same, such as
    most of those with little noise, say nothing of the concept. Of u only ratios matter where weights are ranked.

    Args:
        family: How the denoiser is called.
        denoiser: The base model.
        batch: As for `guided_noise_loss`, and c′.
        guidance: w.
    """
    with torch.no_grad():
        concept = family.predict(denoiser, batch.noised, batch.timesteps, batch.conditions)
        anchor = family.predict(denoiser, batch.noised, batch.timesteps, batch.anchor_conditions)
        apart = (concept - anchor).float().square().flatten(1).mean(1)
    errors = (batch.truth - _guided(family, denoiser, batch, guidance)).square().flatten(1).mean(1)
    return (apart * errors).mean()


def _guided(family: Family, denoiser: nn.Module, batch: EraseBatch, guidance: float) -> Tensor:
    """The guided prediction ε̂; that for the prompt alone in a family without ∅."""
    if not batch.empty_conditions:
        return family.predict(denoiser, batch.noised, batch.timesteps, batch.conditions)
    both = {name: torch.cat([batch.conditions[name], batch.empty_conditions[name]]) for name in batch.conditions}
    noised, timesteps = torch.cat([batch.noised] * 2), torch.cat([batch.timesteps] * 2)
    conditional, unconditional = family.predict(denoiser, noised, timesteps, both).chunk(2)
    return (1 + guidance) * conditional - guidance * unconditional
