"""What searches by gradient ask of a model: how it answers to noised latents, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from salun_diffusers.diffusion.families.family import Conditions, Family

SMALL = 2 * 10**7
"""Weights of a denoiser below which memory is no matter, as of the demo."""


def is_small(family: Family) -> bool:
    """Whether many rows at once cost less time and no memory to speak of."""
    return sum(parameter.numel() for parameter in family.denoiser.parameters()) < SMALL


def noise_like(clean: Tensor, random: Sequence[torch.Generator]) -> Tensor:
    """Gaussian noise, each row from a generator of its own.

    Args:
        clean: Latents, `(b, …)`.
        random: b generators on the CPU.
    """
    return torch.stack([torch.randn(clean.shape[1:], generator=one) for one in random]).to(clean)


def answer_errors(family: Family, noised: Tensor, times: Tensor, conditions: Conditions, wanted: Tensor) -> Tensor:
    """‖ε_θ(x_t, t, c) - wanted‖², the mean over the entries of each row, `(b,)`; ε, v or x₀ as the network answers.

    Args:
        family: The model.
        noised: x_t, `(b, …)`.
        times: t, `(b,)`.
        conditions: c, b rows.
        wanted: As the network's answer.
    """
    return (family.predict(family.denoiser, noised, times, conditions) - wanted).square().flatten(1).mean(dim=1)


def own_errors(family: Family, clean: Tensor, times: Tensor, conditions: Conditions, noise: Tensor) -> Tensor:
    """The noise loss of latents by the model's own schedule, `(b,)`.

    Args:
        family: The model.
        clean: x₀, `(b, …)`.
        times: t, `(b,)`.
        conditions: c, b rows.
        noise: ε, as the latents.
    """
    schedule = family.schedule
    noised = schedule.noised(clean, noise, times)
    return answer_errors(family, noised, times, conditions, schedule.target(clean, noise, times))
