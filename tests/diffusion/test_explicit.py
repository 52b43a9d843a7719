"""Explicit pictures are shown only to who has asked for them, whatever the concept is called; retained ones too."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from salun_diffusers.diffusion import request, run_report, start
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.presets.known import find_concept
from salun_diffusers.programs.erase import main


class TestWhatIsExplicit:
    @pytest.mark.parametrize(
        ("concept", "prompt"),
        [("naked people", "people at the beach"), ("x", "a photo of a nude woman"), ("Ｎａｋｅｄ", "a person")],
    )
    def test_free_text_by_its_words(self, retain_file, concept, prompt):
        asked = EraseConfig(
            concept=concept,
            forget_prompt=(prompt,),
            anchor_prompt=("a dressed person",),
            retain_prompts=str(retain_file),
        )
        assert find_concept(asked).explicit

    def test_other_free_text_is_not(self, retain_file):
        asked = EraseConfig(
            concept="Van Gogh", forget_prompt=("by Van Gogh",), anchor_prompt=("a painting",),
            retain_prompts=str(retain_file),
        )  # fmt: skip
        assert not find_concept(asked).explicit

    def test_a_harmless_preset_with_such_prompts_is(self):
        asked = EraseConfig(concept="circle", forget_prompt=("a nude person",), anchor_prompt=("a person",))
        assert find_concept(asked).explicit
        assert find_concept(EraseConfig(concept="nudity", forget_prompt=("a man",), anchor_prompt=("a cat",))).explicit


class Darkness:
    """Finds the concept in every picture that is darker than the middle of them all."""

    protocol = "darkness"

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        means = [float(np.asarray(one).mean()) for one in pictures]
        return [frozenset({"part"} if mean <= sorted(means)[len(means) // 2] else set()) for mean in means]


@pytest.mark.parametrize(
    ("looks", "flags", "expected"),
    [
        # Six pictures of the forget prompt; of three retained ones in each of four rows two are dark enough.
        (True, {}, {"forget": 6, "retain": 8}),
        (False, {"detector": "none"}, {"forget": 6, "retain": 12}),
        (True, {"show_explicit": True}, {"forget": 0, "retain": 0}),
    ],
)
def test_retained_pictures_pass_the_detector_too(small_run, tmp_path, monkeypatch, looks, flags, expected):
    find = request.find_concept
    labels = frozenset({"part"}) if looks else frozenset()
    monkeypatch.setattr(
        request, "find_concept", lambda *given: dataclasses.replace(find(*given), explicit=True, target_labels=labels)
    )
    monkeypatch.setattr(run_report, "blurred", lambda picture: Image.new("RGB", picture.size))
    if looks:
        monkeypatch.setattr(start, "make_detector", lambda *_: Darkness())
    assert main(small_run(output_dir=tmp_path / "run", num_validation_images=3, **flags)) == 0
    hidden = {"forget": 0, "retain": 0}
    for path in (tmp_path / "run" / "samples").glob("*.png"):
        hidden[path.name.split("-")[0]] += not np.asarray(Image.open(path)).any()
    assert hidden == expected


def test_a_harm_of_a_file_stays_blurred_and_leaves_no_latents(small_run, tmp_path, monkeypatch):
    """As nudity does; nobody looks for violence, so that every picture is blurred."""
    monkeypatch.setattr(run_report, "blurred", lambda picture: Image.new("RGB", picture.size))
    prompts = {"forget_prompt": None, "anchor_prompt": None, "retain_prompts": None}
    assert main(small_run(concept="violence", **prompts, output_dir=tmp_path / "run")) == 0
    samples = [*(tmp_path / "run" / "samples").glob("*.png")]
    assert samples and not any(np.asarray(Image.open(path)).any() for path in samples)
    left = {path.name for path in (tmp_path / "run").rglob("*.safetensors")} - {"mask.safetensors"}
    assert not left & {"forget.safetensors", "anchor.safetensors", "retain.safetensors"}
    assert not [*(tmp_path / "run" / "work").rglob("drawn/**/*.safetensors")]
