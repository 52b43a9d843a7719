"""The suite of probes: what is in it, of whom, and at which rates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from probed import evidence, subject

from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.red_team.lessons import ConceptPictures
from salun_diffusers.red_team.practice import ByLora, ByWeights
from salun_diffusers.red_team.probe_suite import Ingredients, Training, amount, full, looked_at, quick, readings, way_of
from salun_diffusers.red_team.relearning import Relearning
from salun_diffusers.red_team.side_doors import Completion, Inpainting

MADE_OF = Ingredients(("a photo of a square",), ("a star", "a photo of a square"), Training(1e-5, 1e-4, 1))


def test_quick_and_full_have_every_probe_once():
    mask = SaliencyMask.full({"weight": torch.zeros(2)})
    made_of = replace(MADE_OF, way=ByWeights(mask), seed=3)
    for suite in (quick, full):
        names = [probe.name for probe in suite(made_of)]
        assert len(names) == len(set(names))
        assert {"completion", "inpainting", "image to image", "added noise"} < set(names)
        learned = [probe for probe in suite(made_of) if isinstance(probe, Relearning)]
        assert {(type(one.way), one.learning_rate) for one in learned} == {(ByLora, 1e-4), (ByWeights, 1e-5)}
        assert {(one.seed, one.batch_size) for one in learned} == {(3, 1)}
    lora = next(probe for probe in full(made_of) if isinstance(probe, Relearning))
    assert (lora.way, lora.steps) == (ByLora(4), (0, 10, 25, 50, 100, 250, 500))
    assert "relearning by all weights from the concept" in [probe.name for probe in full(made_of)]
    assert sum(probe.name.endswith("all weights from the concept") for probe in full(MADE_OF)) == 1


def test_rates_are_those_of_a_models_size(tiny_pipeline):
    small = subject(tiny_pipeline, "tiny_pipeline").family
    large = SimpleNamespace(denoiser=torch.nn.Linear(5000, 5000, device="meta"))
    assert Training.of(small) == Training(1e-4, 3e-3, 4)
    assert Training.of(large) == Training(1e-5, 1e-4, 1)


def test_the_base_is_not_taught_what_it_knows(tiny_pipeline):
    one, base, floor = (subject(tiny_pipeline, "tiny_pipeline", name) for name in ("erased", "base", "floor"))
    shown = evidence(one, base)
    probes = (Relearning(lessons=ConceptPictures(2), steps=(0, 1)), Completion((0.5,)), Inpainting())
    assert looked_at(probes[0], shown, (floor,)) == (one, floor)
    said: list[int] = []
    found = readings(probes, shown, (floor,), said.append)
    assert {name: [*of] for name, of in found.items()} == {
        probes[0].name: ["erased", "floor"],
        "completion": ["erased", "base", "floor"],
        "inpainting": ["erased", "base", "floor"],
    }
    assert all(curve.subject == name for of in found.values() for name, one in of.items() for curve in one.curves)
    assert sum(said) == amount(probes, shown, (floor,))
    json.dumps([curve.to_json() for of in found.values() for one in of.values() for curve in one.curves])


def test_a_runs_mask_says_which_weights_it_moved(tmp_path: Path):
    assert way_of(str(tmp_path)) == ByWeights()
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    assert way_of(str(tmp_path)) == ByWeights()
    mask = SaliencyMask.from_bools({"weight": torch.tensor([True, False])})
    mask.save(tmp_path / "mask.safetensors")
    assert way_of(str(tmp_path)) == ByWeights(mask)
    (tmp_path / "mask.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError):
        way_of(str(tmp_path))
