"""Stable Diffusion XL: two text encoders, a pooled embedding and the size of the picture beside the text states."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from salun_diffusers.diffusion.families.family import Conditions
from salun_diffusers.diffusion.families.latent_unet import LatentUNetFamily


class StableDiffusionXL(LatentUNetFamily):
    """A pipeline of Stable Diffusion XL's base model, seen by the erasing code (arXiv 2307.01952).

    Pictures have the wanted size or else the model's own, and are not cropped. The empty prompt is all zeros where the
    pipeline says so (`force_zeros_for_empty_prompt`), as the unconditional branch of guidance is there.
    """

    encoders = ("", "_2")
    kind = "Stable Diffusion XL pipeline"
    pipeline = StableDiffusionXLPipeline
    options = {"add_watermarker": False}  # noqa: RUF012  # never written to
    arguments = {"encoder_hidden_states": "prompt_embeds", "text_embeds": "pooled_prompt_embeds"}  # noqa: RUF012

    def _upcast(self, dtype: torch.dtype) -> None:
        """The VAE, whose activations exceed fp16; a copy, as it may be somebody else's, too."""
        if dtype == torch.float16 and self.pipe.vae.config.force_upcast:
            self.pipe.vae = copy.deepcopy(self.pipe.vae).to(torch.float32)

    def states(self, tokens: Sequence[Any], *, empty: bool = False) -> Conditions:
        """Both encoders' last hidden states but one side by side, the second's pooled projection, and the sizes."""
        found = [
            getattr(self.pipe, f"text_encoder{suffix}")(read.input_ids, output_hidden_states=True)
            for suffix, read in zip(self.encoders, tokens, strict=True)
        ]
        kept = 0.0 if empty and self.pipe.config.force_zeros_for_empty_prompt else 1.0
        side = self._resolution or self.pipe.default_sample_size * self.pipe.vae_scale_factor
        # Original size, corner of the crop, wanted size.
        sizes = torch.tensor([[side, side, 0, 0, side, side]], device=self.device).repeat(len(found[1].text_embeds), 1)
        return {
            "encoder_hidden_states": kept * torch.cat([one.hidden_states[-2] for one in found], dim=-1),
            "text_embeds": kept * found[1].text_embeds,
            "time_ids": sizes,
        }

    def predict(self, denoiser: nn.Module, noised: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        """ε or v, as the network answers."""
        beside = dict(conditions)
        states = beside.pop("encoder_hidden_states")
        answer: Tensor = denoiser(noised, timesteps, encoder_hidden_states=states, added_cond_kwargs=beside).sample
        return answer.float()
