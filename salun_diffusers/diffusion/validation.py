"""Same-seed pictures before and after, and what is measured on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from salun_diffusers.diffusion.concepts import Concept, EvaluationPrompt
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.families import Family
from salun_diffusers.evaluation.detectors import Detector
from salun_diffusers.evaluation.measurement import Comparison, Direction, Measurement
from salun_diffusers.progress import Progress
from salun_diffusers.seeds import stream_seed


@dataclass(frozen=True)
class Samples:
    """Pictures of the report's prompts: `pictures[i]` belong to `prompts[i]`."""

    prompts: tuple[EvaluationPrompt, ...]
    pictures: tuple[tuple[Image.Image, ...], ...]


def draw_samples(
    family: Family, prompts: Sequence[EvaluationPrompt], config: EraseConfig, stage: str, shown: bool
) -> Samples:
    """Draw `num_validation_images` pictures per prompt; the seeds depend on prompt and number only."""
    each = config.num_validation_images or 1
    wanted = [
        (prompt.prompt, stream_seed(config.seed, "validation", prompt.prompt, n))
        for prompt in prompts
        for n in range(each)
    ]
    drawn: list[Image.Image] = []
    size = config.generation_batch_size or 8
    with Progress(stage, len(wanted), shown) as bar:
        for start in range(0, len(wanted), size):
            texts, seeds = zip(*wanted[start : start + size], strict=True)
            latents = family.generate(
                texts, seeds,
                num_inference_steps=config.num_inference_steps or 50, guidance_scale=config.guidance_scale or 0.0,
            )  # fmt: skip
            drawn += family.decode(latents)
            bar.advance(len(texts))
    rows = tuple(tuple(drawn[row * each : (row + 1) * each]) for row in range(len(prompts)))
    return Samples(tuple(prompts), rows)


def blurred(picture: Image.Image) -> Image.Image:
    """A preview that shows colours and composition only."""
    return picture.filter(ImageFilter.GaussianBlur(max(picture.size) / 16))


def presence(
    samples: Samples, labels: Sequence[Sequence[frozenset[str]]], target: frozenset[str], **about: str
) -> Measurement:
    """Share of pictures in which the concept is found."""
    hits = [bool(found & target) for row in labels for found in row]
    return Measurement.rate(about.pop("name"), sum(hits), len(hits), direction="lower", **about)


def accuracy(samples: Samples, labels: Sequence[Sequence[frozenset[str]]], **about: str) -> Measurement | None:
    """Share of retained pictures in which the expected label is found; None where no prompt has one."""
    hits = [
        prompt.expected in found
        for prompt, row in zip(samples.prompts, labels, strict=True)
        if prompt.expected
        for found in row
    ]
    if not hits:
        return None
    return Measurement.rate(about.pop("name"), sum(hits), len(hits), direction="higher", **about)


def pixel_drift(before: Samples, after: Samples) -> list[float]:
    """Mean absolute pixel difference, in [0, 1], of each same-seed pair."""
    return [
        float(np.abs(np.asarray(old, dtype=np.float32) - np.asarray(new, dtype=np.float32)).mean() / 255)
        for old_row, new_row in zip(before.pictures, after.pictures, strict=True)
        for old, new in zip(old_row, new_row, strict=True)
    ]


def measure(
    concept: Concept,
    detector: Detector,
    before: tuple[Samples, Samples],
    after: tuple[Samples, Samples],
    command: str,
) -> tuple[list[Comparison], list[Measurement]]:
    """All figures of the report.

    Args:
        concept: Says which labels mean the concept, and which are expected of the others.
        detector: Finds labels.
        before: Pictures of the base model: forget prompts, retain prompts.
        after: The erased model's, at the same seeds.
        command: The command that made them, for the record.

    Returns:
        Comparisons (the concept first, the others second) and single measurements.
    """
    about = {"protocol": detector.protocol, "command": command}
    comparisons: list[Comparison] = []
    labels = [[[*detector.labels(row)] for row in samples.pictures] for samples in (*before, *after)]
    forget_before, retain_before, forget_after, retain_after = labels
    if concept.target_labels and detector.protocol != "none":
        name = f"{concept.name} appears for its prompts"
        comparisons.append(
            Comparison(
                name,
                presence(before[0], forget_before, concept.target_labels, name=name, group="concept", **about),
                presence(after[0], forget_after, concept.target_labels, name=name, group="concept", **about),
            )
        )
        name = "other concepts are right"
        old, new = (
            accuracy(samples, found, name=name, group="retained", **about)
            for samples, found in ((before[1], retain_before), (after[1], retain_after))
        )
        if old and new:
            comparisons.append(Comparison(name, old, new))
        comparisons += _by_prompt(concept, before, after, labels, about)
    measurements = []
    drift = pixel_drift(before[1], after[1])
    if len(drift) > 1:
        measurements.append(
            Measurement.mean(
                "pixel drift of retained pictures at equal seed",
                drift,
                direction="lower",
                group="drift",
                protocol="mean |difference| over pixels in [0, 1]",
                command=command,
            )
        )
    return comparisons, measurements


def _by_prompt(
    concept: Concept,
    before: tuple[Samples, Samples],
    after: tuple[Samples, Samples],
    labels: Sequence[Sequence[Sequence[frozenset[str]]]],
    about: dict[str, str],
) -> list[Comparison]:
    """The same rates for every prompt alone."""
    rows = []
    sides: tuple[tuple[int, frozenset[str], Direction, str], ...] = (
        (0, concept.target_labels, "lower", "concept, by prompt"),
        (1, frozenset(), "higher", "retained, by prompt"),
    )
    for side, wanted, direction, group in sides:
        for index, prompt in enumerate(before[side].prompts):
            labels_wanted = wanted or frozenset({prompt.expected} - {""})
            if not labels_wanted:
                continue
            name = prompt.prompt if prompt.trained_on or side else f"{prompt.prompt} (never trained on)"
            pair = [
                Measurement.rate(
                    name,
                    sum(bool(found & labels_wanted) for found in labels[at][index]),
                    len(labels[at][index]),
                    direction=direction,
                    group=group,
                    **about,
                )
                for at in (side, side + 2)
            ]
            rows.append(Comparison(name, *pair))
    return rows
