"""Same-seed pictures before and after, and what is measured on them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from PIL import Image

from salun_diffusers.diffusion.concepts import Concept, EvaluationPrompt
from salun_diffusers.diffusion.kept import faces_kept, moved
from salun_diffusers.diffusion.sampler import Sampler
from salun_diffusers.diffusion.strength_prompts import report_seed
from salun_diffusers.evaluation.alignment import PIXEL_BOUNDS, PIXEL_PROTOCOL, ClipScore, pixel_distances
from salun_diffusers.evaluation.detectors import ClipDetector, Detector, NudityDetector, WithClip
from salun_diffusers.evaluation.drawing_pipeline import describe_scheduler
from salun_diffusers.evaluation.label_rates import presence, share_right
from salun_diffusers.evaluation.nudity import measure_nudity
from salun_diffusers.reports.measurement import Comparison, Direction, Measurement

Side = Literal["forget", "retain"]
T = TypeVar("T")


@dataclass(frozen=True)
class Samples:
    """Pictures of the report's prompts: `pictures[i]` belong to `prompts[i]`."""

    prompts: tuple[EvaluationPrompt, ...]
    pictures: tuple[tuple[Image.Image, ...], ...]


@dataclass(frozen=True)
class Pictures:
    """Pictures of one model.

    Args:
        forget: Of the concept's prompts.
        retain: Of what must stay.
        drawn_by: Class and settings of the scheduler.
        earlier: Of each concept that the base lost before.
    """

    forget: Samples
    retain: Samples
    drawn_by: Mapping[str, Any] = field(default_factory=dict)
    earlier: tuple[Samples, ...] = ()

    def sides(self) -> tuple[tuple[Side, Samples], tuple[Side, Samples]]:
        """Both, with their names."""
        return ("forget", self.forget), ("retain", self.retain)


def draw_pictures(sampler: Sampler, concept: Concept, when: str) -> Pictures:
    """Draw the report's pictures with one model.

    Args:
        sampler: Draws.
        concept: Its evaluation prompts.
        when: ``before`` or ``after``, for the progress bars.
    """
    return Pictures(
        draw_samples(sampler, concept.forget_evaluation, f"{when}, forget"),
        draw_samples(sampler, concept.retain_evaluation, f"{when}, retain"),
        describe_scheduler(sampler.family.pipe),
        tuple(draw_samples(sampler, one.forget_evaluation, f"{when}, {one.name}") for one in concept.earlier),
    )


def draw_samples(sampler: Sampler, prompts: Sequence[EvaluationPrompt], title: str) -> Samples:
    """Draw `num_validation_images` pictures per prompt; the seeds depend on prompt and number only.

    Args:
        sampler: Draws.
        prompts: What to draw.
        title: Name of the progress bar.
    """
    each, seed = sampler.settings.num_validation_images, sampler.settings.seed
    drawn = sampler.pictures(
        [prompt.prompt for prompt in prompts for _ in range(each)],
        [report_seed(seed, prompt.prompt, number) for prompt in prompts for number in range(each)],
        title,
    )
    rows = tuple(tuple(drawn[row * each : (row + 1) * each]) for row in range(len(prompts)))
    return Samples(tuple(prompts), rows)


def measure(
    concept: Concept, detector: Detector, before: Pictures, after: Pictures, command: str
) -> tuple[list[Comparison], list[Measurement]]:
    """All figures of the report.

    Of the others two rates: whether they are there, and where the detector knows labels of another kind, whether those
    are right as well (the in-domain and the cross-domain retain accuracy of UnlearnCanvas, arXiv 2402.11846). A spoilt
    picture may pass for the right style, but not for the right shape.

    Args:
        concept: Says which labels mean the concept, and which are expected of the others.
        detector: Finds labels.
        before: Pictures of the base model.
        after: The erased model's, at the same seeds.
        command: The command that made them, for the record.

    Returns:
        Comparisons (the concept first, then the others, of their two rates the one that fell more) and single
        measurements.
    """
    detector, clip = _taken_apart(detector)
    about: dict[str, Any] = {"protocol": detector.protocol, "command": command}
    comparisons: list[Comparison] = []
    measurements: list[Measurement] = []
    forget = _LabelsOf(before.forget, after.forget, detector)
    retain = _LabelsOf(before.retain, after.retain, detector)
    if concept.target_labels and detector.protocol != "none":
        name = f"{concept.name} appears for its prompts"
        comparisons.append(
            Comparison(
                name,
                presence(name, _flat(forget.before), concept.target_labels, **about),
                presence(name, _flat(forget.after), concept.target_labels, **about),
            )
        )
        across = [prompt.expected_across for prompt in before.retain.prompts]
        kind = next((label.split(":")[0] for label in across if label), "")
        kept = []
        for name, group, expected in (
            ("other concepts are right", "retained", [prompt.expected for prompt in before.retain.prompts]),
            (f"{kind}s of the others are right", "retained across", across),
        ):
            wanted = [label for label, row in zip(expected, before.retain.pictures, strict=True) for _ in row]
            old, new = (
                share_right(name, _flat(found), wanted, group=group, **about) for found in (retain.before, retain.after)
            )
            if old and new:
                kept.append(Comparison(name, old, new))
        # The larger fall first: it decides the verdict and stands at the top of the page.
        comparisons += sorted(kept, key=lambda pair: pair.change)
        if faces := faces_kept(_flat(retain.before), _flat(retain.after), about):
            comparisons.append(faces)
        comparisons += _body_parts(detector, before.forget, after.forget, command)
        comparisons += _by_prompt(concept, forget, retain, about)
        if not all(prompt.expected for prompt in before.retain.prompts):
            alone = moved(before.retain.pictures, after.retain.pictures, clip, command)
            measurements += [alone] if alone else []
    measurements += _became(concept, forget.after, about)
    drift = pixel_distances(_flat(before.retain.pictures), _flat(after.retain.pictures))
    if drift:
        measurements.append(
            Measurement.mean(
                "pixel drift of retained pictures at equal seed",
                drift,
                direction="lower",
                group="drift",
                protocol=PIXEL_PROTOCOL,
                bounds=PIXEL_BOUNDS,
                command=command,
            )
        )
    told = [Comparison(p.name, *(_told(item, concept, before) for item in (p.before, p.after))) for p in comparisons]
    return told, [_told(item, concept, before) for item in measurements]


