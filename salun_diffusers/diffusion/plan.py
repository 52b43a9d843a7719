"""What a run would do, for `--dry_run`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.config import EraseConfig


def plan(config: EraseConfig, concept: Concept, base: Path) -> str:
    """The resolved configuration and the steps that would follow, as text."""
    lines = [
        json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False),
        f"base      {base}",
        f"forget    {len(concept.forget_prompts)} prompts, first: {concept.forget_prompts[0]!r}",
        f"anchor    {len(concept.anchor_prompts)} prompts, first: {concept.anchor_prompts[0]!r}",
        f"retain    {len(concept.retain_prompts)} prompts, first: {concept.retain_prompts[0]!r}",
        f"draw      {config.num_forget_images} + {config.num_retain_images} latents of "
        f"{config.num_inference_steps} steps",
        f"mask      {config.mask}, ratio {config.mask_ratio:g}, saliency guidance {config.saliency_guidance:g}",
        f"fine-tune {config.max_train_steps or f'{config.num_train_epochs} epoch(s)'}"
        f"{' steps' if config.max_train_steps else ''}, batch {config.train_batch_size} + {config.train_batch_size}, "
        f"Adam {config.learning_rate:g} ({config.lr_scheduler}), retain weight {config.retain_weight:g}, "
        f"{config.recipe}",
        f"report    detector {'none' if config.detector == 'none' else concept.detector}, "
        f"{config.num_validation_images} pictures per prompt",
    ]
    return "\n".join(lines) + "\n"
