"""What the erasing code asks of a family of diffusion models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from salun_diffusers.errors import UserError
from salun_diffusers.files.pipeline_folder import CLASS_CONDITIONAL, class_name, model_index

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


def load_pipeline(folder: Path, variant: str | None = None) -> Any:
    """Load a pipeline folder of any family, without running code that the folder may carry."""
    if class_name(model_index(folder)) == CLASS_CONDITIONAL:
        from salun_diffusers.pipelines.class_conditional_ddpm import ClassConditionalDDPMPipeline

        return ClassConditionalDDPMPipeline.from_pretrained(folder, variant=variant)
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(folder, variant=variant, local_files_only=True)


def family_of(pipeline_class: str) -> Callable[..., Family]:
    """The family that handles a pipeline class.

    Raises:
        UserError: If no family does; the message lists those that are known.
    """
    from salun_diffusers.diffusion.families.ddpm import ClassConditionalDDPM
    from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion

    known: dict[str, Callable[..., Family]] = {
        "StableDiffusionPipeline": StableDiffusion,
        CLASS_CONDITIONAL: ClassConditionalDDPM,
    }
    if pipeline_class not in known:
        raise UserError(
            f"A pipeline of class {', '.join(known)} is required, "
            f"the model is a {pipeline_class or 'folder without a class'}."
        )
    return known[pipeline_class]
