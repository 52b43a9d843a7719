"""A model under examination: who draws, from which conditions, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from salun_diffusers.diffusion.families.family import Conditions, Family, rows


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn; numbers drawn differently are never joined.

    Args:
        scheduler: Class of the scheduler, or ``own``.
        num_inference_steps: Steps of a picture.
        guidance_scale: Weight of the prompt.
        batch_size: Pictures at once; no picture depends on it.
        resolution: Side of the pictures; 0 is the model's own.
        precision: Of drawing and searching, by accelerate's name.
    """

    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    batch_size: int
    resolution: int = 0
    precision: str = "no"

    @property
    def sentence(self) -> str:
        """For a protocol."""
        scheduler = "the model's own scheduler" if self.scheduler == "own" else self.scheduler
        size = f", {self.resolution} px" if self.resolution else ""
        precision = "" if self.precision == "no" else f", {self.precision}"
        return f"{self.num_inference_steps} steps by {scheduler}, guidance {self.guidance_scale:g}{size}{precision}"


@dataclass(frozen=True)
class Subject:
    """A model that is attacked or probed. Nothing here changes its weights, and no gradient reaches them.

    Args:
        family: The model, loaded.
        name: What reports call it: ``erased``, ``base``, ``floor``.
        fingerprint: SHA-256 of all that drawing depends on; what was found against another one is a transfer.
        drawing: How it draws.
    """

    family: Family
    name: str
    fingerprint: str
    drawing: Drawing

    def __post_init__(self) -> None:
        self.family.denoiser.requires_grad_(False).eval()
        for part in ("text_encoder", "text_encoder_2", "vae"):
            network = getattr(self.family.pipe, part, None)
            if isinstance(network, torch.nn.Module):
                network.requires_grad_(False).eval()

    def latents(self, conditions: Conditions, seeds: Sequence[int]) -> Tensor:
        """Draw latents from conditions, one row for each seed; a row depends on its condition and seed only.

        Args:
            conditions: As `Family.encode` gives them.
            seeds: As many as rows.
        """
        parts = torch.arange(len(seeds)).split(self.drawing.batch_size)
        return torch.cat([
            self.family.generate_from(
                rows({name: tensor.detach() for name, tensor in conditions.items()}, part),
                [seeds[place] for place in part.tolist()],
                num_inference_steps=self.drawing.num_inference_steps,
                guidance_scale=self.drawing.guidance_scale,
            )
            for part in parts
        ])  # fmt: skip

    def pictures(self, conditions: Conditions, seeds: Sequence[int]) -> list[Image.Image]:
        """Draw pictures from conditions; as `latents`."""
        return self.decode(self.latents(conditions, seeds))

    def drawn(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """Draw pictures of prompts, one for each seed."""
        return self.decode(self.drawn_latents(prompts, seeds))

    def drawn_latents(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Draw latents of prompts, one for each seed."""
        distinct = list(dict.fromkeys(prompts))
        places = torch.tensor([distinct.index(prompt) for prompt in prompts])
        return self.latents(rows(self.family.encode(distinct), places), seeds)

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of latents, a batch at a time."""
        return [picture for part in latents.split(self.drawing.batch_size) for picture in self.family.decode(part)]
