"""The collateral report: what is drawn for it, what is measured on it by hand, and where it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from salun_diffusers.diffusion import collateral_prompts
from salun_diffusers.diffusion.collateral import CollateralPictures, measure_collateral
from salun_diffusers.diffusion.collateral_prompts import Collateral, collateral_pictures
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.presets.known import find_concept
from salun_diffusers.diffusion.presets.shapes import shape, style
from salun_diffusers.diffusion.sampler import Sampler
from salun_diffusers.programs.erase import main
from salun_diffusers.reports.intervals import wilson_interval
from salun_diffusers.reports.report import EvaluationReport

UNET = "pipeline/unet/diffusion_pytorch_model.safetensors"
BLACK, GREY, WHITE = (Image.new("RGB", (64, 64), level) for level in ("#000000", "#646464", "#ffffff"))


class Brightness:
    """Black is a heart, grey a moon, white nothing; every picture is red."""

    protocol = "brightness"

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        names = {0: "shape:heart", 100: "shape:moon"}
        return [frozenset({names.get(one.getpixel((0, 0))[0], "shape:none"), "colour:red"}) for one in pictures]


class TestWhatIsDrawn:
    @pytest.mark.parametrize("concept", [shape("star", "paper"), style("striped", "paper")], ids=["shape", "style"])
    def test_of_the_demo_model_is_all_else_that_it_knows(self, concept) -> None:
        asked = collateral_pictures(concept, clip=False)
        groups = dict.fromkeys(one.group for one in asked)
        assert list(groups) == ["neighbours", "colours", "backgrounds", "styles", "everyday captions"]
        name = concept.name
        assert not [one.prompt for one in asked if name in one.prompt]
        assert len({(one.prompt, one.number, one.group) for one in asked}) == len(asked)
        for group, kind in (("colours", "colour:"), ("backgrounds", "background:"), ("styles", "style:")):
            rows = [one for one in asked if one.group == group]
            labels = {label for one in rows for label in one.wanted}
            assert all(len(one.wanted) == 2 for one in rows)
            assert len({label for label in labels if label.startswith(kind)}) >= 2
            assert not labels & concept.target_labels

    def test_of_other_models_waits_for_a_clip_that_tells_words_apart(self, sd14: Path) -> None:
        concept = find_concept(
            EraseConfig(concept="a dog", forget_prompt=("a photo of dogs",), anchor_prompt=("a photo of a cat",))
        )
        assert not [one for one in collateral_pictures(concept, clip=False) if one.others]
        asked = [one for one in collateral_pictures(concept, clip=True) if one.others]
        assert {one.group for one in asked} == {"counting", "colours", "positions"}
        assert all(one.prompt not in one.others and len(one.others) >= 2 for one in asked)
        assert not [one for one in asked if "dogs" in one.prompt]
        captions = [one.prompt for one in collateral_pictures(concept, clip=True) if one.group == "everyday captions"]
        assert len(captions) >= 120 and not [prompt for prompt in captions if "dog" in prompt.split()]


class TestWhatIsMeasured:
    asked = (
        Collateral("a heart", "neighbours", 0, frozenset({"shape:heart"})),
        Collateral("a heart", "neighbours", 1, frozenset({"shape:heart"})),
        Collateral("a moon", "neighbours", 0, frozenset({"shape:moon"})),
        Collateral("a red heart", "colours", 0, frozenset({"shape:heart", "colour:red"})),
        Collateral("a blue heart", "colours", 0, frozenset({"shape:heart", "colour:blue"})),
        Collateral("a thing", "everyday captions", 0),
        Collateral("a thing", "everyday captions", 1),
    )

    def test_is_derived_by_hand(self) -> None:
        """One heart of two turns into a moon; the red heart stays; a thing of two turns from white to black."""
        before = CollateralPictures(self.asked, (BLACK, BLACK, GREY, BLACK, BLACK, WHITE, WHITE))
        after = CollateralPictures(self.asked, (BLACK, GREY, GREY, BLACK, BLACK, WHITE, BLACK))
        request = SimpleNamespace(config=EraseConfig(concept="star"), concept=SimpleNamespace(detector="none"))
        pairs, alone = measure_collateral(request, Brightness(), before, after, "by hand")
        found = [(pair.name, pair.after.group, pair.before.value, pair.after.value) for pair in pairs]
        assert found == [
            ("a heart", "neighbours", 1, 0.5),
            ("a moon", "neighbours", 1, 1),
            ("colours are right", "words", 0.5, 0.5),
        ]
        assert pairs[0].after.interval == wilson_interval(1, 2)
        assert [(item.name, item.value) for item in alone] == [("pixel drift at equal seed", 0.5)]

    def test_the_distance_of_kernels_is_nought_where_nothing_changed_and_has_an_interval(self) -> None:
        """Noise of one kind at other seeds is at 0; another kind is far from it."""
        import numpy as np

        rng = np.random.default_rng(0)

        def noise(count: int, low: int) -> tuple[Image.Image, ...]:
            return tuple(
                Image.fromarray(rng.integers(low, low + 99, (64, 64, 3)).astype("uint8")) for _ in range(count)
            )

        asked = tuple(Collateral("a thing", "everyday captions", number) for number in range(24))
        before = CollateralPictures(asked, noise(24, 0), noise(24, 0))
        request = SimpleNamespace(config=EraseConfig(concept="star"), concept=SimpleNamespace(detector="demo"))
        (pair,), _ = measure_collateral(request, Brightness(), before, CollateralPictures(asked, noise(24, 150)), "")
        assert pair.name == "KID (demo features)"
        assert pair.before.interval is not None and pair.before.interval[0] <= 0 <= pair.before.interval[1]
        assert pair.after.interval is not None and pair.after.interval[0] > pair.before.interval[1]


def test_a_run_has_it_in_its_report_and_nothing_else_changes(
    small_run, tmp_path, tiny_clip, monkeypatch, capsys
) -> None:
    """With CLIP: neighbours by their score, words by the nearest sentence, everyday captions, KID; once a line each.

    Its plan says before what is drawn for it: two guided passes a step, of which there are two.
    """
    monkeypatch.setattr(collateral_prompts, "_CAPTIONS", 3)
    monkeypatch.setattr(collateral_prompts, "_PICTURES", 12)
    for name in ("_COUNTED", "_COLOURED", "_PLACED"):
        monkeypatch.setattr(collateral_prompts, name, getattr(collateral_prompts, name)[:2])
    with_it, without = tmp_path / "with", tmp_path / "without"
    drawn, pictures = [], Sampler.pictures
    monkeypatch.setattr(
        Sampler, "pictures", lambda self, *words: drawn.append((words[2], len(words[0]))) or pictures(self, *words)
    )
    assert main(small_run(dry_run=True, collateral=True, clip=tiny_clip)) == 0
    (planned,) = re.findall(r"collateral ([\d,]+)[,;]", capsys.readouterr().out)
    assert main(small_run(output_dir=with_it, collateral=True, clip=tiny_clip)) == 0
    assert int(planned.replace(",", "")) == 4 * sum(count for name, count in drawn if name.endswith("collateral"))
    assert main(small_run(output_dir=without)) == 0
    assert (with_it / UNET).read_bytes() == (without / UNET).read_bytes()
    report = EvaluationReport.from_json(json.loads((with_it / "report.json").read_text()))
    names = [pair.name for pair in report.collateral]
    assert names[-5:] == [
        "counting are right", "colours are right", "positions are right", "CLIP score", "KID (clip features)",
    ]  # fmt: skip
    assert all(pair.after.interval for pair in report.collateral)
    assert [item.name for item in report.collateral_drift] == ["pixel drift at equal seed"]
    html = (with_it / "report.html").read_text()
    assert html.count("<h2>What else changed</h2>") == 1 and "KID (clip features)" in html
    assert "What else changed" not in (without / "report.html").read_text()


def test_a_model_without_prompts_has_none(refused, empty_folder, tiny_ddpm) -> None:
    words = dict.fromkeys(("forget_prompt", "retain_prompts"))
    refused(
        "--collateral draws captions", collateral=True, pretrained_model_name_or_path=tiny_ddpm, concept="0",
        anchor_prompt="1", **words,
    )  # fmt: skip
