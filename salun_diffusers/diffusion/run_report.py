"""From a finished run to `report.json`, `report.html` and `samples/`."""

from __future__ import annotations

import dataclasses
import datetime
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal

from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.validation import Samples, measure
from salun_diffusers.evaluation.detectors import Detector
from salun_diffusers.evaluation.image_folder import blurred
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.files.whole_files import write_text
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.receipt import MaskReceipt
from salun_diffusers.reports.page import html_page
from salun_diffusers.reports.report import (
    BlockRow,
    EvaluationReport,
    GridRow,
    MaskSummary,
    ReceiptSummary,
    ReportImages,
    decide_verdict,
)

_ROLES: tuple[tuple[Literal["forget", "retain"], int], ...] = (("forget", 0), ("retain", 1))
_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors")


def write_report(
    run: RunFolder,
    *,
    concept: Concept,
    config: EraseConfig,
    detector: Detector,
    before: Sequence[Samples],
    after: Sequence[Samples],
    mask: SaliencyMask,
    receipt: MaskReceipt,
    history: Sequence[Mapping[str, Any]],
    clock: Mapping[str, float],
    command: str,
    write: bool,
) -> EvaluationReport:
    """Measure, judge and write the report.

    Args:
        run: Where it goes.
        concept: What was erased.
        config: Resolved settings.
        detector: Looks for the concept.
        before: Pictures of the base model: forget prompts, retain prompts.
        after: The same of the erased model.
        mask: The run's mask.
        receipt: What moved.
        history: Rows of the fine-tuning.
        clock: Seconds per stage.
        command: The command line.
        write: Whether this process writes files.
    """
    comparisons, measurements = measure(concept, detector, (before[0], before[1]), (after[0], after[1]), command)
    gone = next((pair for pair in comparisons if pair.after.group == "concept"), None)
    kept = next((pair for pair in comparisons if pair.after.group in ("retained", "retained across")), None)
    verdict, reason = decide_verdict(
        gone.before if gone else None,
        gone.after if gone else None,
        kept.before if kept else None,
        kept.after if kept else None,
    )
    blocks = tuple(
        BlockRow(row.block, row.weights, row.selected / row.weights, row.moved / row.weights) for row in receipt.blocks
    )
    report = EvaluationReport(
        concept=concept.name,
        verdict=verdict,
        verdict_reason=reason,
        base=config.pretrained_model_name_or_path,
        recipe=config.recipe if config.objective == "relabel" else f"{config.objective}, {config.recipe} settings",
        mask=MaskSummary(mask.density, mask.number_selected, blocks),
        receipt=ReceiptSummary(receipt.violations, receipt.violations == 0, receipt.moved / receipt.weights),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        measurements=tuple(measurements),
        comparisons=tuple(comparisons),
        timings=dict(clock),
        config=dataclasses.asdict(config),
        environment={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        command=command,
        series=tuple(history),
    )
    if write:
        hidden = concept.explicit and not config.show_explicit
        rows = tuple(
            GridRow(prompt.prompt, role, list(old[:8]), list(new[:8]), prompt.trained_on)
            for role, side in _ROLES
            for prompt, old, new in zip(before[side].prompts, before[side].pictures, after[side].pictures, strict=True)
        )
        _save_samples(run, before, after, hidden)
        html = html_page(report, ReportImages(rows, obscure_forget=hidden))
        write_text(run.root / "report.html", html)
        run.write_json("report.json", report.to_json())
    return report


def _save_samples(run: RunFolder, before: Sequence[Samples], after: Sequence[Samples], hidden: bool) -> None:
    """Write pictures as PNG; where the concept is explicit, those of forget prompts only blurred."""
    run.samples.mkdir(exist_ok=True)
    for when, both in (("before", before), ("after", after)):
        for role, samples in zip(("forget", "retain"), both, strict=True):
            for row, pictures in enumerate(samples.pictures):
                for number, picture in enumerate(pictures):
                    shown = blurred(picture) if hidden and role == "forget" else picture
                    shown.save(run.samples / f"{role}-{row:02d}-{number:02d}-{when}.png")
