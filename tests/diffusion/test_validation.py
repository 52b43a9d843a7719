"""What the report measures on the pictures, with a detector that reads a picture's brightness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from PIL import Image

from salun_diffusers.diffusion.concepts import Concept, EvaluationPrompt
from salun_diffusers.diffusion.presets.stable_diffusion import STABLE_DIFFUSION
from salun_diffusers.diffusion.validation import Pictures, Samples, measure

SEVEN, EIGHT, NONE = (Image.new("L", (4, 4), level) for level in (0, 100, 200))


class Brightness:
    """Black is a seven, grey an eight, everything else neither; every picture is round."""

    protocol = "brightness"

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        names = {0: "digit:7", 100: "digit:8"}
        return [frozenset({names.get(picture.getpixel((0, 0)), "digit:none"), "form:round"}) for picture in pictures]


@pytest.fixture
def concept() -> Concept:
    return Concept(
        name="7", forget_prompts=("7",), anchor_prompts=("8",), retain_prompts=("8",),
        forget_evaluation=(EvaluationPrompt("7"),), retain_evaluation=(EvaluationPrompt("8", "digit:8"),),
        target_labels=frozenset({"digit:7"}), numbers=STABLE_DIFFUSION["paper"],
    )  # fmt: skip


class Form(Brightness):
    """Nothing is round that is neither a seven nor an eight."""

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        return [
            found if "digit:none" not in found else frozenset({"digit:8", "form:none"})
            for found in super().labels(pictures)
        ]


def both(concept: Concept, forget: Sequence[Image.Image], retain: Sequence[Image.Image]) -> Pictures:
    return Pictures(
        Samples(concept.forget_evaluation, (tuple(forget),)), Samples(concept.retain_evaluation, (tuple(retain),))
    )


def test_what_became_of_the_concept_is_counted_by_label(concept: Concept) -> None:
    """Of four sevens one stays, two become eights and one nothing: 1/4, 2/4, 1/4; one eight of four is lost."""
    before = both(concept, [SEVEN] * 4, [EIGHT] * 4)
    after = both(concept, [SEVEN, EIGHT, EIGHT, NONE], [EIGHT, EIGHT, EIGHT, NONE])
    comparisons, measurements = measure(concept, Brightness(), before, after, "by hand")
    gone, kept = comparisons[:2]
    assert (gone.before.value, gone.after.value) == (1, 0.25)
    assert (kept.before.value, kept.after.value) == (1, 0.75)
    became = [(item.name, item.value) for item in measurements if item.group == "became"]
    assert became == [("became 8", 0.5), ("became none", 0.25)]
    drift = next(item for item in measurements if item.group == "drift")
    assert drift.value == pytest.approx(100 / 255 / 4)  # One of four retained pictures moved, by 100 grey levels.


def test_what_another_kind_of_label_says_of_the_same_pictures(concept: Concept) -> None:
    """One eight of four loses its form only: all are right, three of four forms are."""
    concept = replace(concept, retain_evaluation=(EvaluationPrompt("8", "digit:8", expected_across="form:round"),))
    before, after = both(concept, [SEVEN], [EIGHT] * 4), both(concept, [EIGHT], [EIGHT, EIGHT, EIGHT, NONE])
    comparisons, _ = measure(concept, Form(), before, after, "by hand")
    found = [(pair.name, pair.after.group, pair.before.value, pair.after.value) for pair in comparisons[1:3]]
    assert found == [  # The larger fall first.
        ("forms of the others are right", "retained across", 1, 0.75),
        ("other concepts are right", "retained", 1, 1),
    ]
