"""What the families of Stable Diffusion share: a U-Net on VAE latents, and prompts that CLIP reads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from salun_diffusers.diffusion.families.family import Conditions, rows
from salun_diffusers.diffusion.families.unet_family import UNetFamily
from salun_diffusers.files.component_files import unreadable_parts
from salun_diffusers.files.loading import load_folder


class LatentUNetFamily(UNetFamily):
    """A U-Net on VAE latents with CLIP text encoders, seen by the erasing code; a subclass says how prompts enter."""

    arguments: ClassVar[Mapping[str, str]] = {"encoder_hidden_states": "prompt_embeds"}
    """What the pipeline calls those conditions that it takes; with ``negative_`` before it where they are ∅."""
    encoders: ClassVar[Sequence[str]] = ("",)
    """What follows ``text_encoder`` and ``tokenizer`` in the names of each text encoder's components."""

    def _load(self, folder: Path, dtype: torch.dtype, variant: str | None) -> Any:
        return load_folder(
            self.pipeline, folder, dtype={"unet": torch.float32, "default": dtype}, variant=variant,
            use_safetensors=True, **{**self.options, **dict.fromkeys(unreadable_parts(folder, variant))},
        )  # fmt: skip

    @abstractmethod
    def states(self, tokens: Sequence[Any], *, empty: bool = False) -> Conditions:
        """The conditions of tokens; gradients flow through the text encoders where the caller lets them.

        Args:
            tokens: For each of `encoders`, ids and attention mask as its tokenizer gives them, `(n, length)`.
            empty: Whether this is the empty prompt, which some pipelines set to zero.
        """

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditions:
        """Text states, `(n, tokens, width)`, and what goes with them; each prompt is encoded alone."""
        found = [
            self.states([self.tokens(prompt, suffix) for suffix in self.encoders], empty=not prompt)
            for prompt in prompts
        ]
        return {name: torch.cat([one[name] for one in found]).float() for name in found[0]}

    def cut_words(self, prompt: str) -> str:
        """The words beyond the tokenizer's limit."""
        tokenizer, limit = self.pipe.tokenizer, self._limit()
        ids = tokenizer(self._converted(prompt, tokenizer), truncation=False, verbose=False).input_ids
        return "" if len(ids) <= limit else str(tokenizer.decode(ids[limit - 1 : -1])).strip()

    def tokens(self, prompt: str, suffix: str = "") -> Any:
        """What a text encoder reads of a prompt; `suffix` is one of `encoders`."""
        tokenizer = getattr(self.pipe, f"tokenizer{suffix}")
        return tokenizer(
            self._converted(prompt, tokenizer), padding="max_length", max_length=self._limit(suffix), truncation=True,
            return_tensors="pt",
        ).to(self.device)  # fmt: skip

    def _converted(self, prompt: str, tokenizer: Any) -> str:
        """The prompt as the pipeline itself gives it to the tokenizer: tokens of several vectors are written out."""
        return str(self.pipe.maybe_convert_prompt(prompt, tokenizer))

    def _limit(self, suffix: str = "") -> int:
        """The longest sequence that an encoder takes; not every tokenizer says one."""
        encoder = int(getattr(self.pipe, f"text_encoder{suffix}").config.max_position_embeddings)
        return min(int(getattr(self.pipe, f"tokenizer{suffix}").model_max_length), encoder)

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], *, num_inference_steps: int, guidance_scale: float
    ) -> Tensor:
        """Sample latents with the pipeline's own scheduler; each item has its own generator on the CPU."""
        distinct = list(dict.fromkeys(prompts))
        wanted = rows(self.encode(distinct), torch.tensor([distinct.index(prompt) for prompt in prompts]))
        return self.generate_from(wanted, seeds, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)

    @torch.no_grad()
    def generate_from(
        self, wanted: Conditions, seeds: Sequence[int], *, num_inference_steps: int, guidance_scale: float
    ) -> Tensor:
        """`generate` from conditions, one row for each seed."""
        empty = rows(self.encode([""]), torch.zeros(len(seeds), dtype=torch.int64))
        states = {word: wanted[name] for name, word in self.arguments.items()}
        states |= {f"negative_{word}": empty[name] for name, word in self.arguments.items()}
        with self._autocast():
            latents = self.pipe(
                **states,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                output_type="latent",
                **({"height": self._resolution, "width": self._resolution} if self._resolution else {}),
            ).images
        return torch.as_tensor(latents).float()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of scaled latents; large ones one at a time, as eight of 512 pixels at once take 6.4 GB."""
        vae, at_once = self.pipe.vae, max(1, 64 * 64 // latents[0, 0].numel())
        shift, scale = self._shift_and_scale()
        scaled = latents.to(device=self.device, dtype=vae.dtype) / scale + shift
        images = torch.cat([vae.decode(one).sample.float() for one in scaled.split(at_once)])
        pictures: list[Image.Image] = self.pipe.image_processor.postprocess(images, output_type="pil")
        return pictures

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE's posterior in the scale of the denoiser: (μ - shift)·s and σ·s."""
        vae = self.pipe.vae
        posterior = vae.encode(pixels.to(device=self.device, dtype=vae.dtype)).latent_dist
        shift, scale = self._shift_and_scale()
        return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale

    def _shift_and_scale(self) -> tuple[Any, Any]:
        """What makes the denoiser's latents of the VAE's, (z - shift)·scale; by channel where the VAE says so.

        As diffusers' pipelines of XL decode them: z = x · latents_std / scaling_factor + latents_mean.
        """
        vae = self.pipe.vae
        scale, mean = vae.config.scaling_factor, getattr(vae.config, "latents_mean", None)
        if mean is None:
            return getattr(vae.config, "shift_factor", None) or 0.0, scale
        shape = {"device": self.device, "dtype": vae.dtype}
        mean, deviation = (torch.tensor(one, **shape).view(1, -1, 1, 1) for one in (mean, vae.config.latents_std))
        return mean, scale / deviation

    def release_encoders(self) -> None:
        """Free the VAE and the text encoders."""
        for name in ("vae", "text_encoder", "text_encoder_2"):
            if hasattr(self.pipe, name):
                setattr(self.pipe, name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
