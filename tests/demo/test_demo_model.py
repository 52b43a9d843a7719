"""The embedded pipeline and its detector: complete, small, and good at what they are for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from salun_diffusers.demo.detector_training import GROUPS, detector_batch, group_slices
from salun_diffusers.demo.renderer import negative, render, sample_scene
from salun_diffusers.demo.vocabulary import SHAPES, describe
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.detectors import GroupDetector
from salun_diffusers.files.component_files import check_complete
from salun_diffusers.files.pipeline_folder import EMBEDDED

DEMO = EMBEDDED["demo"]
DETECTOR = DEMO.parent / "detector"


@pytest.fixture(scope="module")
def family() -> StableDiffusion:
    return StableDiffusion(DEMO, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def detector() -> GroupDetector:
    return GroupDetector(DETECTOR)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_weights_are_complete_small_and_no_pickles() -> None:
    check_complete(DEMO)
    assert size(DEMO) + size(DETECTOR) <= 20_000_000
    assert size(DETECTOR) <= 2_000_000
    assert not {path.suffix for path in DEMO.parent.rglob("*")} & {".bin", ".ckpt", ".pt", ".pth", ".pkl"}


def test_it_loads_and_draws_without_being_told_a_data_type() -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(DEMO)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a photo of a circle", num_inference_steps=2).images[0]
    assert picture.size == (64, 64)


def test_the_detector_knows_fresh_renders(detector: GroupDetector) -> None:
    """400 scenes that nobody has seen; the model card's figure is measured on 5,000."""
    images, labels = detector_batch(np.random.default_rng(2_000_003), 400, augment=False)
    pictures = [Image.fromarray(((image.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()) for image in images]
    found = detector.labels(pictures)
    for column, group in enumerate(GROUPS):
        names = detector.names[group_slices()[group]]
        known = [row for row in range(len(labels)) if labels[row, column] >= 0]
        right = sum(names[int(labels[row, column])] in found[row] for row in known)
        assert right / len(known) >= 0.98, group


def test_the_detector_sees_nothing_in_blanks_and_pieces(detector: GroupDetector) -> None:
    rng = np.random.default_rng(77)
    found = detector.labels([negative(rng) for _ in range(200)])
    assert sum("shape:none" in labels for labels in found) >= 190


def test_detector_labels_do_not_depend_on_the_batch(detector: GroupDetector) -> None:
    rng = np.random.default_rng(5)
    pictures = [render(sample_scene(rng)) for _ in range(70)]
    assert detector.labels(pictures)[69] == detector.labels(pictures[69:])[0]


def test_the_pipeline_draws_what_is_asked(family: StableDiffusion, detector: GroupDetector) -> None:
    """Four pictures of each shape; 36 of 40 right would be 0.9. README has the figure on 600."""
    prompts = [describe(shape) for shape in SHAPES for _ in range(4)]
    latents = family.generate(prompts, range(len(prompts)), num_inference_steps=12, guidance_scale=3.0)
    found = detector.labels(family.decode(latents))
    wanted = [f"shape:{shape}" for shape in SHAPES for _ in range(4)]
    assert sum(label in labels for label, labels in zip(wanted, found, strict=True)) >= 36


@pytest.mark.slow
@pytest.mark.parametrize("concept", ["circle", "outlined"])
def test_a_concept_is_erased_and_the_others_stay(concept: str, tmp_path: Path) -> None:
    from salun_diffusers.programs.erase import main

    words = ["--concept", concept, "--pretrained_model_name_or_path", "demo", "--output_dir", str(tmp_path / "run")]
    assert main(words) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["verdict"] == "erased"
    assert report["receipt"]["violations"] == 0


def test_a_detector_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json is required"):
        GroupDetector(tmp_path)
