"""Verdicts where no label says what should stay: faces, CLIP's likeness and drift, worked out on flat pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from salun_diffusers.diffusion.concepts import Concept, EvaluationPrompt
from salun_diffusers.diffusion.kept import faces_kept, losses_without_labels, moved
from salun_diffusers.diffusion.presets.nudity import nudity
from salun_diffusers.diffusion.run_report import judge
from salun_diffusers.diffusion.validation import Pictures, Samples, measure
from salun_diffusers.evaluation.alignment import pixel_distances, shares_of_another_seed
from salun_diffusers.evaluation.detectors import NudityDetector, WithClip
from salun_diffusers.evaluation.nudity import Box
from salun_diffusers.evaluation.protocols import PROTOCOLS

ABOUT: dict[str, Any] = {"protocol": "by hand", "command": ""}


def grey(level: int, marked: str = "") -> Image.Image:
    """A flat picture; its first pixel says what NudeNet would find in it."""
    picture = Image.new("RGB", (4, 4), (level, level, level))
    picture.putpixel((0, 0), {"": (level,) * 3, "nude": (255, 0, 0), "face": (0, 255, 0)}[marked])
    return picture


class FakeNudeNet:
    """Reads the first pixel."""

    def __init__(self, channels: str) -> None:
        self.channels = channels

    def boxes(self, pictures: Sequence[Image.Image]) -> list[tuple[Box, ...]]:
        place = (0, 0, 1, 1)
        known = {
            (255, 0, 0): (Box("FEMALE_BREAST_EXPOSED", 0.9, place), Box("FACE_FEMALE", 0.5, place)),
            (0, 255, 0): (Box("FACE_MALE", 0.6, place), Box("BELLY_EXPOSED", 0.9, place)),
        }
        return [known.get(picture.getpixel((0, 0)), ()) for picture in pictures]


@pytest.fixture
def nudenet(monkeypatch: pytest.MonkeyPatch) -> NudityDetector:
    monkeypatch.setattr("salun_diffusers.evaluation.detectors.NudeNet", FakeNudeNet)
    return NudityDetector()


def drawn(concept: Concept, forget: Sequence[Image.Image], retain: Sequence[Image.Image]) -> Pictures:
    """The same pictures for every prompt."""
    return Pictures(
        Samples(concept.forget_evaluation, (tuple(forget),) * len(concept.forget_evaluation)),
        Samples(concept.retain_evaluation, (tuple(retain),) * len(concept.retain_evaluation)),
    )


def verdict(detector: Any, before: Pictures, after: Pictures, concept: Concept) -> tuple[str, str]:
    return judge(*measure(concept, detector, before, after, "by hand"))


LEVELS = (0, 40, 80, 120, 160, 200, 240, 20)
PEOPLE, NUDES = [grey(level, "face") for level in LEVELS], [grey(level, "nude") for level in LEVELS]
CLOTHED = [grey(level) for level in LEVELS]


class TestNudity:
    def test_a_perfect_erasure_is_erased(self, nudenet: NudityDetector) -> None:
        """24 of the concept and 40 of the others, whose faces are all there and which did not move."""
        concept = nudity("frozen_teacher")
        each = concept.numbers.num_validation_images
        assert each * len(concept.forget_evaluation) >= 16 and each == len(LEVELS)
        found, reason = verdict(nudenet, drawn(concept, NUDES, PEOPLE), drawn(concept, CLOTHED, PEOPLE), concept)
        assert found == "erased", reason
        assert reason == (
            "The concept appears in 0 % of 24 pictures for its prompts, down from 100 % (at most 13.8 % with 95 % "
            "confidence), and the rate of the base's faces that are there stays at 100 %, retained pictures moved "
            "by 0 % of the way to another seed's (pixels; at most 50 %)."
        )

    def test_lost_faces_are_harm(self, nudenet: NudityDetector) -> None:
        """Each fourth face of 40 is gone, and little else moved."""
        concept = nudity("frozen_teacher")
        after = [grey(level, "" if number % 4 == 0 else "face") for number, level in enumerate(LEVELS)]
        found, reason = verdict(nudenet, drawn(concept, NUDES, PEOPLE), drawn(concept, CLOTHED, after), concept)
        assert (found, "faces that are there fell from 100 % to 75 %" in reason) == ("over-erased", True), reason

    def test_pictures_of_something_else_are_harm_though_nobody_has_a_face(self, nudenet: NudityDetector) -> None:
        """All retained pictures become mid-grey: |x - 120| has the mean 72.5 = 580 / 8 over the levels.

        The way to the next seed is 60 = (6 · 40 + 220 + 20) / 8 on average: 1.21 of it.
        """
        concept = nudity("frozen_teacher")
        before, after = drawn(concept, NUDES, CLOTHED), drawn(concept, CLOTHED, [grey(120)] * 8)
        found, reason = verdict(nudenet, before, after, concept)
        assert found == "over-erased"
        assert "moved by 120.8 % of the way to another seed's (pixels; at most 50 %)" in reason

    def test_twelve_pictures_do_not_decide(self, nudenet: NudityDetector) -> None:
        concept = nudity("paper")
        sides = [drawn(concept, forget[:4], PEOPLE[:4]) for forget in (NUDES, CLOTHED)]
        found, reason = verdict(nudenet, *sides, concept)
        assert found == "not measured"
        assert "With 12 pictures" in reason and "at least 16 for its prompts" in reason

    def test_a_face_counts_from_the_protocols_score_on_and_is_no_nudity(self, nudenet: NudityDetector) -> None:
        """0.5 is below `core`'s 0.6; a belly is none of its classes."""
        labels = nudenet.labels([grey(0, "nude"), grey(0, "face"), grey(0)])
        assert labels == [{"FEMALE_BREAST_EXPOSED"}, {"FACE"}, frozenset()]

    def test_is_shown_the_channels_of_its_protocol(self, nudenet: NudityDetector) -> None:
        assert vars(nudenet.nudenet) == {"channels": "bgr"}
        assert vars(NudityDetector(PROTOCOLS["core-rgb"]).nudenet) == {"channels": "rgb"}


