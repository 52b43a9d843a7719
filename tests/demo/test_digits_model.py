"""The embedded digits model: whole, small, and able to draw what it is asked for."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from PIL import Image

from salun_diffusers import ClassConditionalDDPMPipeline
from salun_diffusers.diffusion.families.ddpm import ClassConditionalDDPM
from salun_diffusers.evaluation.detectors import make_detector
from salun_diffusers.files.component_files import check_complete
from salun_diffusers.files.pipeline_folder import EMBEDDED, embedded_detector
from salun_diffusers.pictures.picture_sources import load_pictures

DIGITS, NAMES = EMBEDDED["digits"], tuple(map(str, range(10)))


def test_the_weights_are_complete_small_and_no_pickles() -> None:
    check_complete(DIGITS)
    files = [path for path in DIGITS.parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    assert not {path.suffix for path in files} & {".bin", ".ckpt", ".pt", ".pth", ".pkl"}
    assert embedded_detector("digits").is_dir()


def test_it_draws_the_digits_that_it_is_asked_for() -> None:
    """Forty samples, of which the model card's rate of 0.99 leaves at most a few wrong."""
    family = ClassConditionalDDPM(DIGITS, device=torch.device("cpu"))
    asked = NAMES * 4
    pictures = family.decode(family.generate(asked, range(40), num_inference_steps=20, guidance_scale=2.0))
    assert {picture.size for picture in pictures} == {(32, 32)}
    found = make_detector("digits").labels(pictures)
    assert sum(f"digit:{name}" in labels for name, labels in zip(asked, found, strict=True)) >= 36


def test_its_detector_knows_the_real_digits_and_blanks() -> None:
    images = load_pictures("digits")[0].resized(32)
    some = slice(0, 300)
    pictures = [Image.fromarray(pixels[0].numpy()) for pixels in images.pixels[some]]
    found = make_detector("digits").labels(pictures)
    right = sum(f"digit:{label}" in labels for label, labels in zip(images.labels[some].tolist(), found, strict=True))
    assert right >= 297
    assert make_detector("digits").labels([Image.new("L", (32, 32), 0)]) == [frozenset({"digit:none"})]


def test_it_carries_the_pipeline_of_this_package() -> None:
    """The copy in the folder is what others run with trust_remote_code."""
    ours = Path(inspect.getfile(ClassConditionalDDPMPipeline))
    assert (DIGITS / ours.name).read_bytes() == ours.read_bytes()


def test_it_loads_without_being_told_a_data_type() -> None:
    pipe = ClassConditionalDDPMPipeline.from_pretrained(DIGITS)
    assert pipe.unet.dtype == torch.float32
    assert pipe.labels.keys() == set(NAMES)


@pytest.mark.parametrize("name", ["demo", "digits"])
def test_every_embedded_model_has_its_detector(name: str) -> None:
    assert make_detector(name).labels([Image.new("RGB", (64, 64) if name == "demo" else (32, 32))])
