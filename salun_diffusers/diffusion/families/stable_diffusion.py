"""Stable Diffusion 1.x and 2.x: conditioned on the last hidden states of one CLIP text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import StableDiffusionPipeline

from salun_diffusers.diffusion.families.family import Conditions
from salun_diffusers.diffusion.families.latent_unet import LatentUNetFamily


class StableDiffusion(LatentUNetFamily):
    """A Stable Diffusion pipeline, seen by the erasing code."""

    kind = "Stable Diffusion pipeline"
    pipeline = StableDiffusionPipeline
    options = {"safety_checker": None, "requires_safety_checker": False}  # noqa: RUF012  # never written to

    def states(self, tokens: Sequence[Any], *, empty: bool = False) -> Conditions:
        """CLIP's last hidden states, `(n, tokens, width)`."""
        (read,), encoder = tokens, self.pipe.text_encoder
        mask = read.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
        return {"encoder_hidden_states": encoder(read.input_ids, attention_mask=mask)[0]}
