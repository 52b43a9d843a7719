"""Pipelines that have been changed a little, and LoRA of the change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from salun_diffusers.files.loading import load_folder


@pytest.fixture(scope="session")
def moved(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline with all weights of its denoiser moved."""
    return _moved(tiny_pipeline, tmp_path_factory)


@pytest.fixture(scope="session")
def moved_xl(sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of Stable Diffusion XL."""
    return _moved(sdxl, tmp_path_factory)


def _moved(base: Path, folders: pytest.TempPathFactory) -> Path:
    from diffusers import DiffusionPipeline

    pipe = load_folder(DiffusionPipeline, base)
    with torch.no_grad():
        for number, parameter in enumerate(pipe.unet.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    folder = folders.mktemp("moved") / "pipeline"
    pipe.save_pretrained(folder)
    return folder
