"""Strength by need: the line, the search on it, and what is left on disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tiny_settings
from torch import nn
from two_processes import run_two

from salun_diffusers.diffusion import strength as strength_module
from salun_diffusers.diffusion import strength_prompts
from salun_diffusers.diffusion.foreseen import disk_space
from salun_diffusers.diffusion.presets.shapes import shape, style
from salun_diffusers.diffusion.row_forwards import row_forwards
from salun_diffusers.diffusion.settings import UNLIMITED, Settings
from salun_diffusers.diffusion.strength import counted, weakest
from salun_diffusers.diffusion.strength_line import Line
from salun_diffusers.diffusion.strength_prompts import (
    reported_pictures,
    searched_pictures,
    strength_in_words,
    strength_pictures,
)
from salun_diffusers.diffusion.validation import report_seed
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.selected_weights import SelectedWeights
from salun_diffusers.programs.erase import main
from salun_diffusers.programs.verify import main as verify
from salun_diffusers.reports.intervals import wilson_interval
from salun_diffusers.reports.measurement import Measurement
from salun_diffusers.reports.report import EvaluationReport
from salun_diffusers.reports.strength import Need, StrengthCurve, StrengthPoint, decided

UNET = "pipeline/unet/diffusion_pytorch_model.safetensors"


def point(strength: float, gone: int, right: int | None = 100, steps: int = 0) -> StrengthPoint:
    """Rates in percent."""
    about = {"direction": "higher", "protocol": "by hand"}
    return StrengthPoint(
        strength,
        Measurement.rate("gone", gone, 100, **about),
        None if right is None else Measurement.rate("right", right, 100, **about),
        steps,
    )


class TestTheLine:
    def test_ends_are_exact_and_the_rest_is_never_written(self) -> None:
        """A half of one weight moves from -0.0 and 1 to 2 and 3: a quarter of the way is 0.5 and 1.5."""
        layer = nn.Linear(4, 1, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[2.0, 7.0, 3.0, -0.0]]))
        mask = SaliencyMask.from_bools({"weight": torch.tensor([[True, False, True, False]])})
        line = Line(SelectedWeights(dict(layer.named_parameters()), mask), {"weight": torch.tensor([-0.0, 1.0])})
        found = {}
        for s in (0.25, 0.0, 1.0):
            line.go_to(s)
            found[s] = layer.weight.detach().flatten().tolist()
            assert str(found[s][3]) == "-0.0" and found[s][1] == 7
        assert found[0.25][::2] == [0.5, 1.5]
        assert [str(x) for x in found[0.0][::2]] == ["-0.0", "1.0"]
        assert found[1.0][::2] == [2.0, 3.0]


class TestTheSearch:
    def search(self, gone: Callable[[float], int], target: float = 0.98) -> list[float]:
        asked: list[float] = []

        def measured(s: float) -> StrengthPoint:
            asked.append(s)
            return point(s, gone(s))

        points = weakest(measured, Need(target, 0.01))
        assert [one.strength for one in points] == sorted(asked) and len(set(asked)) == len(asked)
        return asked

    def test_closes_in_on_the_first_strength_that_reaches_the_target(self) -> None:
        """The step is at .4: after five points .5, then .375 not, .4375 and .40625 do."""
        assert self.search(lambda s: 99 if s >= 0.4 else 50) == [0, 0.25, 0.5, 0.75, 1, 0.375, 0.4375, 0.40625]

    def test_ends_after_five_points_where_none_reaches_it(self) -> None:
        assert self.search(lambda s: 97) == [0, 0.25, 0.5, 0.75, 1]

    def test_takes_the_weakest_of_those_that_do(self) -> None:
        points = [point(0, 1), point(0.25, 60), point(0.5, 98, 99), point(0.75, 100, 99), point(1, 100, 97)]
        curve = decided(points, Need(0.98, 0.01))
        assert (curve.chosen, curve.steps) == (0.5, 0)
        assert "The weakest that does" in curve.sentence and "(1 point lower)" in curve.sentence

    def test_says_what_the_nearest_costs_where_the_target_costs_more(self) -> None:
        curve = decided([point(0, 1), point(0.5, 98, 95), point(1, 100, 90)], Need(0.98, 0.01))
        assert curve.chosen == 0.5
        assert "No strength does" in curve.sentence and "retains 95 % (5 points lower)" in curve.sentence
        assert "raise --max_retain_drop" in curve.sentence

    def test_says_so_where_the_target_is_not_reached(self) -> None:
        curve = decided([point(0, 1), point(0.5, 80), point(1, 90)], Need(0.98, 0.01))
        assert curve.chosen == 1
        assert "the target is not reached" in curve.sentence and "forgets 90 %" in curve.sentence

    def test_an_early_checkpoint_counts_where_no_strength_does(self) -> None:
        points = [point(0, 1), point(1, 99, 90), point(1, 98, 99, steps=80), point(1, 98, 99, steps=40)]
        curve = decided(points, Need(0.98, 0.01))
        assert (curve.chosen, curve.steps) == (1, 40)
        assert "after 40 steps" in curve.sentence

    def test_a_curve_names_one_of_its_points(self) -> None:
        with pytest.raises(ValueError, match="one of the curve's points"):
            StrengthCurve((point(0, 1),), chosen=0.3)


class TestWhatItLooksAt:
    def settings(self, target: float = 0.98, drop: float = 0.01) -> Settings:
        return replace(tiny_settings(), target_forget=target, max_retain_drop=drop)

    @pytest.mark.parametrize("concept", [shape("star", "frozen_teacher"), style("striped", "paper")], ids=["", "style"])
    def test_is_none_of_the_reports_pictures(self, concept) -> None:
        settings = self.settings()
        mine, reported = searched_pictures(concept, settings), reported_pictures(concept, settings)
        assert not {(one.prompt, one.seed) for side in mine for one in side} & {
            (one.prompt, one.seed) for side in reported for one in side
        }
        assert all(len({(one.prompt, one.seed) for one in side}) == len(side) for side in mine)
        assert all(one.wanted for one in mine[1])

    def test_a_shape_has_prompts_of_its_own_and_every_other_shape(self) -> None:
        concept = shape("star", "frozen_teacher")
        forget, retain = searched_pictures(concept, self.settings())
        reported = {prompt.prompt for prompt in (*concept.forget_evaluation, *concept.retain_evaluation)}
        assert not {one.prompt for one in (*forget, *retain)} & reported
        assert len({label for one in retain for label in one.wanted}) == 9

    def test_one_picture_decides_nothing(self) -> None:
        """1 / .02 and 1 / .01; never fewer than 48, never more than 200."""
        concept = shape("star", "frozen_teacher")
        counts = [
            tuple(map(len, searched_pictures(concept, self.settings(*need))))
            for need in ((0.98, 0.01), (0.5, 0.5), (1.0, 0.0))
        ]
        assert counts == [(50, 100), (48, 48), (200, 200)]

    def test_is_in_the_plan_and_its_count(self) -> None:
        """Eight strengths of 50 + 100; a curve of five draws three times the report's 12 prompts of 50 pictures."""
        concept = shape("star", "frozen_teacher")
        searched, curve = self.settings(), replace(tiny_settings(), strength_points=5, num_validation_images=50)
        assert strength_pictures(concept, searched) == 1200 and strength_pictures(concept, curve) == 1800
        assert "50 + 100 pictures at each of at most 8 strengths" in strength_in_words(concept, searched)
        assert "3 times more" in strength_in_words(concept, curve)
        assert strength_in_words(concept, tiny_settings()) == "" and strength_pictures(concept, tiny_settings()) == 0
        rows = {stage.stage: stage.rows for stage in row_forwards(concept, searched, "DDIMScheduler")}
        assert rows["strength"] == 1200 * searched.num_inference_steps * 2
        assert "strength" not in [stage.stage for stage in row_forwards(concept, tiny_settings(), "DDIMScheduler")]
        assert disk_space(100, 7, searched).total == disk_space(100, 7, tiny_settings()).total + 28

    def test_counts_with_wilsons_intervals(self) -> None:
        """Two of three stars are gone; of the two others that are known one shows all that it should."""
        concept = shape("star", "frozen_teacher")
        star, heart = frozenset({"shape:star"}), frozenset({"shape:heart"})
        found = counted(
            concept, 0.5, ([star, heart, heart], [heart, heart, star]),
            [heart, heart | {"style:filled"}, frozenset()], about={"protocol": "eyes", "command": ""},
        )  # fmt: skip
        assert found.forgotten.value == pytest.approx(2 / 3) and found.forgotten.interval == wilson_interval(2, 3)
        assert found.retained is not None and found.retained.interval == wilson_interval(1, 2)


