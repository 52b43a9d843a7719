"""The variance-preserving noise of DDPM: how pictures become noise, and what a network's answer means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salun_diffusers.errors import UserError


class NoiseSchedule:
    """x_t = √ᾱ_t x₀ + √(1-ᾱ_t) ε, with ᾱ_t from a diffusers scheduler (arXiv 2006.11239, eq. 4)."""

    def __init__(self, scheduler: Any, folder: Path, device: torch.device) -> None:
        """Read a scheduler.

        Args:
            scheduler: A diffusers scheduler with `alphas_cumprod`.
            folder: The pipeline it is from, for messages.
            device: Where the table goes.

        Raises:
            UserError: If it has other noise, or the network predicts neither ε nor v.
        """
        if not hasattr(scheduler, "alphas_cumprod"):
            raise UserError(
                f"A scheduler with the noise of DDPM (alphas_cumprod) is required, {folder} has "
                f"{type(scheduler).__name__}; flow matching and EDM are not supported for U-Nets."
            )
        self.num_train_timesteps = int(scheduler.config.num_train_timesteps)
        self._prediction_type = getattr(scheduler.config, "prediction_type", "epsilon")
        if self._prediction_type not in ("epsilon", "v_prediction"):
            raise UserError(f"prediction_type must be epsilon or v_prediction, {folder} has {self._prediction_type!r}.")
        self.alphas: Tensor = scheduler.alphas_cumprod.to(device=device, dtype=torch.float32)

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of clean latents, `(b, channels, height, width)`."""
        alpha: Tensor = self.alphas[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    def signal_to_noise(self, timesteps: Tensor) -> Tensor:
        """SNR = ᾱ_t / (1-ᾱ_t), `(b,)`."""
        alpha: Tensor = self.alphas[timesteps]
        return alpha / (1 - alpha)

    def epsilon(self, prediction: Tensor, noised: Tensor, timesteps: Tensor) -> Tensor:
        """ε of a network's answer: itself, or √ᾱ_t v + √(1-ᾱ_t) x_t of a v-prediction (arXiv 2202.00512, app. D)."""
        if self._prediction_type == "epsilon":
            return prediction
        alpha: Tensor = self.alphas[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt() * prediction + (1 - alpha).sqrt() * noised
