"""What is left of all that must stay, where no label says what it should show: faces, CLIP, drift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from salun_diffusers.evaluation.alignment import ClipScore, pixel_distances, shares_of_another_seed
from salun_diffusers.evaluation.detector_choice import FACE
from salun_diffusers.reports.measurement import Comparison, Measurement, percent
from salun_diffusers.reports.verdict import Loss, distance, drop

FACES_GROUP, SHARE_GROUP = "retained, at equal seed", "retained, against another seed"
MOVED_AT_MOST, MOVED_FOR_CERTAIN = 0.5, 0.75
"""Shares of the way to another seed's picture, in pixels: of the demo model, Retrain moves retained pictures by 0.33
(and loses 2 % of what is right), gradient ascent by 0.96 (and loses all of it)."""


def faces_kept(
    before: Sequence[frozenset[str]], after: Sequence[frozenset[str]], about: dict[str, Any]
) -> Comparison | None:
    """Of the retained pictures in which the base shows a face, those that still do at the same seed.

    Args:
        before: Labels of the base's pictures.
        after: Those of the erased model's, at the same seeds.
        about: Protocol and command.

    Returns:
        The rates, all of the base's; None where it shows no face.
    """
    shown = [FACE in found for found in before]
    there = sum(shown)
    if not there:
        return None
    left = sum(FACE in found for found, face in zip(after, shown, strict=True) if face)
    name = "faces of the base are there"
    about = {**about, "protocol": f"{about['protocol']}; FACE_FEMALE or FACE_MALE at that score"}
    old, new = (
        Measurement.rate(name, found, there, direction="higher", group=FACES_GROUP, **about) for found in (there, left)
    )
    return Comparison(name, old, new)


def moved(
    before: Sequence[Sequence[Image.Image]],
    after: Sequence[Sequence[Image.Image]],
    clip: ClipScore | None,
    command: str,
) -> Measurement | None:
    """How far retained pictures moved, as a share of the way to another seed's: by CLIP, else in pixels.

    Args:
        before: The base's pictures: a row for each prompt.
        after: Those of the erased model.
        clip: Compares them, if there is one.
        command: The command that made them.

    Returns:
        The mean share; None where the base's pictures are all alike.
    """
    shares = shares_of_another_seed(before, after, clip.distances if clip else pixel_distances)
    if not shares:
        return None
    how = f"1 - cosine of image embeddings, {clip.weights_protocol}" if clip else "mean |difference| over pixels"
    return Measurement.mean(
        f"retained pictures moved, share of the way to another seed's, by {'CLIP' if clip else 'pixels'}",
        shares,
        direction="lower",
        protocol=f"{how}; in units of the distance between the base's pictures of one prompt and two seeds",
        bounds=(0.0, float("inf")),
        group=SHARE_GROUP,
        command=command,
    )


def losses_without_labels(comparisons: Sequence[Comparison], measurements: Sequence[Measurement]) -> list[Loss]:
    """What the verdict hears of the figures that ask for no label."""
    found = [
        drop(pair.before, pair.after, what="the rate of the base's faces that are there")
        for pair in comparisons
        if pair.after.group == FACES_GROUP
    ]
    return found + [
        distance(
            item,
            words=f"retained pictures moved by {percent(item.value)} of the way to another seed's "
            f"({item.name.rpartition(' ')[2]}; at most {percent(MOVED_AT_MOST)})",
            limit=MOVED_AT_MOST,
            ceiling=MOVED_FOR_CERTAIN,
        )
        for item in measurements
        if item.group == SHARE_GROUP
    ]