# The tiny pipeline draws noise, in which the demo's detector finds whatever it finds.
SEEN = {"detector": "demo", "detector_labels": "shape:circle"}


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[float], int]], list[float]]:
    """Let rates depend on the strength as a test says; returns the strengths that were drawn."""

    def judge(gone: Callable[[float], int], right: Callable[[float], int] = lambda s: 100) -> list[float]:
        drawn: list[float] = []

        def seen(concept, strength, found, wanted, *, steps=0, about):
            drawn.append(strength)
            return point(strength, gone(strength), right(strength), steps)

        monkeypatch.setattr(strength_module, "counted", seen)
        return drawn

    return judge


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four pictures of each side are enough where rates are given."""
    monkeypatch.setattr(strength_prompts, "_FEWEST", 2)
    monkeypatch.setattr(strength_prompts, "_MOST", 4)


@pytest.fixture(scope="module")
def full(small_run, tmp_path_factory) -> Path:
    """A run without a target: today's weights."""
    folder = tmp_path_factory.mktemp("full") / "run"
    assert main(small_run(output_dir=folder, checkpointing_steps=2, strength_points=0, **SEEN)) == 0
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / UNET)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.usefixtures("few")
class TestARun:
    def test_leaves_the_weakest_weights_that_do(self, small_run, tmp_path, tiny_pipeline, full, judged, capsys):
        """Between the base and the whole change, bit for bit on the line, and the receipt holds."""
        judged(lambda s: 99 if s >= 0.4 else 50)
        folder = tmp_path / "run"
        assert main(small_run(output_dir=folder, target_forget=0.98, **SEEN)) == 0
        assert "The weakest that does" in capsys.readouterr().err
        found, base, whole = weights(folder), load_file(tiny_pipeline / UNET.split("/", 1)[1]), weights(full)
        assert same(load_full(folder, base), whole)
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, torch.lerp(base[name], whole[name], 0.40625), rtol=0, atol=0)
        report = EvaluationReport.from_json(json.loads((folder / "report.json").read_text()))
        assert report.strength is not None and report.strength.chosen == report.receipt.strength == 0.40625
        assert json.loads((folder / "strength.json").read_text())["chosen"] == 0.40625
        assert report.receipt.violations == 0
        assert report.config["target_forget"] == 0.98 and report.config["max_retain_drop"] == 0.01
        capsys.readouterr()
        assert verify([str(tiny_pipeline), str(folder / "pipeline"), "--mask", str(folder / "mask.safetensors")]) == 0
        html = (folder / "report.html").read_text()
        assert "<h2>Strength</h2>" in html and "s = 0.40625" in html and html.count("saved</span>") == 1

    def test_at_full_strength_is_that_without_a_target(self, small_run, tmp_path, full, judged, capsys):
        judged(lambda s: int(90 * s))
        folder = tmp_path / "run"
        assert main(small_run(output_dir=folder, target_forget=0.98, **SEEN)) == 0
        assert "the target is not reached" in capsys.readouterr().err
        assert (folder / UNET).read_bytes() == (full / UNET).read_bytes()
        assert not (folder / "work" / "full.safetensors").exists()

    def test_goes_on_without_searching_or_training_again(self, small_run, tmp_path, full, judged, capsys):
        """The same target: nothing; another: pictures; none: the whole change. Never a step of training."""
        drawn = judged(lambda s: 99 if s >= 0.4 else 50)
        folder = Path(shutil.copytree(full, tmp_path / "run"))
        resumed = {"output_dir": folder, "resume_from_checkpoint": "latest", "checkpointing_steps": 2, **SEEN}
        assert main(small_run(**resumed, target_forget=0.98)) == 0
        first, chosen = len(drawn), (folder / UNET).read_bytes()
        assert first == 8
        capsys.readouterr()
        assert main(small_run(**resumed, target_forget=0.98)) == 0
        assert len(drawn) == first and (folder / UNET).read_bytes() == chosen
        assert main(small_run(**resumed, target_forget=0.4)) == 0
        assert len(drawn) > first and (folder / UNET).read_bytes() != chosen
        assert main(small_run(**resumed)) == 0
        assert (folder / UNET).read_bytes() == (full / UNET).read_bytes()
        assert "fine-tuning" not in capsys.readouterr().err

    def test_takes_an_early_checkpoint_where_no_strength_does(self, small_run, tmp_path, full, judged, monkeypatch):
        """Only the weights after two of four steps keep the others."""

        def seen(concept, strength, found, wanted, *, steps=0, about):
            return point(strength, 99 if strength else 1, 100 if steps or not strength else 50, steps)

        monkeypatch.setattr(strength_module, "counted", seen)
        folder = tmp_path / "run"
        assert main(small_run(output_dir=folder, target_forget=0.98, checkpointing_steps=2, **SEEN)) == 0
        record = json.loads((folder / "strength.json").read_text())
        assert (record["chosen"], record["steps"]) == (1.0, 2)
        mask = SaliencyMask.load(folder / "mask.safetensors")
        kept, found = load_file(folder / "checkpoint-2" / "state.safetensors"), weights(folder)
        for name, tensor in kept.items():
            if name.startswith("weight."):
                name = name.removeprefix("weight.")
                assert torch.equal(found[name].flatten()[mask.indices(name).long()], tensor)

    @pytest.mark.parametrize(
        ("points", "strengths"), [(3, [0, 0.5, 1]), (None, [0, 0.25, 0.5, 0.75, 1])], ids=["three", "unasked"]
    )
    def test_draws_a_curve_without_changing_anything(self, small_run, tmp_path, full, points, strengths):
        """Its ends are the report's own pictures: of three points one is drawn. Unasked it has five."""
        folder = tmp_path / "run"
        assert main(small_run(output_dir=folder, strength_points=points, **SEEN)) == 0
        assert (folder / UNET).read_bytes() == (full / UNET).read_bytes()
        report = EvaluationReport.from_json(json.loads((folder / "report.json").read_text()))
        assert report.strength is not None
        assert [one.strength for one in report.strength.points] == strengths
        shown = next(pair for pair in report.comparisons if pair.after.group == "concept")
        ends = report.strength.points[0].forgotten.value, report.strength.points[-1].forgotten.value
        assert ends == pytest.approx((1 - shown.before.value, 1 - shown.after.value))
        pictures = sum(len(list((run / "work" / "drawn").rglob("*.safetensors"))) for run in (folder, full))
        asked = len(list((folder / "samples").glob("*-after.png")))
        assert pictures - 2 * len(list((full / "work" / "drawn").rglob("*.safetensors"))) == asked * (
            len(strengths) - 2
        )


