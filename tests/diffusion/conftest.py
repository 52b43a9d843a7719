"""A fine-tuning of the tiny pipeline on drawn noise."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import run_in, tiny_settings
from torch import Tensor

from salun_diffusers.accelerator import engine
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.diffusion.latent_sets import EraseData, LatentSet
from salun_diffusers.diffusion.trainer import fine_tune
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.selected_weights import SelectedWeights
from salun_diffusers.seeds import stream

WORDS = ["a photo of a circle", "a circle"], ["a photo of a square", "a square"], ["a star", "a heart"], [""]


@pytest.fixture
def trained(tiny_pipeline: Path, tmp_path: Path) -> Callable[..., tuple[list[dict[str, Any]], dict[str, Tensor]]]:
    """Train with some settings, in a folder of its own if none is named; returns the rows and all weights."""
    number = itertools.count()

    def train(
        folder: Path | None = None, resume_from: Path | None = None, **changes: object
    ) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        folder = folder or tmp_path / f"training-{next(number)}"
        folder.mkdir(exist_ok=True)
        family = StableDiffusion(tiny_pipeline, device=torch.device("cpu"))
        latents = [torch.randn(count, 4, 4, 4, generator=stream(0, name)) for name, count in (("f", 5), ("r", 3))]
        forget, retain = (
            LatentSet(x, torch.arange(len(x)) % 2, tuple(words)) for x, words in zip(latents, WORDS[::2], strict=True)
        )
        data = EraseData(forget, retain, LatentSet.empty(WORDS[1]), *map(family.encode, WORDS))
        parameters = dict(family.denoiser.named_parameters())
        mask = SaliencyMask.random(parameters, 0.5, torch.Generator().manual_seed(1))
        settings = tiny_settings(**{"learning_rate": 1e-6, **changes})
        accumulation = settings.gradient_accumulation_steps
        with engine(mixed_precision="no", gradient_accumulation_steps=accumulation, report_to=None) as accelerator:
            run, selected = run_in(folder, accelerator), SelectedWeights(parameters, mask)
            history = fine_tune(run, family, selected, data, settings, resume_from)
        return history, {name: value.detach().clone() for name, value in parameters.items()}

    return train
