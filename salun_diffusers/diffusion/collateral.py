"""The collateral report: what else an erasure changed, before and after, one number each with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from salun_diffusers.diffusion.collateral_prompts import EVERYDAY, NEIGHBOUR, Collateral, collateral_pictures
from salun_diffusers.diffusion.concepts import DEMO
from salun_diffusers.diffusion.request import Request
from salun_diffusers.diffusion.sampler import Sampler
from salun_diffusers.evaluation.alignment import CLIP_BOUNDS, PIXEL_BOUNDS, PIXEL_PROTOCOL, ClipScore, pixel_distances
from salun_diffusers.evaluation.detectors import Detector
from salun_diffusers.evaluation.feature_extractors import make_extractor
from salun_diffusers.evaluation.fidelity import kernel_distance
from salun_diffusers.reports.measurement import Comparison, Measurement
from salun_diffusers.seeds import stream

_BLOCKS = 6


@dataclass(frozen=True)
class CollateralPictures:
    """Pictures of one model.

    Args:
        asked: What they should show.
        pictures: In that order.
        again: The base's everyday pictures at other seeds, which distances are measured from; none of the erased model.
    """

    asked: tuple[Collateral, ...]
    pictures: tuple[Image.Image, ...]
    again: tuple[Image.Image, ...] = ()


def draw_collateral(sampler: Sampler, request: Request, when: str) -> CollateralPictures | None:
    """Draw the collateral report's pictures with one model; None where none is wanted.

    Args:
        sampler: Draws.
        request: Whether it is wanted, and of what.
        when: ``before`` or ``after``, for the progress bars.
    """
    if not request.config.collateral:
        return None
    asked = collateral_pictures(request.concept, clip=bool(request.config.clip))
    seed = request.settings.seed

    def drawn(some: Sequence[Collateral], stream: str) -> tuple[Image.Image, ...]:
        seeds = [one.seed(seed, stream) for one in some]
        return tuple(sampler.pictures([one.prompt for one in some], seeds, f"{when}, collateral"))

    captions = [one for one in asked if one.group == EVERYDAY] if when == "before" else []
    return CollateralPictures(
        tuple(asked), drawn(asked, "collateral"), drawn(captions, "collateral again") if captions else ()
    )


def measure_collateral(
    request: Request, detector: Detector, before: CollateralPictures, after: CollateralPictures, command: str
) -> tuple[list[Comparison], list[Measurement]]:
    """All figures of the collateral report.

    Args:
        request: Whose concept, detector and CLIP.
        detector: Finds labels.
        before: Pictures of the base model.
        after: The erased model's, at the same seeds.
        command: For the record.

    Returns:
        Comparisons, and what only the pair of both has: drift.
    """
    measured = _Measured(request, detector, before, after, command)
    groups = dict.fromkeys(one.group for one in before.asked if one.group not in (NEIGHBOUR, EVERYDAY))
    neighbours = dict.fromkeys(one.prompt for one in before.asked if one.group == NEIGHBOUR)
    pairs, alone = [], []
    for prompt in neighbours:
        rows = [row for row, one in enumerate(before.asked) if (one.group, one.prompt) == (NEIGHBOUR, prompt)]
        pair = measured.labels(prompt, rows, NEIGHBOUR) or measured.clip_score(prompt, rows, NEIGHBOUR)
        if pair:
            pairs.append(pair)
        else:
            alone.append(measured.drift(prompt, rows, NEIGHBOUR))
    for group in groups:
        rows = [row for row, one in enumerate(before.asked) if one.group == group]
        pair = measured.labels(f"{group} are right", rows, "words") or measured.nearest(f"{group} are right", rows)
        pairs += [pair] if pair else []
    rows = [row for row, one in enumerate(before.asked) if one.group == EVERYDAY]
    for pair in (measured.clip_score("CLIP score", rows, EVERYDAY), measured.kernel(rows)):
        pairs += [pair] if pair else []
    return pairs, [*alone, measured.drift("pixel drift at equal seed", rows, EVERYDAY)]


class _Measured:
    """Both sides, and what looks at them."""

    def __init__(
        self, request: Request, detector: Detector, before: CollateralPictures, after: CollateralPictures, command: str
    ) -> None:
        self._request, self._detector, self._command = request, detector, command
        self._asked, self._again, self._sides = before.asked, before.again, (before.pictures, after.pictures)
        self._clip = ClipScore(request.config.clip) if request.config.clip else None

    def _both(self, rows: Sequence[int]) -> list[list[Image.Image]]:
        return [[side[row] for row in rows] for side in self._sides]

    def labels(self, name: str, rows: Sequence[int], group: str) -> Comparison | None:
        """How often the detector finds all that a picture should show; None where it knows nothing of these."""
        known = [row for row in rows if self._asked[row].wanted]
        if not known or self._detector.protocol == "none":
            return None
        about = {"direction": "higher", "protocol": self._detector.protocol}
        return self._rates(name, [
            [self._asked[row].wanted <= found for row, found in zip(known, self._detector.labels(side), strict=True)]
            for side in self._both(known)
        ], group, about)  # fmt: skip

    def nearest(self, name: str, rows: Sequence[int]) -> Comparison | None:
        """How often CLIP finds a picture nearer to its prompt than to the other sentences."""
        if self._clip is None:
            return None
        texts = [self._clip.texts([self._asked[row].prompt, *self._asked[row].others]) for row in rows]
        hits = [
            [int((known @ image).argmax()) == 0 for known, image in zip(texts, self._clip.images(side), strict=True)]
            for side in self._both(rows)
        ]
        protocol = f"CLIP zero-shot against the other sentences of its kind; {self._clip.weights_protocol}"
        return self._rates(name, hits, "words", {"direction": "higher", "protocol": protocol})

    def _rates(self, name: str, hits: Sequence[Sequence[bool]], group: str, about: dict[str, Any]) -> Comparison:
        old, new = (
            Measurement.rate(name, sum(side), len(side), group=group, command=self._command, **about) for side in hits
        )
        return Comparison(name, old, new)

    def clip_score(self, name: str, rows: Sequence[int], group: str) -> Comparison | None:
        """CLIP's agreement of pictures and prompts; None where there is no CLIP."""
        if self._clip is None:
            return None
        prompts = [self._asked[row].prompt for row in rows]
        old, new = (
            self._mean(name, self._clip.scores(side, prompts), group, "higher", self._clip.protocol, CLIP_BOUNDS)
            for side in self._both(rows)
        )
        return Comparison(name, old, new)

    def drift(self, name: str, rows: Sequence[int], group: str) -> Measurement:
        """How far pictures moved at equal seeds."""
        old, new = self._both(rows)
        return self._mean(name, pixel_distances(old, new), group, "lower", PIXEL_PROTOCOL, PIXEL_BOUNDS)

    def kernel(self, rows: Sequence[int]) -> Comparison | None:
        """KID to the base's pictures of the same captions at other seeds: 0 where nothing changed, in the mean.

        Disjoint blocks are independent, so that their mean has Student's interval, which overlapping subsets have not.
        None where there is no extractor: the demo's own, or CLIP.
        """
        name = "demo" if self._request.concept.detector == DEMO else "clip" if self._request.config.clip else ""
        if not name:
            return None
        extractor = make_extractor(name, self._request.config.clip if name == "clip" else None)
        reference, size = extractor(self._again), len(rows) // _BLOCKS
        # Two orders: a block and its reference are of other captions, as the estimate takes them for independent.
        mine, theirs = (
            torch.randperm(len(rows), generator=stream(0, "collateral", side))[: size * _BLOCKS].split(size)
            for side in ("blocks", "reference")
        )
        found = []
        for side in self._both(rows):
            features = extractor(side)
            values = [
                kernel_distance(features[block], reference[other], subsets=1, subset_size=size, seed=0)[0]
                for block, other in zip(mine, theirs, strict=True)
            ]
            found.append(values)
        protocol = (
            f"KID to the base's pictures of these captions at other seeds, in {_BLOCKS} disjoint blocks of {size}; "
            f"{extractor.protocol}"
        )
        bounds = (-float("inf"), float("inf"))
        old, new = (self._mean(f"KID ({name} features)", side, EVERYDAY, "lower", protocol, bounds) for side in found)
        return Comparison(old.name, old, new)

    def _mean(
        self, name: str, values: list[float], group: str, direction: Any, protocol: str, bounds: tuple[float, float]
    ) -> Measurement:
        return Measurement.mean(
            name, values, group=group, direction=direction, protocol=protocol, bounds=bounds, command=self._command
        )