def load_full(folder: Path, base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The whole change that a search keeps, put into the base."""
    mask, kept = SaliencyMask.load(folder / "mask.safetensors"), load_file(folder / "work" / "full.safetensors")
    made = {name: tensor.clone() for name, tensor in base.items()}
    for name, values in kept.items():
        made[name].view(-1)[mask.indices(name).long()] = values
    return made


class TestBadInput:
    @pytest.mark.parametrize(
        ("flags", "contents"),
        [
            ({"target_forget": 1.2, **SEEN}, ("target_forget", "1.2")),
            ({"target_forget": -0.1, **SEEN}, ("target_forget", "-0.1")),
            ({"target_forget": 0.9, "max_retain_drop": 1.5, **SEEN}, ("max_retain_drop", "1.5")),
            ({"max_retain_drop": 0.1, **SEEN}, ("--max_retain_drop 0.1", "--target_forget")),
            ({"target_forget": 0.9}, ("--target_forget needs a detector", "'disc'", "--detector")),
            ({"target_forget": 0.9, "detector": "none"}, ("--target_forget needs a detector",)),
            ({"strength_points": 5}, ("--strength_points needs a detector",)),
            ({"strength_points": 1, **SEEN}, ("--strength_points 1 is no curve",)),
        ],
        ids=["above one", "below zero", "drop above one", "drop alone", "no detector", "none", "curve", "one point"],
    )  # fmt: skip
    def test_is_one_line(self, refused, empty_folder, flags, contents):
        refused(*contents, **flags)


def test_no_target_is_no_limit() -> None:
    settings = tiny_settings()
    assert settings.target_forget == UNLIMITED and not settings.searched
    assert report_seed(0, "a star", 0) != report_seed(0, "a star", 1)


SPY = """
import sys
from salun_diffusers.diffusion import strength, strength_prompts
from salun_diffusers.programs.erase import main
from salun_diffusers.reports.measurement import Measurement
from salun_diffusers.reports.strength import StrengthPoint

strength_prompts._FEWEST, strength_prompts._MOST = 2, 4

def seen(concept, at, found, wanted, *, steps=0, about):
    gone = Measurement.rate("gone", 99 if at >= 0.4 else 50, 100, direction="higher", protocol="by hand")
    return StrengthPoint(at, gone, None, steps)

strength.counted = seen
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow  # Two imports of torch and diffusers at once.
def test_two_processes_agree_with_one(small_run, tmp_path, judged, few):
    """One of them counts, both draw; the weights are those of one process to what sums in another order may differ."""
    judged(lambda s: 99 if s >= 0.4 else 50)
    (tmp_path / "spy.py").write_text(SPY)
    pair, single = tmp_path / "pair", tmp_path / "single"
    shared = {"target_forget": 0.98, "train_batch_size": None, **SEEN}
    run_two(tmp_path / "spy.py", *small_run(output_dir=pair, **shared))
    assert main(small_run(output_dir=single, **shared)) == 0
    records = [json.loads((folder / "strength.json").read_text()) for folder in (pair, single)]
    assert [record["chosen"] for record in records] == [0.40625] * 2
    assert [len(record["points"]) for record in records] == [8] * 2
    assert EvaluationReport.from_json(json.loads((pair / "report.json").read_text())).receipt.strength == 0.40625
    left, right = weights(pair), weights(single)
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=0, atol=1e-5)
