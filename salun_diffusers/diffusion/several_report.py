"""Figures and a verdict of several concepts: of those erased together, and of those that were lost in earlier runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.kept import FACES_GROUP
from salun_diffusers.diffusion.validation import Pictures, Samples, measure
from salun_diffusers.evaluation.detectors import Detector, NoDetector, SeveralDetectors
from salun_diffusers.evaluation.label_rates import presence
from salun_diffusers.reports.intervals import fall_limits
from salun_diffusers.reports.measurement import Comparison, Measurement
from salun_diffusers.reports.verdict import GONE, Verdict

EARLIER_GROUP, EACH_GROUP, INTERFERENCE_GROUP = "erased earlier", "concept by concept", "interference"
_KEPT = ("retained", "retained across")
Judge = Callable[[Sequence[Comparison], Sequence[Measurement]], tuple[Verdict, str]]
# Of several verdicts the first of these counts.
_WORST_FIRST: tuple[Verdict, ...] = ("no effect", "partly erased", "over-erased", "not measured", "erased")
_MOST_NAMED = 3


@dataclass(frozen=True)
class Judged:
    """What was measured, and what it says.

    Args:
        comparisons: Before and after, in reading order.
        measurements: Of the erased model alone.
        verdict: The outcome in two words.
        reason: The outcome in a sentence.
    """

    comparisons: tuple[Comparison, ...]
    measurements: tuple[Measurement, ...]
    verdict: Verdict
    reason: str


def detectors_of(detector: Detector) -> tuple[Detector, ...]:
    """The detector of each concept that is looked for, in the order of `Concept.looked_for`."""
    return detector.parts if isinstance(detector, SeveralDetectors) else (detector,)


def measure_several(
    concept: Concept, detector: Detector, pictures: tuple[Pictures, Pictures], command: str, judge: Judge
) -> Judged:
    """All figures of a report and its verdict, where more than one concept is looked for.

    Of a join first the concepts together, each by its own detector, and everything else together; then each concept by
    itself, and what the erasure of all did to its rate elsewhere. A join is erased if each of its concepts is.

    Args:
        concept: What was erased.
        detector: Looks for each.
        pictures: Of the base model, and the erased model's at the same seeds.
        command: The command that made them, for the record.
        judge: The verdict on one concept's figures.
    """
    detectors, own, (before, after) = detectors_of(detector), len(concept.parts or (concept,)), pictures
    if concept.parts:
        judged = _judged_together(concept, detectors[:own], pictures, command, judge)
    else:
        comparisons, measurements = measure(concept, detectors[0], before, after, command)
        judged = Judged((*comparisons,), (*measurements,), *judge(comparisons, measurements))
    found = [
        _rate(f"{one.name} (erased earlier) appears for its prompts", one, its_own, (old, new), EARLIER_GROUP, command)
        for one, its_own, old, new in zip(concept.earlier, detectors[own:], before.earlier, after.earlier, strict=True)
    ]
    back = "".join(
        f" {one.name!r}, erased earlier, came back: it appears in {pair.after.text()} of the pictures for its prompts, "
        f"{pair.before.text()} before."
        for one, pair in zip(concept.earlier, found, strict=True)
        if came_back(pair)
    )
    return replace(judged, comparisons=(*judged.comparisons, *found), reason=judged.reason + back)


def came_back(pair: Comparison) -> bool:
    """Whether a rate that should stay low rose above what counts as gone, and that is no chance."""
    _, most = fall_limits(pair.before.value, pair.before.n, pair.after.value, pair.after.n)
    return pair.after.value > GONE and most < 0


def _judged_together(
    concept: Concept, detectors: Sequence[Detector], pictures: tuple[Pictures, Pictures], command: str, judge: Judge
) -> Judged:
    """Figures and verdict of a join."""
    parts, (before, after) = concept.parts, pictures
    old, new = _by_part(before, parts), _by_part(after, parts)
    found = [
        measure(part, detector, early, late, command)
        for part, detector, early, late in zip(parts, detectors, old, new, strict=True)
    ]
    pairs = [[*comparisons] for comparisons, _ in found]
    gone = [next((pair for pair in of if pair.after.group == "concept"), None) for of in pairs]
    told = [pair for pair in gone if pair]
    together = [_pooled(f"{concept.name} appear for their prompts", told)] if told else []
    kept = [
        _pooled(same[0].name, same)
        for group in _KEPT
        if (same := [pair for of in pairs for pair in of if pair.after.group == group])
    ]
    kept.sort(key=lambda pair: pair.change)
    shared = [*kept, *(pair for of in pairs for pair in of if pair.after.group == FACES_GROUP)]
    measurements = [
        replace(item, name=f"{part.name}: {item.name}")
        for part, (_, alone) in zip(parts, found, strict=True)
        for item in alone
        if item.group != "drift"
    ]
    _, drift = measure(_unlabelled(concept), NoDetector(), before, after, command)
    each = [_grouped(pair, EACH_GROUP) for pair in told]
    rest = [pair for of in pairs for pair in of if pair.after.group not in ("concept", *_KEPT, FACES_GROUP)]
    interference = _interference(parts, detectors, before, after, command)
    verdicts = [judge([*([pair] if pair else []), *shared], measurements) for pair in gone]
    return Judged(
        (*together, *shared, *each, *interference, *rest),
        (*measurements, *drift),
        *_worst(parts, told, verdicts, judge([*together, *shared], measurements)),
    )


def _worst(
    parts: Sequence[Concept],
    gone: Sequence[Comparison],
    verdicts: Sequence[tuple[Verdict, str]],
    together: tuple[Verdict, str],
) -> tuple[Verdict, str]:
    """The verdict on a join: that of its worst concepts, which are named."""
    worst = min((verdict for verdict, _ in verdicts), key=_WORST_FIRST.index)
    if worst == "erased":
        rates = ", ".join(f"{part.name} {pair.after.text()}" for part, pair in zip(parts, gone, strict=True))
        return worst, f"Each of the {len(parts)} concepts is gone ({rates} of its pictures). Together: {together[1]}"
    named = [(part.name, reason) for part, (verdict, reason) in zip(parts, verdicts, strict=True) if verdict == worst]
    more = f" So it is of {len(named) - _MOST_NAMED} more." if len(named) > _MOST_NAMED else ""
    return worst, " ".join(f"{name}: {reason}" for name, reason in named[:_MOST_NAMED]) + more


def _by_part(pictures: Pictures, parts: Sequence[Concept]) -> list[Pictures]:
    """The pictures of a join, concept by concept: it lists their prompts one concept after the other."""
    found, forget, retain = [], 0, 0
    for part in parts:
        ends = forget + len(part.forget_evaluation), retain + len(part.retain_evaluation)
        found.append(
            Pictures(
                Samples(part.forget_evaluation, pictures.forget.pictures[forget : ends[0]]),
                Samples(part.retain_evaluation, pictures.retain.pictures[retain : ends[1]]),
            )
        )
        forget, retain = ends
    return found


def _interference(
    parts: Sequence[Concept], detectors: Sequence[Detector], before: Pictures, after: Pictures, command: str
) -> list[Comparison]:
    """How often each concept is found where it was not asked for: in pictures of the others, and of what stays."""
    rows = []
    starts = [sum(len(part.forget_evaluation) for part in parts[:number]) for number in range(len(parts))]
    for part, detector, start in zip(parts, detectors, starts, strict=True):
        if not part.target_labels or detector.protocol == "none":
            continue
        end = start + len(part.forget_evaluation)
        others = tuple(
            Samples((*side.prompts[:start], *side.prompts[end:]), (*side.pictures[:start], *side.pictures[end:]))
            for side in (before.forget, after.forget)
        )
        for where, (old, new) in (
            ("for prompts of the other concepts", others), ("for prompts of what stays", (before.retain, after.retain))
        ):  # fmt: skip
            if old.prompts:
                name = f"{part.name} appears {where}"
                rows.append(_rate(name, part, detector, (old, new), INTERFERENCE_GROUP, command))
    return rows


def _rate(
    name: str, concept: Concept, detector: Detector, samples: tuple[Samples, Samples], group: str, command: str
) -> Comparison:
    """How often a concept is found in pictures before and after."""
    old, new = (
        presence(
            name,
            detector.labels([picture for row in side.pictures for picture in row]),
            concept.target_labels,
            group=group,
            protocol=detector.protocol,
            command=command,
        ).of(_digest([prompt.prompt for prompt in side.prompts]))
        for side in samples
    )
    return Comparison(name, old, new)


def _pooled(name: str, pairs: Sequence[Comparison]) -> Comparison:
    """Several rates as one, over all of their pictures."""

    def sum_of(rates: Sequence[Measurement]) -> Measurement:
        first = rates[0]
        about: dict[str, Any] = {"direction": first.direction, "group": first.group, "command": first.command}
        protocol = "; ".join(dict.fromkeys(rate.protocol for rate in rates))
        hits = sum(round(rate.value * rate.n) for rate in rates)
        pooled = Measurement.rate(name, hits, sum(rate.n for rate in rates), protocol=protocol, **about)
        return pooled.of(_digest([rate.subject for rate in rates]))

    return Comparison(name, sum_of([pair.before for pair in pairs]), sum_of([pair.after for pair in pairs]))


def _digest(texts: Sequence[str]) -> str:
    return f"{len(texts)} of {hashlib.sha256(chr(10).join(texts).encode()).hexdigest()[:8]}"


def _grouped(pair: Comparison, group: str) -> Comparison:
    return Comparison(pair.name, replace(pair.before, group=group), replace(pair.after, group=group))


def _unlabelled(concept: Concept) -> Concept:
    """The concept as one that nobody looks for."""
    return replace(concept, parts=(), target_labels=frozenset())
