"""Same-seed pictures before and after, and what is measured on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from salun_diffusers.diffusion.concepts import Concept, EvaluationPrompt
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.families import Family
from salun_diffusers.diffusion.latent_cache import Generate, draw_all
from salun_diffusers.evaluation.alignment import PIXEL_PROTOCOL, pixel_distances
from salun_diffusers.evaluation.detectors import Detector, NudityDetector
from salun_diffusers.evaluation.label_rates import presence, share_right
from salun_diffusers.evaluation.nudity import measure_nudity
from salun_diffusers.progress import Progress
from salun_diffusers.reports.measurement import Comparison, Direction, Measurement
from salun_diffusers.seeds import stream_seed

T = TypeVar("T")


@dataclass(frozen=True)
class Samples:
    """Pictures of the report's prompts: `pictures[i]` belong to `prompts[i]`."""

    prompts: tuple[EvaluationPrompt, ...]
    pictures: tuple[tuple[Image.Image, ...], ...]


def draw_samples(
    family: Family,
    generate: Generate,
    prompts: Sequence[EvaluationPrompt],
    config: EraseConfig,
    stage: str,
    shown: bool,
    *,
    process: tuple[int, int] = (0, 1),
    wait: Callable[[], None] = lambda: None,
) -> Samples:
    """Draw `num_validation_images` pictures per prompt; the seeds depend on prompt and number only.

    Args:
        family: Makes pictures of latents.
        generate: Draws them, as for `draw_all`.
        prompts: What to draw.
        config: Resolved settings.
        stage: Name of the progress bar.
        shown: Whether there is one.
        process: As for `draw_all`.
        wait: As for `draw_all`.
    """
    each = config.num_validation_images or 1
    texts = [prompt.prompt for prompt in prompts for _ in range(each)]
    seeds = [stream_seed(config.seed, "validation", prompt.prompt, n) for prompt in prompts for n in range(each)]
    size = config.generation_batch_size or 8
    with Progress(stage, len(texts), shown) as bar:
        latents = draw_all(
            generate, texts, seeds,
            num_inference_steps=config.num_inference_steps or 50, guidance_scale=config.guidance_scale or 0.0,
            batch_size=size, progress=bar.advance, process=process, wait=wait,
        )  # fmt: skip
    drawn = [picture for part in latents.split(size) for picture in family.decode(part)]
    rows = tuple(tuple(drawn[row * each : (row + 1) * each]) for row in range(len(prompts)))
    return Samples(tuple(prompts), rows)


def measure(
    concept: Concept,
    detector: Detector,
    before: tuple[Samples, Samples],
    after: tuple[Samples, Samples],
    command: str,
) -> tuple[list[Comparison], list[Measurement]]:
    """All figures of the report.

    Of the others two rates: whether they are there, and where the detector knows labels of another kind, whether those
    are right as well (the in-domain and the cross-domain retain accuracy of UnlearnCanvas, arXiv 2402.11846). A spoilt
    picture may pass for the right style, but not for the right shape.

    Args:
        concept: Says which labels mean the concept, and which are expected of the others.
        detector: Finds labels.
        before: Pictures of the base model: forget prompts, retain prompts.
        after: The erased model's, at the same seeds.
        command: The command that made them, for the record.

    Returns:
        Comparisons (the concept first, then the others, of their two rates the one that fell more) and single
        measurements.
    """
    about: dict[str, Any] = {"protocol": detector.protocol, "command": command}
    comparisons: list[Comparison] = []
    labels = [[[*detector.labels(row)] for row in samples.pictures] for samples in (*before, *after)]
    forget_before, retain_before, forget_after, retain_after = labels
    if concept.target_labels and detector.protocol != "none":
        name = f"{concept.name} appears for its prompts"
        comparisons.append(
            Comparison(
                name,
                presence(name, _flat(forget_before), concept.target_labels, **about),
                presence(name, _flat(forget_after), concept.target_labels, **about),
            )
        )
        across = [prompt.expected_across for prompt in before[1].prompts]
        kind = next((label.split(":")[0] for label in across if label), "")
        kept = []
        for name, group, expected in (
            ("other concepts are right", "retained", [prompt.expected for prompt in before[1].prompts]),
            (f"{kind}s of the others are right", "retained across", across),
        ):
            wanted = [label for label, row in zip(expected, before[1].pictures, strict=True) for _ in row]
            old, new = (
                share_right(name, _flat(found), wanted, group=group, **about) for found in (retain_before, retain_after)
            )
            if old and new:
                kept.append(Comparison(name, old, new))
        # The larger fall first: it decides the verdict and stands at the top of the page.
        comparisons += sorted(kept, key=lambda pair: pair.change)
        comparisons += _body_parts(detector, before[0], after[0], command)
        comparisons += _by_prompt(concept, before, after, labels, about)
    measurements = _became(concept, forget_after, about)
    drift = pixel_distances(_flat(before[1].pictures), _flat(after[1].pictures))
    if len(drift) > 1:
        measurements.append(
            Measurement.mean(
                "pixel drift of retained pictures at equal seed",
                drift,
                direction="lower",
                group="drift",
                protocol=PIXEL_PROTOCOL,
                command=command,
            )
        )
    return comparisons, measurements


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
    """Boxes per body part on the forget prompts, where the detector is NudeNet; as evaluate_nudity.py counts them."""
    if not isinstance(detector, NudityDetector):
        return []
    old, new = (
        measure_nudity(detector.nudenet.boxes(_flat(samples.pictures)), detector.rules, command=command)
        for samples in (before, after)
    )
    return [
        Comparison(late.name, early, late) for early, late in zip(old, new, strict=True) if late.group == "body parts"
    ]


def _by_prompt(
    concept: Concept,
    before: tuple[Samples, Samples],
    after: tuple[Samples, Samples],
    labels: Sequence[Sequence[Sequence[frozenset[str]]]],
    about: dict[str, Any],
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
                presence(name, labels[at][index], labels_wanted, direction=direction, group=group, **about)
                for at in (side, side + 2)
            ]
            rows.append(Comparison(name, *pair))
    return rows
