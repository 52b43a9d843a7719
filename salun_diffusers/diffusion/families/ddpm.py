"""Class-conditional DDPM: a U-Net on pixels, conditioned on a class id; its "prompts" are the names of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from salun_diffusers.diffusion.families.family import Conditions
from salun_diffusers.diffusion.families.noise_schedule import NoiseSchedule
from salun_diffusers.errors import UserError
from salun_diffusers.pipelines.class_conditional_ddpm import ClassConditionalDDPMPipeline
from salun_diffusers.progress import loading_quietly


class ClassConditionalDDPM:
    """A class-conditional DDPM, seen by the erasing code. The empty prompt is the null class."""

    denoiser_folder = "unet"
    pipe: Any  # mypy does not see through diffusers' lazy imports.

    def __init__(
        self, folder: Path, *, device: torch.device, dtype: torch.dtype = torch.float32, variant: str | None = None
    ) -> None:
        """Load a pipeline folder.

        Args:
            folder: A local folder of `ClassConditionalDDPMPipeline`.
            device: Where everything goes.
            dtype: Precision of sampling; the weights are always loaded in fp32.
            variant: Variant of the weight files.

        Raises:
            UserError: If the folder does not hold a complete pipeline.
        """
        try:
            with loading_quietly():
                self.pipe = ClassConditionalDDPMPipeline.from_pretrained(
                    folder, dtype=torch.float32, variant=variant, use_safetensors=True
                )
        except (OSError, ValueError) as error:
            line = " ".join(str(error).split())[:300]
            raise UserError(f"{folder} cannot be loaded as a class-conditional DDPM: {line}") from error
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.to(device)
        self.denoiser: nn.Module = self.pipe.unet
        self.folder, self.device, self._dtype = folder, device, dtype
        self.noise_schedule = NoiseSchedule(self.pipe.scheduler, folder, device)
        self.num_train_timesteps = self.noise_schedule.num_train_timesteps

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
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            drawn = self.pipe(
                list(prompts),
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

    def release_encoders(self) -> None:
        """Nothing to free: pixels need no encoder."""

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of clean pixels."""
        return self.noise_schedule.noised(latents, noise, timesteps)

    def signal_to_noise(self, timesteps: Tensor) -> Tensor:
        """SNR of the schedule."""
        return self.noise_schedule.signal_to_noise(timesteps)

    def predict(self, denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """ε_θ(x_t, c)."""
        prediction: Tensor = denoiser(noised, timesteps, **conditions).sample.float()
        return self.noise_schedule.epsilon(prediction, noised, timesteps)
