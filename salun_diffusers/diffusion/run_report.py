"""From a finished run to `report.json`, `report.html` and `samples/`."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from PIL import Image

from salun_diffusers.accelerator import decided_by_main
from salun_diffusers.diffusion.collateral import CollateralPictures, measure_collateral
from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.kept import losses_without_labels
from salun_diffusers.diffusion.request import Request
from salun_diffusers.diffusion.settings import recorded
from salun_diffusers.diffusion.several_report import Judged, detectors_of, measure_several
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.diffusion.validation import Pictures, Samples, measure
from salun_diffusers.evaluation.detectors import Detector
from salun_diffusers.evaluation.image_folder import blurred
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.files.whole_files import write_text
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.receipt import MaskReceipt
from salun_diffusers.reports.measurement import Comparison, Measurement
from salun_diffusers.reports.page import html_page
from salun_diffusers.reports.report import (
    BlockRow,
    EvaluationReport,
    GridRow,
    MaskSummary,
    ReceiptSummary,
    ReportImages,
)
from salun_diffusers.reports.strength import StrengthCurve
from salun_diffusers.reports.verdict import Verdict, decide_verdict

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors")


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Args:
        before: Pictures of the base model.
        after: The same of the erased model.
        mask: The run's mask.
        receipt: What moved.
        history: Rows of the fine-tuning.
        strength: Rates against the strength, and the one that was taken; None where nobody looked.
        collateral: Pictures of all else, before and after; None where nobody asked for them.
        attacked: What attacks and probes measured on the erased model.
    """

    before: Pictures
    after: Pictures
    mask: SaliencyMask
    receipt: MaskReceipt
    history: Sequence[Mapping[str, Any]]
    strength: StrengthCurve | None = None
    collateral: tuple[CollateralPictures | None, CollateralPictures | None] = (None, None)
    attacked: tuple[Measurement, ...] = ()


def write_report(run: Run, request: Request, detector: Detector | None, outcome: Outcome) -> EvaluationReport:
    """Measure, judge and write the report: the main process does, the others get it.

    Args:
        run: Where it goes.
        request: What was erased, and how.
        detector: Looks for the concept; the main process has one.
        outcome: What is reported.

    Raises:
        ValueError: If the main process has no detector.
    """

    def written() -> EvaluationReport:
        if detector is None:
            raise ValueError("The main process measures, so it needs the detector, found None.")
        return _written(run, request, detector, outcome)

    return decided_by_main(run.accelerator, written)


