"""Figures and verdicts of several concepts, with a detector that reads a picture's brightness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from PIL import Image

from salun_diffusers.diffusion import run_report
from salun_diffusers.diffusion.concepts import Concept, EvaluationPrompt
from salun_diffusers.diffusion.joined import joined
from salun_diffusers.diffusion.presets.stable_diffusion import STABLE_DIFFUSION
from salun_diffusers.diffusion.run_report import judge
from salun_diffusers.diffusion.several_report import Judged, came_back, measure_several
from salun_diffusers.diffusion.validation import Pictures, Samples
from salun_diffusers.evaluation.detector_choice import DetectorChoice, several
from salun_diffusers.evaluation.detectors import NoDetector, SeveralDetectors, make_detector
from salun_diffusers.reports.measurement import Comparison, Measurement

SEVEN, SIX, EIGHT, NONE = (Image.new("L", (4, 4), level) for level in (0, 50, 100, 200))
NAMES = {0: "digit:7", 50: "digit:6", 100: "digit:8", 200: "digit:none"}


class Brightness:
    """Black is a seven, dark a six, grey an eight, everything else none."""

    protocol = "brightness"

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        return [frozenset({NAMES.get(picture.getpixel((0, 0)), "digit:none")}) for picture in pictures]


class Blind(Brightness):
    """Sees nothing at all: what would be counted with it, counts 0."""

    protocol = "blind"

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        return [frozenset() for _ in pictures]


def digit(name: str, kept: str = "8", **changes: object) -> Concept:
    made = Concept(
        name=name, forget_prompts=(name,), anchor_prompts=("9",), retain_prompts=(kept,),
        forget_evaluation=(EvaluationPrompt(name),), retain_evaluation=(EvaluationPrompt(kept, "digit:8"),),
        target_labels=frozenset({f"digit:{name}"}), numbers=STABLE_DIFFUSION["paper"],
    )  # fmt: skip
    return replace(made, **changes)


TWO = joined([digit("7"), digit("6", "an 8")])


def pictures(sevens: Sequence[Image.Image], sixes: Sequence[Image.Image], *kept: Sequence[Image.Image]) -> Pictures:
    return Pictures(
        Samples(TWO.forget_evaluation, (tuple(sevens), tuple(sixes))),
        Samples(TWO.retain_evaluation, tuple(map(tuple, kept))),
    )


def measured(before: Pictures, after: Pictures, *detectors: Brightness, concept: Concept = TWO) -> Judged:
    return measure_several(concept, SeveralDetectors(detectors), (before, after), "by hand", judge)


def figures(judged: Judged, group: str) -> dict[str, tuple[float, float, int]]:
    return {
        pair.name: (pair.before.value, pair.after.value, pair.after.n)
        for pair in judged.comparisons
        if pair.after.group == group
    }


BEFORE = pictures([SEVEN] * 20, [SIX] * 20, [EIGHT] * 20, [EIGHT] * 20)


class TestFigures:
    @pytest.fixture
    def judged(self) -> Judged:
        """A quarter of the sevens stay, the sixes become sevens by half; two eights of forty are lost."""
        eye = Brightness()
        after = pictures(
            [SEVEN] * 5 + [EIGHT] * 15, [SEVEN] * 10 + [NONE] * 10, [EIGHT] * 18 + [NONE] * 2, [EIGHT] * 20
        )
        return measured(BEFORE, after, eye, eye)

    def test_together(self, judged):
        assert figures(judged, "concept") == {"7 + 6 appear for their prompts": (1, 5 / 40, 40)}
        assert figures(judged, "retained") == {"other concepts are right": (1, 38 / 40, 40)}

    def test_concept_by_concept(self, judged):
        assert figures(judged, "concept by concept") == {
            "7 appears for its prompts": (1, 0.25, 20), "6 appears for its prompts": (1, 0, 20)
        }  # fmt: skip
        became = {item.name: item.value for item in judged.measurements if item.group == "became"}
        assert became == {"7: became 8": 0.75, "6: became 7": 0.5, "6: became none": 0.5}

    def test_interference(self, judged):
        """Sevens where sixes were asked for, which no rate of a concept's own prompts shows."""
        assert figures(judged, "interference") == {
            "7 appears for prompts of the other concepts": (0, 0.5, 20),
            "7 appears for prompts of what stays": (0, 0, 40),
            "6 appears for prompts of the other concepts": (0, 0, 20),
            "6 appears for prompts of what stays": (0, 0, 40),
        }

    def test_neighbours_one_by_one(self, judged):
        assert figures(judged, "retained, by prompt") == {"8": (1, 0.9, 20), "an 8": (1, 1, 20)}

    def test_drift_counts_every_picture_once(self, judged):
        [drift] = [item for item in judged.measurements if item.group == "drift"]
        assert (drift.value, drift.n) == (pytest.approx(2 / 40 * 100 / 255), 40)

    def test_each_concept_has_its_own_detector(self):
        judged = measured(BEFORE, BEFORE, Brightness(), Blind())
        each = figures(judged, "concept by concept")
        assert each == {"7 appears for its prompts": (1, 1, 20), "6 appears for its prompts": (0, 0, 20)}

    def test_one_without_a_detector_is_left_out(self):
        judged = measured(BEFORE, BEFORE, Brightness(), NoDetector())
        assert [*figures(judged, "concept by concept")] == ["7 appears for its prompts"]
        assert all(name.startswith("7 ") for name in figures(judged, "interference"))
        assert judged.verdict == "no effect"


