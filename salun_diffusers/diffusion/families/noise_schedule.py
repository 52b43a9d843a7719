"""The variance-preserving noise of DDPM: how pictures become noise, and what a network's answer means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salun_diffusers.diffusion.families.family import spread
from salun_diffusers.errors import UserError

PREDICTIONS = ("epsilon", "v_prediction", "sample")
HEAVIEST = 10.0
"""The largest weight of a squared error."""


class NoiseSchedule:
    """x_t = √ᾱ_t x₀ + √(1-ᾱ_t) ε, with ᾱ_t from a diffusers scheduler (arXiv 2006.11239, eq. 4).

    A network answers with ε, with v = √ᾱ_t ε - √(1-ᾱ_t) x₀ (arXiv 2202.00512, app. D), or with x₀ ("sample"). At one
    x_t, errors of the three are one error in other units:

        ‖Δε‖² = ᾱ_t ‖Δv‖² = ᾱ_t / (1-ᾱ_t) ‖Δx₀‖²

    so that a v-network held to ε would not be taught at all where ᾱ_t is 0, which is where layout is decided.
    """

    def __init__(self, scheduler: Any, folder: Path, device: torch.device) -> None:
        """Read a scheduler.

        Args:
            scheduler: A diffusers scheduler with `alphas_cumprod`.
            folder: The pipeline it is from, for messages.
            device: Where the table goes.

        Raises:
            UserError: If it has other noise, or the network predicts something else.
        """
        if not hasattr(scheduler, "alphas_cumprod"):
            raise UserError(
                f"A scheduler with the noise of DDPM (alphas_cumprod) is required, {folder} has "
                f"{type(scheduler).__name__}; flow matching and EDM are not supported for U-Nets."
            )
        self.num_train_timesteps = int(scheduler.config.num_train_timesteps)
        self.prediction = getattr(scheduler.config, "prediction_type", "epsilon")
        if self.prediction not in PREDICTIONS:
            raise UserError(f"prediction_type must be {', '.join(PREDICTIONS)}, {folder} has {self.prediction!r}.")
        self.alphas: Tensor = scheduler.alphas_cumprod.to(device=device, dtype=torch.float32)
        if self.prediction == "epsilon" and float(self.alphas[-1]) == 0:
            raise UserError(
                f"{folder} has no signal at its last timestep (rescale_betas_zero_snr) and predicts noise, of which no "
                "picture can be drawn: such a model predicts v (--prediction_type v_prediction)."
            )

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Timesteps, each as likely as any other, `(count,)`."""
        return torch.randint(self.num_train_timesteps, (count,), generator=generator)

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of clean latents, in their shape."""
        alpha = spread(self.alphas[timesteps], latents)
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """ε, v or x₀ of the drawn noise, in the shape of the latents."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return latents
        alpha = spread(self.alphas[timesteps], latents)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents

    def signal_to_noise(self, timesteps: Tensor) -> Tensor:
        """SNR = ᾱ_t / (1-ᾱ_t), `(b,)`."""
        alpha: Tensor = self.alphas[timesteps]
        return alpha / (1 - alpha)

    def error_weight(self, timesteps: Tensor, power: float) -> Tensor:
        """w_t on the way from plain squared errors (p = 0) to those of the clean latents (p = 1).

            ε: min(SNR_t^-p, 10)      v: (SNR_t + 1)^-p      x₀: 1

        since ‖Δx₀‖² = ‖Δε‖² / SNR_t = ‖Δv‖² / (SNR_t + 1): the divisors of diffusers' own min-SNR weights
        (examples/text_to_image/train_text_to_image.py).

        Args:
            timesteps: `(b,)`.
            power: p.
        """
        ratio = self.signal_to_noise(timesteps)
        if self.prediction == "sample":
            return torch.ones_like(ratio)
        return (ratio if self.prediction == "epsilon" else ratio + 1).pow(-power).clamp(max=HEAVIEST)
