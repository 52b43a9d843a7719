"""From a finished unlearning to `report.json` and `report.html`."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

from torch import Tensor

from salun_diffusers.classification.config import UnlearnConfig
from salun_diffusers.classification.forget_split import ForgetSplit
from salun_diffusers.classification.metrics import Scores, average_gap, full_stack, measurements
from salun_diffusers.classification.training import History
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.files.whole_files import write_text
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.receipt import MaskReceipt, block_of, count_moves
from salun_diffusers.reports.intervals import wilson_interval
from salun_diffusers.reports.measurement import Comparison, Measurement, percent
from salun_diffusers.reports.page import html_page
from salun_diffusers.reports.report import (
    BlockRow,
    EvaluationReport,
    MaskSummary,
    ReceiptSummary,
    ReportImages,
)
from salun_diffusers.reports.verdict import HARMLESS_DROP, Verdict, drop, presence_decided_by, presence_of

_PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "scikit-learn", "torchmetrics")


@dataclass(frozen=True)
class Outcome:
    """All that was measured.

    Args:
        forgotten: What was forgotten, in words.
        whole_class: Whether that is a class.
        before: The starting model.
        after: The unlearned model, as read back from its folder.
        retrained: The retrained model, or None if it was not asked for.
        history: Rows of the training.
        seconds: Stage → seconds.
        device: Where it ran, in words.
        subject: Data and forget set, see `subject_of`.
    """

    forgotten: str
    whole_class: bool
    before: Scores
    after: Scores
    retrained: Scores | None
    history: History
    seconds: Mapping[str, float]
    device: str
    subject: str = ""


def decide(outcome: Outcome, *, tolerance: float = HARMLESS_DROP) -> tuple[Verdict, str]:
    """Judge an unlearning, and say what to try next.

    A class is forgotten when at most 2 % of it is recognised, and was recognised before, by a model that knew the data;
    single pictures when UA and MIA are within `tolerance` of Retrain's, without which there is nothing to judge them
    by. Harm is a test accuracy that fell by more. What the pictures are too few for is not said.
    """
    before, after, reference = outcome.before, outcome.after, outcome.retrained
    n_forget, _, n_test = after.sizes
    found = (
        f"{percent(after.forget_accuracy)} of the forget set is recognised ({percent(before.forget_accuracy)} before)"
    )
    kept = f"test accuracy went from {percent(before.test_accuracy)} to {percent(after.test_accuracy)}"
    milder = "use a lower learning rate, fewer epochs or a higher retain weight"
    loss = drop(
        _rate(before.test_accuracy, before.sizes[2]),
        _rate(after.test_accuracy, n_test),
        what="test accuracy",
        limit=tolerance,
    )
    few = f"{found}; {kept}, and {n_test} test pictures are too few to tell: use at least {loss.enough}."
    if guess := _guessed(before, outcome.whole_class):
        return "not measured", guess
    if outcome.whole_class:
        old, new = _rate(before.forget_accuracy, before.sizes[0]), _rate(after.forget_accuracy, n_forget)
        presence = presence_of(old, new)
        if presence == "undecided":
            enough = presence_decided_by(old, new)
            return "not measured", f"{found}; {n_forget} pictures are too few to tell: use at least {enough}."
        if presence != "gone":
            verdict: Verdict = "partly erased" if presence == "partly" else "no effect"
            return verdict, f"{found}; {kept}: raise the learning rate or the epochs."
        if loss.harm == "harmful":
            return "over-erased", f"{found}, but {kept}: {milder}."
        if loss.harm == "undecided":
            return "not measured", few
        return "erased", f"{found}; {kept}."
    if loss.harm == "harmful":
        return "over-erased", f"{found}, but {kept}: {milder}."
    if reference is None:
        return "not measured", (
            f"{found}; {kept}. Whether that is as if the pictures had never been seen, only --retrain can tell."
        )
    gap = f"the average gap to Retrain is {percent(average_gap(full_stack(after), full_stack(reference)))}"
    for name, value, goal in (
        ("UA", after.unlearning_accuracy, reference.unlearning_accuracy),
        ("MIA", after.mia, reference.mia),
    ):
        where = f"{name} is {percent(value)}, Retrain's {percent(goal)}"
        over = drop(_rate(max(value, goal), n_forget), _rate(min(value, goal), n_forget), limit=tolerance)
        if over.harm == "undecided":
            return "not measured", (
                f"{found}; {where}; {n_forget} pictures are too few to tell: forget at least {over.enough}."
            )
        if over.harm == "harmful" and value > goal:
            return "over-erased", f"{found}; {where}; {gap}: {milder}."
        if over.harm == "harmful":
            return "no effect", f"{found}; {where}; {gap}: raise the learning rate or the epochs."
    if loss.harm == "undecided":
        return "not measured", few
    return "erased", f"{found}; {kept}; {gap}."


def _rate(share: float, n: int) -> Measurement:
    return Measurement.rate("", round(share * n), n, direction="neither", protocol="")


def _guessed(before: Scores, whole_class: bool) -> str:
    """Why the starting model knew nothing of what it is to forget; empty where it did."""
    chance = 1 / before.classes if before.classes else 0.0
    for what, share, n in (
        ("test pictures", before.test_accuracy, before.sizes[2]),
        ("pictures of the class" if whole_class else "forget set", before.forget_accuracy, before.sizes[0]),
    ):
        if share == 0 or wilson_interval(round(share * n), n)[0] <= chance:
            known = f"; who guesses among {before.classes} classes, {percent(chance)}" if chance else ""
            found = f"Before, the model recognises {percent(share)} of {n} {what}{known}"
            if share > chance:
                return f"{found}, which {n} cannot tell apart: use more, of the data that the model was trained on."
            return f"{found}, so there is nothing to forget: use the data that the model was trained on."
    return ""


def subject_of(split: ForgetSplit) -> str:
    """Data and forget set in a few words and a hash: measurements of others do not share a row with these."""
    digest = hashlib.sha256()
    parts = (split.train.pixels, split.train.labels, split.test.pixels, split.test.labels, split.forget_indices)
    for part in parts:
        digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
        digest.update(part.detach().cpu().contiguous().numpy().tobytes())
    return f"{split.name}, {len(split.forget)} of {len(split.train)} pictures {digest.hexdigest()[:8]}"


def mask_receipt(base: Mapping[str, Tensor], now: Mapping[str, Tensor], mask: SaliencyMask) -> MaskReceipt:
    """Compare every weight with the base, bit for bit.

    Args:
        base: θ₀ by name, on the CPU.
        now: The new weights; where a layer has grown, its first rows are compared.
        mask: Which weights were allowed to move.
    """
    kept = {name: _first_rows(now[name].detach().cpu(), old) for name, old in base.items()}
    return count_moves(base, kept, {name: _first_rows(mask[name], old) for name, old in base.items()}, _block)


def _first_rows(tensor: Tensor, base: Tensor) -> Tensor:
    """As many rows as `base` has."""
    return tensor[: len(base)] if base.ndim else tensor


def _block(name: str) -> str:
    """``stages.1`` of ``resnet.encoder.stages.1.layers.0…``; the layer itself where nothing is numbered."""
    # A transformers model has attributes above its stages, which `block_of` does not look past.
    parts = name.split(".")[:-1] or [name]
    numbered = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(parts[numbered - 1 : numbered + 1]) if numbered else block_of(".".join(parts[-1:]))


def write_report(
    run: RunFolder, outcome: Outcome, config: UnlearnConfig, mask: SaliencyMask, receipt: MaskReceipt, command: str
) -> EvaluationReport:
    """Judge and write `report.json` and `report.html`.

    Args:
        run: Where it goes.
        outcome: What was measured.
        config: The settings, for the record.
        mask: The run's mask.
        receipt: What moved.
        command: The command line.
    """
    verdict, reason = decide(outcome)
    before, after = (
        measurements(scores, whole_class=outcome.whole_class, subject=outcome.subject, command=command)
        for scores in (outcome.before, outcome.after)
    )
    extra = [_seconds("run time (RTE)", "unlearning", outcome)]
    extra.append(_seconds("mask, not part of RTE", "saliency and mask", outcome))
    if outcome.retrained is not None:
        rows = measurements(outcome.retrained, whole_class=outcome.whole_class, subject=outcome.subject)
        extra += [dataclasses.replace(row, group="Retrain, the reference", direction="neither") for row in rows]
        gap = average_gap(full_stack(outcome.after), full_stack(outcome.retrained))
        extra.append(
            Measurement(
                "average gap to Retrain",
                gap,
                n=4,
                low=None,
                high=None,
                direction="lower",
                protocol="mean of |difference| over UA, RA, TA, MIA",
                group="Retrain, the reference",
                subject=outcome.subject,
            )
        )
        extra.append(_seconds("run time of Retrain", "retraining", outcome))
    blocks = tuple(
        BlockRow(row.block, row.weights, row.selected / row.weights, row.moved / row.weights) for row in receipt.blocks
    )
    report = EvaluationReport(
        concept=outcome.forgotten,
        verdict=verdict,
        verdict_reason=reason,
        base=config.model,
        recipe=config.method,
        kind="Unlearning",
        mask=MaskSummary(mask.density, mask.number_selected, blocks),
        receipt=ReceiptSummary(receipt.violations, receipt.violations == 0, receipt.moved / receipt.weights),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        measurements=tuple(extra),
        comparisons=tuple(Comparison(new.name, old, new) for old, new in zip(before, after, strict=True)),
        timings=dict(outcome.seconds),
        config=dataclasses.asdict(config),
        environment={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        command=command,
        series=tuple({**row, "forget_loss": row["loss"]} for row in outcome.history),
    )
    write_text(run.root / "report.html", html_page(report, ReportImages()))
    run.write_json("report.json", report.to_json())
    return report


def _seconds(name: str, stage: str, outcome: Outcome) -> Measurement:
    value, where = outcome.seconds[stage], f"wall seconds on {outcome.device}"
    return Measurement(name, value, 1, None, None, "lower", where, group="time", subject=outcome.subject)
