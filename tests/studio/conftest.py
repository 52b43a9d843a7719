"""A run that erased something small, to be looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from salun_diffusers.evaluation.drawing_pipeline import load_pipeline
from salun_diffusers.programs.erase import main
from salun_diffusers.studio.easel import Asked, Easel
from salun_diffusers.studio.opened import Drawing, opened
from salun_diffusers.studio.shown import Where


@pytest.fixture(scope="session")
def erased_run(small_run: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder; a patch lies in it, too."""
    folder = tmp_path_factory.mktemp("studio") / "run"
    assert main(small_run(output_dir=folder, save_patch=True, learning_rate=0.02)) == 0
    return folder


@pytest.fixture(scope="session")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of the same shape with other weights."""
    from tiny_models import build_pipeline

    folder = build_pipeline(tmp_path_factory.mktemp("models") / "other")
    pipe = plain(folder)
    with torch.no_grad():
        next(pipe.unet.parameters()).add_(1.0)
    pipe.unet.save_pretrained(folder / "unet")
    return folder


@pytest.fixture
def easel(erased_run: Path) -> Iterator[Easel]:
    """At the base of the run."""
    with opened([str(erased_run)], Where(), Drawing(num_inference_steps=2)) as (made, _):
        yield made


@pytest.fixture(scope="session")
def drawn_plainly() -> Callable[[Path, Asked], Image.Image]:
    """A picture as the folder by itself draws it, loaded as anybody loads it."""
    pipes: dict[Path, Any] = {}

    def drawn(folder: Path, asked: Asked) -> Image.Image:
        if folder not in pipes:
            pipes[folder] = plain(folder)
        pipe = pipes[folder]
        given = {"class_labels": [asked.prompt]} if hasattr(pipe, "labels") else {"prompt": [asked.prompt]}
        generator = [torch.Generator().manual_seed(asked.seed)]
        return pipe(
            **given, generator=generator, guidance_scale=asked.guidance, num_inference_steps=asked.steps
        ).images[0]  # fmt: skip

    return drawn


def plain(folder: Path) -> Any:
    """A pipeline, loaded."""
    return load_pipeline(folder, device=torch.device("cpu"), dtype=torch.float32, variant=None, scheduler=None)
