"""Stable Diffusion 1.x and 2.x: conditioned on the last hidden states of one CLIP text encoder."""

from __future__ import annotations

from diffusers import StableDiffusionPipeline

from salun_diffusers.diffusion.families.family import Conditions
from salun_diffusers.diffusion.families.latent_unet import LatentUNetFamily


class StableDiffusion(LatentUNetFamily):
    """A Stable Diffusion pipeline, seen by the erasing code."""

    kind = "Stable Diffusion pipeline"
    pipeline = StableDiffusionPipeline
    options = {"safety_checker": None, "requires_safety_checker": False}  # noqa: RUF012  # never written to

    def _encode_one(self, prompt: str) -> Conditions:
        """CLIP's last hidden states, `(1, tokens, width)`."""
        tokens, encoder = self._tokens(prompt), self.pipe.text_encoder
        mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
        return {"encoder_hidden_states": encoder(tokens.input_ids, attention_mask=mask)[0]}
