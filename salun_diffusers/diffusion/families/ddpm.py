"""Class-conditional DDPM: a U-Net on pixels, conditioned on a class id; its "prompts" are the names of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from salun_diffusers.diffusion.families.attention import ATTENTION
from salun_diffusers.diffusion.families.family import Conditions
from salun_diffusers.diffusion.families.unet_family import UNetFamily
from salun_diffusers.pipelines.class_conditional_ddpm import ClassConditionalDDPMPipeline


class ClassConditionalDDPM(UNetFamily):
    """A class-conditional DDPM, seen by the erasing code. The empty prompt is the null class."""

    kind = "class-conditional DDPM"
    has_encoder = False
    pipeline = ClassConditionalDDPMPipeline
    attention = ATTENTION["UNet2DModel"]

    def _load(self, folder: Path, dtype: torch.dtype, variant: str | None) -> Any:
        return ClassConditionalDDPMPipeline.from_pretrained(
            folder, dtype=torch.float32, variant=variant, use_safetensors=True
        )

    def encode(self, prompts: Sequence[str]) -> Conditions:
        """Class ids, `(n,)`; an empty prompt is the null class."""
        ids = [self.pipe.get_label_ids(name)[0] if name else self.pipe.null_class_id for name in prompts]
        return {"class_labels": torch.tensor(ids, device=self.device)}

    def cut_words(self, prompt: str) -> str:
        """Nothing: a class is never too long."""
        return ""

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], *, num_inference_steps: int, guidance_scale: float
    ) -> Tensor:
        """Draw pixels in [-1, 1] with the pipeline's own scheduler; each item has its own generator on the CPU."""
        return self.generate_from(
            self.encode(prompts), seeds, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
        )

    @torch.no_grad()
    def generate_from(
        self, wanted: Conditions, seeds: Sequence[int], *, num_inference_steps: int, guidance_scale: float
    ) -> Tensor:
        """`generate` from class ids, one for each seed."""
        with self.autocast():
            drawn = self.pipe(
                wanted["class_labels"].tolist(),
                guidance_scale=guidance_scale,
                num_inference_steps=num_inference_steps,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="latent",
            )
        return torch.as_tensor(drawn.images).float()

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of pixels in [-1, 1]; grey ones where there is one channel."""
        images = (latents.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
        pictures: list[Image.Image] = self.pipe.numpy_to_pil(images)
        return pictures

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels themselves: nothing encodes them."""
        return pixels, torch.zeros_like(pixels)

    def release_encoders(self) -> None:
        """Nothing to free: pixels need no encoder."""
