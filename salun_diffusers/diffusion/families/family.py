"""What the erasing code asks of a family of diffusion models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn

Conditions = dict[str, Tensor]
"""Keyword arguments of the denoiser; every tensor has one row per prompt."""


def rows(conditions: Conditions, index: Tensor) -> Conditions:
    """The conditions of some prompts, by row."""
    return {name: tensor[index.to(tensor.device)] for name, tensor in conditions.items()}


class Family(Protocol):
    """One kind of denoiser: how it is conditioned, noised and predicted.

    `predict` answers in ε whatever the network itself predicts, so that every loss is a noise loss.
    """

    denoiser_folder: str
    denoiser: nn.Module
    folder: Path
    num_train_timesteps: int
    device: torch.device

    def encode(self, prompts: Sequence[str]) -> Conditions:
        """Conditions of the prompts, one row each."""
        ...

    def cut_words(self, prompt: str) -> str:
        """The end of a prompt that the text encoder cannot take; empty if it fits."""
        ...

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], *, num_inference_steps: int, guidance_scale: float
    ) -> Tensor:
        """Latents of one picture per prompt, ready to be noised; item i depends on prompt i and seed i only."""
        ...

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents."""
        ...

    def release_encoders(self) -> None:
        """Drop what fine-tuning does not need from memory."""
        ...

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of clean latents."""
        ...

    def signal_to_noise(self, timesteps: Tensor) -> Tensor:
        """Power of the latents over that of the noise at these timesteps."""
        ...

    def predict(self, denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """ε_θ(x_t, c)."""
        ...