def _written(run: Run, request: Request, detector: Detector, outcome: Outcome) -> EvaluationReport:
    config, settings, concept = request.config, request.settings, request.concept
    before, after, mask, receipt = outcome.before, outcome.after, outcome.mask, outcome.receipt
    baseline = settings.objective != "relabel"
    judged = figures(concept, detector, before, after, run.command)
    old, new = outcome.collateral
    beside, drifts = measure_collateral(request, detector, old, new, run.command) if old and new else ([], [])
    blocks = tuple(
        BlockRow(row.block, row.weights, row.selected / row.weights, row.moved / row.weights) for row in receipt.blocks
    )
    report = EvaluationReport(
        concept=concept.name,
        verdict=judged.verdict,
        verdict_reason=judged.reason,
        base=config.pretrained_model_name_or_path,
        recipe=f"{settings.objective}, {settings.recipe} settings" if baseline else settings.recipe,
        mask=MaskSummary(mask.density, mask.number_selected, blocks),
        receipt=ReceiptSummary(
            receipt.violations,
            receipt.violations == 0,
            receipt.moved / receipt.weights,
            outcome.strength.chosen if outcome.strength else 1.0,
        ),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        measurements=(*judged.measurements, *outcome.attacked),
        comparisons=judged.comparisons,
        timings=dict(run.clock.seconds),
        # The same scheduler draws both sides; `own` alone does not say which.
        config={**recorded(config, settings), "drawn_by": before.drawn_by, **request.own.recorded()},
        environment={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        command=run.command,
        series=tuple(outcome.history),
        load=request.model.at(run.folder.pipeline).loading_line(),
        strength=outcome.strength,
        collateral=tuple(beside),
        collateral_drift=tuple(drifts),
    )
    obscured = concept.explicit and not config.show_explicit
    if obscured:
        before, after = (hidden(both, concept, detector) for both in (before, after))
    rows = tuple(
        GridRow(prompt.prompt, side, list(old[:8]), list(new[:8]), prompt.trained_on)
        for (side, early), (_, late) in zip(before.sides(), after.sides(), strict=True)
        for prompt, old, new in zip(early.prompts, early.pictures, late.pictures, strict=True)
    )
    _save_samples(run.folder, before, after)
    html = html_page(report, ReportImages(rows, obscure_forget=obscured))
    write_text(run.folder.root / "report.html", html)
    run.folder.write_json("report.json", report.to_json())
    return report


def figures(concept: Concept, detector: Detector, before: Pictures, after: Pictures, command: str) -> Judged:
    """Figures and verdict of one concept or several; arguments as for `measure`."""
    if len(concept.looked_for) > 1:
        return measure_several(concept, detector, (before, after), command, judge)
    comparisons, measurements = measure(concept, detector, before, after, command)
    return Judged(tuple(comparisons), tuple(measurements), *judge(comparisons, measurements))


def judge(comparisons: Sequence[Comparison], measurements: Sequence[Measurement]) -> tuple[Verdict, str]:
    """The verdict on an erasure's figures: the concept's rate, that of labels that should stay, and what needs none.

    Args:
        comparisons: Before and after; of the rates with labels the first counts, which is the one that fell more.
        measurements: Of the erased model alone.
    """
    gone = next((pair for pair in comparisons if pair.after.group == "concept"), None)
    kept = next((pair for pair in comparisons if pair.after.group in ("retained", "retained across")), None)
    return decide_verdict(
        gone.before if gone else None,
        gone.after if gone else None,
        kept.before if kept else None,
        kept.after if kept else None,
        others=losses_without_labels(comparisons, measurements),
    )


def hidden(both: Pictures, concept: Concept, detector: Detector) -> Pictures:
    """The same pictures, blurred where one of the concepts that are looked for may be explicit."""
    for one, its_own in zip(concept.looked_for, detectors_of(detector), strict=True):
        if one.explicit:
            both = _without_explicit(both, one, its_own)
    return both


def _without_explicit(both: Pictures, concept: Concept, detector: Detector) -> Pictures:
    """The same pictures, blurred where they may be explicit.

    Those of forget prompts are; those of what must stay are where the detector finds the concept, as base models draw
    it for harmless prompts too, and all of them where nobody looks.
    """

    def shown(row: Sequence[Image.Image]) -> tuple[Image.Image, ...]:
        looked = detector.protocol != "none" and concept.target_labels
        found = detector.labels(row) if looked else [concept.target_labels or frozenset({"unknown"})] * len(row)
        wanted = concept.target_labels or frozenset({"unknown"})
        return tuple(blurred(one) if labels & wanted else one for one, labels in zip(row, found, strict=True))

    return Pictures(
        Samples(both.forget.prompts, tuple(tuple(map(blurred, row)) for row in both.forget.pictures)),
        Samples(both.retain.prompts, tuple(map(shown, both.retain.pictures))),
    )


def _save_samples(folder: RunFolder, before: Pictures, after: Pictures) -> None:
    """Write pictures as PNG."""
    folder.samples.mkdir(exist_ok=True)
    for when, both in (("before", before), ("after", after)):
        for side, samples in both.sides():
            for row, pictures in enumerate(samples.pictures):
                for number, picture in enumerate(pictures):
                    picture.save(folder.samples / f"{side}-{row:02d}-{number:02d}-{when}.png")