class TestVerdict:
    def after(self, sevens: Sequence[Image.Image], sixes: Sequence[Image.Image], kept: Image.Image = EIGHT) -> Judged:
        eye = Brightness()
        return measured(BEFORE, pictures(sevens, sixes, [kept] * 20, [kept] * 20), eye, eye)

    def test_is_erased_if_each_is(self):
        judged = self.after([EIGHT] * 20, [EIGHT] * 20)
        assert judged.verdict == "erased" and "7 0 %, 6 0 %" in judged.reason
        assert "appears in 0 % of 40 pictures for its prompts, down from 100 %" in judged.reason

    def test_is_that_of_the_worst_which_is_named(self):
        judged = self.after([EIGHT] * 20, [SIX] * 20)
        assert judged.verdict == "no effect" and judged.reason.startswith("6: The concept still appears in 100 %")

    def test_hears_what_is_lost_of_everything_else(self):
        assert self.after([EIGHT] * 20, [EIGHT] * 20, NONE).verdict == "over-erased"


class TestEarlier:
    CONCEPT = digit("7", earlier=(digit("6"),))

    def judged(self, sixes: Sequence[Image.Image]) -> Judged:
        def of(sevens: Sequence[Image.Image], earlier: Sequence[Image.Image]) -> Pictures:
            return Pictures(
                Samples(self.CONCEPT.forget_evaluation, (tuple(sevens),)),
                Samples(self.CONCEPT.retain_evaluation, ((EIGHT,) * 40,)),
                earlier=(Samples(self.CONCEPT.earlier[0].forget_evaluation, (tuple(earlier),)),),
            )

        eye = Brightness()
        return measured(of([SEVEN] * 20, [NONE] * 20), of([EIGHT] * 20, sixes), eye, eye, concept=self.CONCEPT)

    def test_that_came_back_is_said(self):
        judged = self.judged([SIX] * 10 + [NONE] * 10)
        assert figures(judged, "erased earlier") == {"6 (erased earlier) appears for its prompts": (0, 0.5, 20)}
        assert "'6', erased earlier, came back: it appears in 50 % of the pictures for its prompts, 0 % before." in (
            judged.reason
        )

    def test_that_stayed_away_is_not(self):
        judged = self.judged([NONE] * 20)
        assert (judged.verdict, "came back" in judged.reason) == ("erased", False)

    @pytest.mark.parametrize(
        ("before", "after", "expected"), [(0, 1, False), (0, 8, True), (8, 8, False), (8, 0, False)]
    )
    def test_a_chance_is_no_return(self, before, after, expected):
        rates = (Measurement.rate("6", hits, 20, direction="lower", protocol="by hand") for hits in (before, after))
        assert came_back(Comparison("6", *rates)) == expected


def test_what_is_rarer_than_what_counts_as_gone_has_not_come_back():
    rates = [Measurement.rate("6", hits, 2000, direction="lower", protocol="by hand") for hits in (0, 30, 60)]
    assert not came_back(Comparison("6", rates[0], rates[1]))
    assert came_back(Comparison("6", rates[0], rates[2]))


class TestDetectors:
    def test_of_one_name_are_loaded_once(self):
        one = DetectorChoice("none")
        made = make_detector(several([one, one, DetectorChoice("demo")]))
        assert isinstance(made, SeveralDetectors)
        assert made.parts[0] is made.parts[1] is not made.parts[2]
        assert str(several([one, one, DetectorChoice("nudenet")])) == "none, nudenet"


def test_retained_pictures_are_blurred_by_the_explicit_concepts_detector(monkeypatch):
    """Of what stays what the explicit concept's detector finds, and no other; all of what is forgotten."""
    monkeypatch.setattr(run_report, "blurred", lambda picture: NONE)
    both = pictures([SEVEN], [SIX], [SEVEN, EIGHT], [SIX, EIGHT])
    concept = joined([digit("7", explicit=True), digit("6", "an 8")])
    shown = run_report.hidden(both, concept, SeveralDetectors((Brightness(), Brightness())))
    assert shown.forget.pictures == ((NONE,), (NONE,))
    assert shown.retain.pictures == ((NONE, EIGHT), (SIX, EIGHT))
