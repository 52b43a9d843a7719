"""A report as one HTML file that loads nothing from anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import jinja2
from markupsafe import Markup

from salun_diffusers.reports.figures import EmbeddedPicture, block_chart, embed_picture, loss_chart, strength_chart
from salun_diffusers.reports.measurement import Comparison, Measurement, percent
from salun_diffusers.reports.report import EvaluationReport, GridRow, ReportImages
from salun_diffusers.reports.strength import StrengthCurve, StrengthPoint

KEY_GROUP = "drift"  # measurements of this group are key figures, next to the comparisons
_BETTER = {"lower": "↓ lower is better", "higher": "↑ higher is better", "neither": "no better way"}


@dataclass(frozen=True)
class EmbeddedRow:
    """A `GridRow` ready to print: pairs of pictures at the same seed, side by side."""

    prompt: str
    role: str
    trained_on: bool
    before: list[EmbeddedPicture]
    after: list[EmbeddedPicture]


@dataclass(frozen=True)
class TableRow:
    """One line of the measurement table; `before` is `None` where only the erased model was measured."""

    group: str
    name: str
    before: Measurement | None
    after: Measurement
    change: str
    outcome: str

    @property
    def better(self) -> str:
        """Say which way is better."""
        return _BETTER[self.after.direction]


def render(template: str, **values: Any) -> str:
    """Fill one of the package's templates; text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("salun_diffusers.reports", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "duration": duration, "nowrap": _keep_units}
    return environment.get_template(template).render(**values)


def html_page(report: EvaluationReport, images: ReportImages) -> str:
    """Render the page; charts, pictures and styles are inside it.

    Args:
        report: What was measured.
        images: The same-seed pictures; `ReportImages()` leaves the section out.
    """
    rows = sorted(images.rows, key=lambda row: row.role != "forget")
    return render(
        "report.html.j2",
        report=report,
        key_figures=[item for item in report.measurements if item.group == KEY_GROUP],
        table=_grouped(_table(report.comparisons, report.measurements)),
        collateral=_grouped(_table(report.collateral, report.collateral_drift)),
        pictures=[_embedded(row, images.obscure_forget) for row in rows],
        obscured=images.obscure_forget,
        blocks=Markup(block_chart(report.mask.blocks)),
        blocks_narrow=Markup(block_chart(report.mask.blocks, width=4.6)),
        losses=[
            (title, Markup(chart))
            for title, key in (("Forget loss", "forget_loss"), ("Retain loss", "retain_loss"))
            if (chart := loss_chart(report.series, key))
        ],
        strength=Markup(strength_chart(report.strength)),
        strength_rows=strength_rows(report.strength),
        receipt_sentence=receipt_sentence(report),
        commands=_commands(report),
    )


@dataclass(frozen=True)
class StrengthRow:
    """One line of the table of strengths; `chosen` marks the saved weights."""

    point: StrengthPoint
    fall: str
    chosen: bool


def strength_rows(curve: StrengthCurve | None) -> list[StrengthRow]:
    """The table of a curve; empty without one."""
    if curve is None:
        return []
    base = curve.points[0]
    return [
        StrengthRow(
            point,
            "–" if point is base or point.retained is None else _points(point.fall(base)),
            (point.strength, point.steps) == (curve.chosen, curve.steps),
        )
        for point in curve.points
    ]


def _points(fall: float) -> str:
    """A fall as a change in points: ``−1.0``, ``±0``."""
    return f"{-100 * fall:+.1f}".replace("-", "−") if abs(fall) >= 5e-4 else "±0"


def receipt_sentence(report: EvaluationReport) -> str:
    """Say whether the weights outside the mask are those of the base."""
    if report.receipt.outside_mask_identical:
        return "Every weight outside the mask is bit-identical to the base."
    return f"{report.receipt.violations:,} weights outside the mask differ from the base: do not trust this model."


def duration(seconds: float) -> str:
    """Print a duration: ``0.42 s``, ``52 s``, ``3 min 12 s``, ``2 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _grouped(rows: list[TableRow]) -> list[tuple[str, list[TableRow]]]:
    return [(group, list(lines)) for group, lines in groupby(rows, key=lambda line: line.group)]


def _table(comparisons: tuple[Comparison, ...], measurements: tuple[Measurement, ...]) -> list[TableRow]:
    """Comparisons first, then the numbers about the erased model alone; one heading per group, in order."""
    rows = [
        TableRow(pair.after.group, pair.name, pair.before, pair.after, pair.change_text(), _outcome(pair))
        for pair in comparisons
    ]
    rows += [TableRow(item.group, item.name, None, item, "", "") for item in measurements]
    order = list(dict.fromkeys(row.group for row in rows))
    return sorted(rows, key=lambda row: order.index(row.group))


def _commands(report: EvaluationReport) -> dict[str, list[str]]:
    """Command → names of the measurements it makes again."""
    commands: dict[str, list[str]] = {}
    for row in _table(report.comparisons, report.measurements):
        if row.after.command:
            commands.setdefault(row.after.command, []).append(row.name)
    return commands


def _outcome(pair: Comparison) -> str:
    """Name the colour of a change: better, worse, or neither where the intervals overlap."""
    before, after = pair.before.interval, pair.after.interval
    apart = before and after and (before[1] < after[0] or after[1] < before[0])
    if not apart or pair.after.direction == "neither":
        return ""
    return "better" if (pair.change > 0) == (pair.after.direction == "higher") else "worse"


def _embedded(row: GridRow, obscure_forget: bool) -> EmbeddedRow:
    obscured = obscure_forget and row.role == "forget"
    return EmbeddedRow(
        prompt=row.prompt,
        role=row.role,
        trained_on=row.trained_on,
        before=[embed_picture(picture, obscured) for picture in row.before],
        after=[embed_picture(picture, obscured) for picture in row.after],
    )


def _keep_units(text: str) -> str:
    """Keep a number and its percent sign on one line."""
    return text.replace(" %", "\u00a0%")
