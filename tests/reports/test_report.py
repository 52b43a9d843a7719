"""The report: verdicts derived by hand, lossless JSON, and pages that load nothing and run nothing."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from salun_diffusers.reports.figures import embed_picture, loss_chart, running_mean
from salun_diffusers.reports.measurement import Comparison, Direction, Measurement
from salun_diffusers.reports.page import duration, html_page
from salun_diffusers.reports.report import (
    BlockRow,
    EvaluationReport,
    GridRow,
    MaskSummary,
    ReceiptSummary,
    ReportImages,
)


def rate(successes: int, n: int = 100, direction: Direction = "lower", group: str = "concept") -> Measurement:
    return Measurement.rate("shown", successes, n, direction=direction, protocol="a | b", group=group, command="count")


def kept(successes: int) -> Measurement:
    return rate(successes, direction="higher", group="everything else")


@pytest.fixture
def report() -> EvaluationReport:
    return EvaluationReport(
        concept="star",
        verdict="erased",
        verdict_reason="It is gone.",
        base="demo",
        recipe="frozen_teacher",
        measurements=(Measurement.mean("drift", [0.1, 0.15, 0.2], direction="lower", protocol="px", group="drift"),),
        comparisons=(Comparison("star appears", rate(98), rate(0)), Comparison("others", kept(99), kept(98))),
        mask=MaskSummary(0.5, 600, (BlockRow("down_blocks.0", 200, 0.5, 0.4), BlockRow("mid", 1000, 0.5, 0.5))),
        receipt=ReceiptSummary(0, True, 0.48),
        timings={"saliency": 4.25, "training": 192.0},
        config={"prompts": ("a star", "stars"), "steps": 30, "rate": 1e-4, "revision": None},
        environment={"python": "3.11"},
        command="accelerate launch erase.py --concept star",
        series=tuple({"step": s, "forget_loss": 1 / s, "retain_loss": 0.1, "learning_rate": 1e-4} for s in (1, 2, 3)),
        created="2025-06-03T14:12:09+00:00",
    )


@pytest.fixture
def images() -> ReportImages:
    picture = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 64, 3))
    keep = GridRow("a cross", "retain", [picture], [picture], True)
    return ReportImages((keep, GridRow("a star & moon", "forget", [picture] * 2, [picture] * 2, False)))


def test_report_survives_json(report: EvaluationReport) -> None:
    assert EvaluationReport.from_json(json.loads(json.dumps(report.to_json()))) == report


def test_diverged_losses_become_null(report: EvaluationReport) -> None:
    diverged = dataclasses.replace(report, series=({"step": 1, "loss": float("nan")}, {"step": 2, "loss": 0.5}))
    assert diverged.series[0] == {"step": 1, "loss": None}
    assert EvaluationReport.from_json(diverged.to_json()) == diverged


def test_report_refuses_contradictions(report: EvaluationReport) -> None:
    with pytest.raises(ValueError, match="verdict must be one of erased, partly erased, no effect"):
        dataclasses.replace(report, verdict="gone")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="outside_mask_identical=True with 3 violations"):
        ReceiptSummary(3, True, 0.5)
    with pytest.raises(ValueError, match="'mid' must lie in"):
        BlockRow("mid", 10, 50, 0.5)
    with pytest.raises(ValueError, match="this says None"):
        EvaluationReport.from_json({"concept": "star"})
    with pytest.raises(ValueError, match="got 1 and 0"):
        GridRow("a star", "forget", [Image.new("RGB", (8, 8))], [], True)


def test_html_is_self_contained(report: EvaluationReport, images: ReportImages) -> None:
    html = html_page(report, images)
    assert "http://" not in html
    assert "https://" not in html
    assert "<script" not in html
    assert not re.search(r"@import|<iframe|<object|<embed", html)
    assert set(re.findall(r'\b(?:src|href)="([a-z#]+)', html)) <= {"data", "#", "#m", "#p"}
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    assert html.count("data:image/png;base64,") == 6
    assert html.count("<svg") == html.count("</svg>") == 4


def test_html_says_what_the_report_says(report: EvaluationReport, images: ReportImages) -> None:
    html = html_page(report, images)
    assert '<span class="badge erased">erased</span>' in html
    assert html.index("a star &amp; moon") < html.index("a cross")  # What is to be forgotten comes first.
    assert html.count('<span class="chip new">never trained on</span>') == 1
    assert "Every weight outside the mask is bit-identical to the base." in html
    assert "0 to 3.7\N{NO-BREAK SPACE}%" in html
    assert "3 min 12 s" in html
    assert "var(--accent)" in html
    assert "#010a0" not in html  # No stand-in colour of the charts is left.


def test_html_warns_of_a_broken_receipt(report: EvaluationReport) -> None:
    html = html_page(dataclasses.replace(report, receipt=ReceiptSummary(1312, False, 0.5)), ReportImages())
    assert "1,312 weights outside the mask differ from the base: do not trust this model." in html
    assert "bit-identical" not in html
    assert "Same prompt, same seed" not in html


def test_html_says_where_there_is_no_interval(report: EvaluationReport) -> None:
    """Seconds, single values and means over overlapping subsets have none; no bar pretends one."""
    alone = dataclasses.replace(rate(98), low=None, high=None), dataclasses.replace(rate(0), low=None, high=None)
    html = html_page(dataclasses.replace(report, comparisons=(Comparison("star", *alone),)), ReportImages())
    assert html.count("no interval") == 3  # The card and both cells of the table.
    assert html.count('class="range"') == 0


def test_html_escapes_text(report: EvaluationReport, images: ReportImages) -> None:
    block = BlockRow("<b>block", 10, 0.5, 0.5)
    hostile = dataclasses.replace(
        report,
        concept="<b>star</b>",
        verdict_reason='"><img src=x>',
        command="<script>x</script>",
        config={"<b>": ["<b>"]},
        environment={"<b>": "<b>"},
        mask=MaskSummary(0.5, 5, (block,)),
    )
    html = html_page(hostile, ReportImages((dataclasses.replace(images.rows[0], prompt='"<b>'),)))
    assert "<b>" not in html
    assert "<img src=x>" not in html
    assert "<script" not in html
    assert "&lt;b&gt;star&lt;/b&gt;" in html


def test_bare_report_renders(report: EvaluationReport) -> None:
    bare = EvaluationReport("star", "not measured", "No.", "demo", "paper", MaskSummary(0.5, 5), report.receipt, "2025")
    html = html_page(bare, ReportImages())
    assert '<span class="badge not-measured">' in html
    assert "<svg" not in html
    assert "Measurements" not in html


def test_small_pictures_are_enlarged_without_smoothing() -> None:
    picture = Image.new("RGB", (48, 32), "red")
    picture.putpixel((0, 0), (0, 0, 255))
    embedded = embed_picture(picture)
    assert embedded.pixelated
    decoded = _decoded(embedded.address)
    assert decoded.size == (144, 96)
    assert {color for _, color in decoded.getcolors() or []} == {(255, 0, 0), (0, 0, 255)}


def test_large_pictures_are_reduced() -> None:
    embedded = embed_picture(Image.new("RGB", (1024, 512)))
    assert not embedded.pixelated
    assert _decoded(embedded.address).size == (384, 192)


def test_obscured_pictures_lose_their_details() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    decoded = np.asarray(_decoded(embed_picture(Image.fromarray(stripes), obscured=True).address))
    assert int(decoded.max()) - int(decoded.min()) < 64


def test_only_forget_pictures_are_obscured(report: EvaluationReport, images: ReportImages) -> None:
    html = html_page(report, dataclasses.replace(images, obscure_forget=True))
    assert html.count('class="pixelated"') == 2  # The retain row, before and after.
    assert "blurred in the file itself" in html


def test_running_mean_shrinks_at_the_ends() -> None:
    assert running_mean(np.array([0.0, 3.0, 6.0, 9.0]), 1) == pytest.approx([1.5, 3.0, 6.0, 7.5])
    assert running_mean(np.array([5.0, 7.0]), 3) == pytest.approx([5.0, 7.0])


def test_loss_chart_skips_missing_values() -> None:
    assert loss_chart([{"step": 1, "forget_loss": 0.1}, {"step": 2, "forget_loss": None}], "forget_loss") == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.42 s"), (9.96, "10 s"), (52.4, "52 s"), (59.7, "1 min 00 s"), (192, "3 min 12 s"), (7500, "2 h 05 min")],
)
def test_duration_is_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def _decoded(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,")))).convert("RGB")