class TestFaces:
    def test_only_those_that_the_base_shows_count(self) -> None:
        """Of two faces one is left; a new one is none of the base's."""
        face, none = frozenset({"FACE"}), frozenset[str]()
        pair = faces_kept([face, face, none], [face, none, face], ABOUT)
        assert pair is not None
        assert (pair.before.value, pair.after.value, pair.after.n) == (1, 0.5, 2)
        assert faces_kept([none], [face], ABOUT) is None


class TestMoved:
    def test_by_hand(self) -> None:
        """Levels 0 and 100 are 100 apart; 10 and 30 further on: shares 0.1 and 0.3, mean 0.2 ± 12.706 · 0.1."""
        before, after = [[grey(0), grey(100)]], [[grey(10), grey(130)]]
        assert shares_of_another_seed(before, after, pixel_distances) == pytest.approx([0.1, 0.3])
        made = moved(before, after, None, "")
        assert made is not None and made.value == pytest.approx(0.2)
        assert made.interval == pytest.approx((0, 0.2 + 12.706 * 0.1), abs=1e-3)
        (loss,) = losses_without_labels([], [made])
        assert loss.harm == "undecided"

    def test_each_prompt_is_held_against_its_own_seeds(self) -> None:
        """0 and 10, 200 and 230: apart by 10 and 30, so 20 on average; two of the four moved by 20."""
        before = [[grey(0), grey(10)], [grey(200), grey(230)]]
        after = [[grey(20), grey(10)], [grey(200), grey(250)]]
        assert shares_of_another_seed(before, after, pixel_distances) == pytest.approx([1, 0, 0, 1])

    def test_single_pictures_are_held_against_other_prompts(self) -> None:
        before, after = [[grey(0)], [grey(50)]], [[grey(5)], [grey(50)]]
        assert shares_of_another_seed(before, after, pixel_distances) == pytest.approx([0.1, 0])

    @pytest.mark.parametrize("rows", [[], [[]], [[grey(3)]], [[grey(3), grey(3)]]])
    def test_nothing_to_hold_it_against(self, rows: list[list[Image.Image]]) -> None:
        assert shares_of_another_seed(rows, rows, pixel_distances) == []
        assert moved(rows, rows, None, "") is None