def _taken_apart(detector: Detector) -> tuple[Detector, ClipScore | None]:
    """A detector, and the CLIP that came with it."""
    if isinstance(detector, WithClip):
        return detector.detector, detector.clip
    return detector, detector.clip if isinstance(detector, ClipDetector) else None


def _told(item: Measurement, concept: Concept, pictures: Pictures) -> Measurement:
    """A measurement with what it was measured on: numbers of other prompts, or without another concept, are others."""
    if item.group.endswith("by prompt"):
        return item
    mine = item.group in ("concept", "became", "body parts")
    prompts = [prompt.prompt for prompt in (pictures.forget if mine else pictures.retain).prompts]
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
    whose = "" if mine else f"without {concept.name}, "
    return item.of(f"{whose}{len(prompts)} prompt{'' if len(prompts) == 1 else 's'} {digest[:8]}")


class _LabelsOf:
    """What a detector finds in the pictures of some prompts, before and after, prompt by prompt."""

    def __init__(self, before: Samples, after: Samples, detector: Detector) -> None:
        self.prompts = before.prompts
        self.before = [[*detector.labels(row)] for row in before.pictures]
        self.after = [[*detector.labels(row)] for row in after.pictures]

    def rate(
        self, index: int, name: str, wanted: frozenset[str], direction: Direction, group: str, about: dict[str, Any]
    ) -> Comparison:
        """How often one of the wanted labels is in a prompt's pictures."""
        old, new = (
            presence(name, found[index], wanted, direction=direction, group=group, **about)
            for found in (self.before, self.after)
        )
        return Comparison(name, old, new)


def _became(concept: Concept, labels: Sequence[Sequence[frozenset[str]]], about: dict[str, Any]) -> list[Measurement]:
    """What the detector sees instead of the concept: each label of its group, most frequent first."""
    groups = {label.split(":")[0] for label in concept.target_labels if ":" in label}
    if len(groups) != 1:
        return []
    seen = Counter(label for found in _flat(labels) for label in found if label.split(":")[0] in groups)
    return [
        Measurement.rate(
            f"became {label.split(':')[1]}", count, len(_flat(labels)), direction="neither", group="became", **about
        )
        for label, count in sorted(seen.items(), key=lambda pair: (-pair[1], pair[0]))
        if label not in concept.target_labels
    ]


def _flat(rows: Sequence[Sequence[T]]) -> list[T]:
    return [item for row in rows for item in row]


def _body_parts(detector: Detector, before: Samples, after: Samples, command: str) -> list[Comparison]:
    """Boxes per body part on the forget prompts, where the detector is NudeNet, as `salun evaluate nudity` counts."""
    if not isinstance(detector, NudityDetector):
        return []
    old, new = (
        measure_nudity(detector.nudenet.boxes(_flat(samples.pictures)), detector.rules, command=command)
        for samples in (before, after)
    )
    return [
        Comparison(late.name, early, late) for early, late in zip(old, new, strict=True) if late.group == "body parts"
    ]


def _by_prompt(concept: Concept, forget: _LabelsOf, retain: _LabelsOf, about: dict[str, Any]) -> list[Comparison]:
    """The same rates for every prompt alone."""
    rows = []
    for index, prompt in enumerate(forget.prompts):
        if concept.target_labels:
            name = prompt.prompt if prompt.trained_on else f"{prompt.prompt} (never trained on)"
            rows.append(forget.rate(index, name, concept.target_labels, "lower", "concept, by prompt", about))
    for index, prompt in enumerate(retain.prompts):
        if prompt.expected:
            wanted = frozenset({prompt.expected})
            rows.append(retain.rate(index, prompt.prompt, wanted, "higher", "retained, by prompt", about))
    return rows
