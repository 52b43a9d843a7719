"""Numbers for Stable Diffusion: presets of its concepts, and free text."""

from __future__ import annotations

import dataclasses

from salun_diffusers.diffusion.config import Recipe
from salun_diffusers.diffusion.settings import Length, Numbers

# The official script's values (Unlearn-Saliency@a6e89fd, SD/train-scripts/nsfw_removal.py and SD/README.md).
_PAPER = Numbers(
    num_forget_images=800,
    num_anchor_images=0,
    num_retain_images=800,
    num_inference_steps=50,
    guidance_scale=7.5,
    generation_batch_size=8,
    saliency_guidance=7.5,
    saliency_batch_size=8,
    train_batch_size=8,
    length=Length(1, "epochs"),
    learning_rate=1e-5,
    lr_scheduler="constant",
    retain_weight=0.1,
    snr_power=0.0,
    empty_prompt_share=0.0,
    num_validation_images=4,
)

STABLE_DIFFUSION: dict[Recipe, Numbers] = {
    "paper": _PAPER,
    "frozen_teacher": dataclasses.replace(_PAPER, lr_scheduler="cosine", empty_prompt_share=0.2),
}