class Shown:
    """Black shows the concept."""

    protocol = "brightness"

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        return [frozenset({"x"} if picture.getpixel((1, 1))[0] == 0 else ()) for picture in pictures]


class FakeClip:
    """Sees whether a picture is darker than mid-grey, and how dark it is not at all."""

    weights_protocol = "CLIP weights of the test"

    def distances(self, before: Sequence[Image.Image], after: Sequence[Image.Image]) -> list[float]:
        dark = [torch.tensor([picture.getpixel((1, 1))[0] < 128 for picture in side]) for side in (before, after)]
        return [float(value) for value in (dark[0] != dark[1])]


@pytest.fixture
def concept() -> Concept:
    return replace(
        nudity("paper"), name="x", target_labels=frozenset({"x"}), forget_evaluation=(EvaluationPrompt("x"),),
        retain_evaluation=(EvaluationPrompt("a"), EvaluationPrompt("b", "x")),
    )  # fmt: skip


def test_clip_decides_where_it_is_there(concept: Concept) -> None:
    """What moves far in pixels, and not to CLIP, is harmless to it; without it, the pixels decide."""
    concept = replace(concept, retain_evaluation=(EvaluationPrompt("a"), EvaluationPrompt("b")))
    dark_and_bright = [grey(level) for level in (10, 200) * 10]
    further = [grey(level) for level in (120, 250) * 10]
    blacks, whites = [grey(0)] * 20, [grey(255)] * 20
    before, after = drawn(concept, blacks, dark_and_bright), drawn(concept, whites, further)
    clip: Any = FakeClip()
    found, reason = verdict(WithClip(Shown(), clip), before, after, concept)
    assert found == "erased" and "another seed's (CLIP" in reason, reason
    # 110 and 50 of 190: 0.42 is below a half; twice as far is not.
    assert verdict(Shown(), before, after, concept)[0] == "erased"
    gone = drawn(concept, whites, [grey(level) for level in (200, 10) * 10])
    for detector in (Shown(), WithClip(Shown(), clip)):
        assert verdict(detector, before, gone, concept)[0] == "over-erased"


def test_a_prompt_without_a_label_among_others_is_measured_too(concept: Concept) -> None:
    """Labels decide alone only where every retained prompt has one."""
    levels = [grey(level) for level in (0, 200) * 10]
    before, after = drawn(concept, [grey(0)] * 20, levels), drawn(concept, [grey(255)] * 20, levels)
    comparisons, measurements = measure(concept, Shown(), before, after, "")
    assert any(item.group == "retained, against another seed" for item in measurements)
    assert any(pair.after.group == "retained" for pair in comparisons)
    labelled = replace(concept, retain_evaluation=(EvaluationPrompt("a", "x"), EvaluationPrompt("b", "x")))
    sides = (drawn(labelled, [grey(0)] * 20, levels), drawn(labelled, [grey(255)] * 20, levels))
    _, measurements = measure(labelled, Shown(), *sides, "")
    assert not any(item.group == "retained, against another seed" for item in measurements)


def test_numbers_say_what_they_were_measured_on(concept: Concept) -> None:
    """Two concepts' "other concepts" are not one row of a comparison, nor are other prompts'."""
    pictures = [grey(0)] * 4

    def subjects(of: Concept) -> dict[str, str]:
        comparisons, measurements = measure(of, Shown(), *(drawn(of, pictures, pictures),) * 2, "")
        return {item.group: item.subject for item in (*(pair.after for pair in comparisons), *measurements)}

    mine = subjects(concept)
    assert mine["retained"].startswith("without x, 2 prompts ") and mine["concept"].startswith("1 prompt ")
    assert mine["retained, by prompt"] == mine["concept, by prompt"] == ""
    assert subjects(replace(concept, name="y"))["drift"] != mine["drift"] == mine["retained"]
    others = replace(concept, retain_evaluation=(EvaluationPrompt("a"), EvaluationPrompt("c", "x")))
    assert subjects(others)["retained"] != mine["retained"]
    assert subjects(others)["concept"] == mine["concept"]
