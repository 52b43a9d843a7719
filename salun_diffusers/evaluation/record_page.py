"""The files of one evaluation: its numbers, and a page of table, charts, protocol and command that loads nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from markupsafe import Markup

from salun_diffusers.evaluation.record import EvaluationRecord, counts, writable_folder
from salun_diffusers.evaluation.sampling import sampling_text
from salun_diffusers.files.whole_files import full_disk_is_told, write_text
from salun_diffusers.reports.figures import ACCENT, INK, LINE, SOFT, bare_chart, inline_svg
from salun_diffusers.reports.measurement import Comparison, Measurement
from salun_diffusers.reports.page import render

BETTER = {"lower": "↓ lower is better", "higher": "↑ higher is better", "neither": ""}


def write_record(record: EvaluationRecord, output_dir: str | Path, charts: Sequence[tuple[str, str]] = ()) -> str:
    """Write ``<kind>.json`` and ``<kind>.html``, and return the table with their paths.

    Args:
        record: The record.
        output_dir: Where to; made if it is not there.
        charts: Titles and inline SVG for the page.

    Raises:
        UserError: If the folder cannot be written or the disk is full.
    """
    folder = writable_folder(output_dir)
    page = record_page(record, charts)
    with full_disk_is_told(f"a file of {folder}"):
        write_text(folder / f"{record.kind}.json", json.dumps(record.to_json(), indent=2, ensure_ascii=False) + "\n")
        write_text(folder / f"{record.kind}.html", page)
    return f"{record.text()}report    {folder / record.kind}.html\nnumbers   {folder / record.kind}.json\n"


def record_page(record: EvaluationRecord, charts: Sequence[tuple[str, str]] = ()) -> str:
    """Render the page.

    Args:
        record: What was measured.
        charts: Titles and inline SVG.
    """
    pairs: list[tuple[Measurement | None, Measurement]] = [(pair.before, pair.after) for pair in record.comparisons]
    pairs += [(None, item) for item in record.measurements]
    order = list(dict.fromkeys(after.group for _, after in pairs))
    pairs.sort(key=lambda pair: order.index(pair[1].group))
    return render(
        "evaluation.html.j2",
        record=record,
        groups=[(group, list(rows)) for group, rows in groupby(pairs, key=lambda pair: pair[1].group)],
        charts=[(title, Markup(chart)) for title, chart in charts],
        protocols=list(dict.fromkeys(after.protocol for _, after in pairs)),
        better=BETTER,
        counts=counts,
        drawn=sampling_text(record.sampling),
    )


def bar_chart(rows: Sequence[Comparison | Measurement], *, name: str, unit: str = "") -> str:
    """Draw one pair of bars per row, before pale and after strong, with 95 % intervals.

    Args:
        rows: Comparisons, or measurements of one folder alone; all of one kind.
        name: Keeps the identifiers of two charts on one page apart.
        unit: Label of the axis.

    Returns:
        An SVG element, or an empty string without rows.
    """
    if not rows:
        return ""
    pairs = [(row.before, row.after) if isinstance(row, Comparison) else (None, row) for row in rows]
    scale = 100.0 if pairs[0][1].kind == "rate" else 1.0
    both = any(before is not None for before, _ in pairs)
    figure, axes = bare_chart(9.4, (0.52 if both else 0.36) * len(pairs) + 0.7)
    height = 0.36 if both else 0.62

    def reach(item: Measurement) -> float:
        return item.interval[1] if item.interval else item.value

    for side, (colour, shift) in enumerate(((SOFT, -0.2), (ACCENT, 0.2))):
        chosen = [(row, pair[side]) for row, pair in enumerate(pairs)]
        found = [(row, item) for row, item in chosen if item is not None]
        if not found:
            continue
        places = np.array([row + (shift if both else 0.0) for row, _ in found])
        values = np.array([scale * item.value for _, item in found])
        limits = scale * np.array([item.interval or (item.value, item.value) for _, item in found])
        low, high = values - limits[:, 0], limits[:, 1] - values
        axes.barh(
            places,
            values,
            height=height,
            color=colour,
            xerr=np.stack([low, high]),
            error_kw={"ecolor": INK, "elinewidth": 1.0, "capsize": 2.5},
        )
        for place, (_, item) in zip(places, found, strict=True):
            axes.annotate(
                item.text(),
                (scale * reach(item), place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=INK,
                fontsize=9,
            )
    axes.set_yticks(range(len(pairs)), [after.name for _, after in pairs])
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    widest = max(scale * reach(item) for pair in pairs for item in pair if item is not None)
    axes.set_xlim(0, 1.12 * widest or 1.0)
    axes.set_xlabel(unit)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    return inline_svg(figure, name)
