"""What the erasing code asks of a family of diffusion models: three small parts, of which none knows the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

Conditions = dict[str, Tensor]
"""Keyword arguments of the denoiser; every tensor has one row per prompt."""


def rows(conditions: Conditions, index: Tensor) -> Conditions:
    """The conditions of some prompts, by row."""
    return {name: tensor[index.to(tensor.device)] for name, tensor in conditions.items()}


def spread(values: Tensor, over: Tensor) -> Tensor:
    """One value per row, `(b,)`, in a shape that multiplies whole rows of another tensor, however many dimensions."""
    return values.view(-1, *[1] * (over.dim() - 1))


class TextToLatents(Protocol):
    """From words to latents and pictures, and from pictures to latents.

    Attributes:
        has_empty_prompt: Whether there is an unconditional branch, ∅; a guidance-distilled model has none.
        has_encoder: Whether a network encodes pictures; else their latents are the pictures themselves.
        side: Of the pictures that are drawn and encoded, in pixels.
        picture_channels: Of what is encoded: 3, or 1 where pictures are grey.
        latent_shape: Channels, height and width of a latent of such a picture.
        pipe: The pipeline that draws; its scheduler may be another one than the model's, whose noise `Schedule` has.
    """

    has_empty_prompt: bool
    has_encoder: bool
    pipe: Any

    @property
    def side(self) -> int:
        """Pixels along a picture."""
        ...

    @property
    def picture_channels(self) -> int:
        """Of what is encoded."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        ...

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

    def generate_from(
        self, wanted: Conditions, seeds: Sequence[int], *, num_inference_steps: int, guidance_scale: float
    ) -> Tensor:
        """`generate` from conditions, one row for each seed."""
        ...

    def autocast(self) -> torch.autocast:
        """The precision of sampling."""
        ...

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents."""
        ...

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of pictures.

        Args:
            pixels: In [-1, 1], `(n, channels, height, width)`.
        """
        ...

    def release_encoders(self) -> None:
        """Drop what fine-tuning does not need from memory."""
        ...


class Schedule(Protocol):
    """How latents become noise, and what a perfect network would say of the result.

    Predictions and targets are what the network itself speaks: ε, v, x₀ or a flow. A loss is taken there.
    """

    num_train_timesteps: int

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Timesteps to train on, `(count,)`, on the CPU."""
        ...

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of clean latents."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should answer where this noise was drawn."""
        ...

    def signal_to_noise(self, timesteps: Tensor) -> Tensor:
        """Power of the latents over that of the noise at these timesteps."""
        ...

    def error_weight(self, timesteps: Tensor, power: float) -> Tensor:
        """Weight of squared errors, `(b,)`: plain ones for power 0, those of the clean latents for power 1."""
        ...


class Denoiser(Protocol):
    """The network that is fine-tuned.

    Attributes:
        denoiser_folder: Name of its folder in the pipeline.
        denoiser: The network.
        attention: What the words of --train_method mean in its tensors' names, as regular expressions.
    """

    denoiser_folder: str
    denoiser: nn.Module
    attention: Mapping[str, str]

    def predict(self, denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """The answer of a network to x_t, as it gives it: nothing is converted."""
        ...


class Family(TextToLatents, Denoiser, Protocol):
    """One kind of pipeline: how it is conditioned and drawn with, noised, and asked.

    Attributes:
        folder: Where it lies.
        device: Where it runs.
        schedule: Its noise; pipelines of several classes share one.
    """

    folder: Path
    device: torch.device
    schedule: Schedule
