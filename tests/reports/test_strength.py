"""The curve of rates against the strength: lossless, drawn, and in the page's table."""

from __future__ import annotations

import dataclasses
import json
import re

from salun_diffusers.reports.figures import strength_chart
from salun_diffusers.reports.measurement import Comparison, Measurement
from salun_diffusers.reports.page import html_page
from salun_diffusers.reports.report import EvaluationReport, MaskSummary, ReceiptSummary, ReportImages
from salun_diffusers.reports.strength import Need, StrengthCurve, StrengthPoint, decided


def rate(successes: int) -> Measurement:
    return Measurement.rate("rate", successes, 100, direction="higher", protocol="by hand", group="neighbours")


POINTS = tuple(
    StrengthPoint(s, rate(gone), rate(right)) for s, gone, right in ((0, 2, 99), (0.5, 98, 98), (1, 100, 94))
)
CURVE = decided((*POINTS, StrengthPoint(1.0, rate(97), None, steps=40)), Need(0.98, 0.01))
REPORT = EvaluationReport(
    "star", "erased", "It is gone.", "demo", "paper", MaskSummary(0.5, 5), ReceiptSummary(0, True, 0.5, 0.5), "2025",
    strength=CURVE, collateral=(Comparison("a heart", rate(99), rate(97)),),
    collateral_drift=(Measurement.mean("drift", [0.1, 0.2], direction="lower", protocol="px", group="everyday"),),
)  # fmt: skip


def test_of_those_that_meet_the_need_the_weakest_is_taken() -> None:
    points = [
        StrengthPoint(s, rate(gone), rate(99)) for s, gone in ((0, 2), (0.25, 97), (0.5, 98), (0.75, 99), (1, 99))
    ]
    early = StrengthPoint(1.0, rate(99), rate(99), steps=40)
    assert (decided([*points, early], Need(0.98, 0.01)).chosen, decided(points, Need(0.99, 0.01)).chosen) == (0.5, 0.75)
    dear = StrengthPoint(0.375, rate(99), rate(90))  # It forgets enough, and costs more than is allowed.
    assert decided([points[0], dear, *points[1:]], Need(0.98, 0.01)).chosen == 0.5


def test_survives_json() -> None:
    assert EvaluationReport.from_json(json.loads(json.dumps(REPORT.to_json()))) == REPORT


def test_a_report_of_before_has_none() -> None:
    data = REPORT.to_json()
    for name in ("strength", "collateral", "collateral_drift"):
        del data[name]
    del data["receipt"]["strength"]
    old = EvaluationReport.from_json(data)
    assert (old.strength, old.collateral, old.receipt.strength) == (None, (), 1.0)


def test_the_page_has_a_row_for_every_point_and_marks_the_saved_one() -> None:
    html = html_page(REPORT, ReportImages())
    table = html[html.index('<table class="strengths">') :]
    rows = re.findall(r"<tr.*?</tr>", table[: table.index("</table>")], re.DOTALL)[1:]
    assert len(rows) == 4
    assert ["saved" in row for row in rows] == [False, True, False, False]
    assert "s = 0.5" in rows[1] and "98" in rows[1] and "−1.0" in rows[1] and "93 to 99.4" in rows[1]
    assert "−5.0" in rows[2] and "after 40 steps" in rows[3]
    assert "<dt>Strength s</dt><dd>0.5</dd>" in html
    assert html.index("What else changed") < html.index("<h2>Strength</h2>")
    assert "a heart" in html and "drift" in html


def test_a_page_without_them_says_nothing_of_them() -> None:
    bare = dataclasses.replace(REPORT, strength=None, collateral=(), collateral_drift=())
    html = html_page(dataclasses.replace(bare, receipt=ReceiptSummary(0, True, 0.5)), ReportImages())
    assert "<h2>Strength</h2>" not in html and "What else changed" not in html and "Strength s" not in html


def test_the_chart_has_both_rates_and_no_early_checkpoint() -> None:
    """Three markers for each of two lines; a dotted line at the saved weights."""
    svg = strength_chart(CURVE)
    assert svg.count("var(--accent)") > 0 and "#010a0" not in svg
    assert len(re.findall(r"<use ", svg)) == 6
    assert strength_chart(None) == ""
    late = StrengthCurve(CURVE.points, 1.0, 40)
    assert len(strength_chart(late)) < len(svg)  # The saved weights are not on the line.
