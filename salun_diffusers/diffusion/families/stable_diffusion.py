"""Stable Diffusion 1.x and 2.x: a U-Net on VAE latents, conditioned on CLIP text states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from salun_diffusers.diffusion.families.family import Conditions
from salun_diffusers.diffusion.families.unet_family import UNetFamily
from salun_diffusers.files.component_files import unreadable_parts
from salun_diffusers.files.loading import load_folder


class StableDiffusion(UNetFamily):
    """A Stable Diffusion pipeline, seen by the erasing code."""

    def __init__(
        self, folder: Path, *, device: torch.device, dtype: torch.dtype = torch.float32, variant: str | None = None
    ) -> None:
        """Load a pipeline folder.

        Args:
            folder: A local diffusers folder.
            device: Where everything goes.
            dtype: Of VAE and text encoder; the denoiser is always loaded in fp32.
            variant: Variant of the weight files.

        Raises:
            UserError: If the folder does not hold a complete pipeline.
        """

        def load() -> object:
            unused = {"safety_checker": None, **dict.fromkeys(unreadable_parts(folder, variant))}
            return load_folder(
                StableDiffusionPipeline, folder, dtype={"unet": torch.float32, "default": dtype}, variant=variant,
                requires_safety_checker=False, use_safetensors=True, **unused,
            )  # fmt: skip

        super().__init__(load, "Stable Diffusion pipeline", folder, variant=variant, device=device, dtype=dtype)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditions:
        """CLIP's last hidden states, `(n, tokens, width)`, each prompt encoded alone."""
        states = []
        for prompt in prompts:
            tokens = self.pipe.tokenizer(
                self._converted(prompt), padding="max_length", max_length=self._limit, truncation=True,
                return_tensors="pt",
            )  # fmt: skip
            uses_mask = getattr(self.pipe.text_encoder.config, "use_attention_mask", False)
            mask = tokens.attention_mask.to(self.device) if uses_mask else None
            states.append(self.pipe.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0])
        return {"encoder_hidden_states": torch.cat(states).float()}

    def cut_words(self, prompt: str) -> str:
        """The words beyond the tokenizer's limit."""
        tokenizer = self.pipe.tokenizer
        ids, limit = tokenizer(self._converted(prompt), truncation=False, verbose=False).input_ids, self._limit
        return "" if len(ids) <= limit else str(tokenizer.decode(ids[limit - 1 : -1])).strip()

    def _converted(self, prompt: str) -> str:
        """The prompt as the pipeline itself gives it to the tokenizer: tokens of several vectors are written out."""
        return str(self.pipe.maybe_convert_prompt(prompt, self.pipe.tokenizer))

    @property
    def _limit(self) -> int:
        """The longest sequence that the encoder takes; not every tokenizer says one."""
        encoder = int(self.pipe.text_encoder.config.max_position_embeddings)
        return min(int(self.pipe.tokenizer.model_max_length), encoder)

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], *, num_inference_steps: int, guidance_scale: float
    ) -> Tensor:
        """Sample latents with the pipeline's own scheduler; each item has its own generator on the CPU."""
        distinct = dict.fromkeys(prompts)
        encoded = dict(zip(distinct, self.encode(list(distinct))["encoder_hidden_states"], strict=True))
        empty = self.encode([""])["encoder_hidden_states"].expand(len(prompts), -1, -1)
        with self._autocast():
            latents = self.pipe(
                prompt_embeds=torch.stack([encoded[prompt] for prompt in prompts]),
                negative_prompt_embeds=empty,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                output_type="latent",
            ).images
        return torch.as_tensor(latents).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of scaled latents; large ones one at a time, as eight of 512 pixels at once take 6.4 GB."""
        vae, at_once = self.pipe.vae, max(1, 64 * 64 // latents[0, 0].numel())
        scaled = latents.to(device=self.device, dtype=vae.dtype) / vae.config.scaling_factor
        images = torch.cat([vae.decode(one).sample.float() for one in scaled.split(at_once)])
        pictures: list[Image.Image] = self.pipe.image_processor.postprocess(images, output_type="pil")
        return pictures

    def release_encoders(self) -> None:
        """Free VAE and text encoder."""
        self.pipe.vae = self.pipe.text_encoder = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
