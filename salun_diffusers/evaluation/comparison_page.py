"""The page of a comparison: forget and retain axes as a scatter plot, the table, same-seed grids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup

from salun_diffusers.evaluation.comparison import ComparisonTable, Key, Run
from salun_diffusers.evaluation.manifest import PictureRow, read_manifest
from salun_diffusers.evaluation.record_page import BETTER
from salun_diffusers.evaluation.sampling import sampling_text
from salun_diffusers.pictures.decoding import read_picture
from salun_diffusers.reports.figures import (
    ACCENT,
    INK,
    LINE,
    EmbeddedPicture,
    bare_chart,
    embed_picture,
    inline_svg,
)
from salun_diffusers.reports.measurement import Measurement
from salun_diffusers.reports.page import render


@dataclass(frozen=True)
class GridLine:
    """Pictures of one prompt: for each run, the same seeds in the same order."""

    prompt: str
    runs: tuple[tuple[str, tuple[EmbeddedPicture, ...]], ...]


def comparison_page(
    table: ComparisonTable, axes: tuple[Key | None, Key | None], grid: Sequence[GridLine], command: str
) -> str:
    """Render the page.

    Args:
        table: Runs and rows.
        axes: Measurements of the forget and the retain axis; None leaves the plot out.
        grid: Same-seed pictures.
        command: The command that makes it again.
    """
    forget, retain = axes
    plot = scatter_chart(table, forget, retain) if forget and retain else ""
    rows = [(key, table.example(key), table.row(key)) for key in table.keys]
    samplings = [sampling_text(known) for run in table.runs for known in run.drawn.values()]
    return render(
        "comparison.html.j2",
        table=table,
        plot=Markup(plot),
        grid=grid,
        command=command,
        better=BETTER,
        groups=[(group, list(lines)) for group, lines in groupby(rows, key=lambda row: row[0][0])],
        protocols=list(dict.fromkeys(table.example(key).protocol for key in table.keys)),
        samplings=list(dict.fromkeys(filter(None, samplings))),
        explicit=any(run.explicit for run in table.runs),
    )


def scatter_chart(table: ComparisonTable, forget: Key, retain: Key) -> str:
    """Draw every run as a point with 95 % intervals on both axes.

    Returns:
        An SVG element, or an empty string if fewer than two runs have both measurements.
    """
    points = [
        (run.name, across, up)
        for run in table.runs
        if (across := run.measured.get(forget)) and (up := run.measured.get(retain))
    ]
    if len(points) < 2:
        return ""
    figure, axes = bare_chart(9.4, 4.6)
    for name, across, up in points:
        x, y = _scaled(across), _scaled(up)
        first = name.startswith("before")
        axes.errorbar(
            x[0],
            y[0],
            xerr=[[x[0] - x[1]], [x[2] - x[0]]],
            yerr=[[y[0] - y[1]], [y[2] - y[0]]],
            fmt="o",
            color=INK if first else ACCENT,
            markersize=8,
            elinewidth=1.1,
            capsize=3,
        )
        axes.annotate(name, (x[0], y[0]), xytext=(8, 8), textcoords="offset points", color=INK, fontsize=10)
    axes.set_xlabel(_axis_label(table.example(forget)))
    axes.set_ylabel(_axis_label(table.example(retain)), color=INK)
    axes.grid(color=LINE, linewidth=0.8)
    axes.margins(0.12)
    for key, limits, narrow in ((forget, axes.get_xlim(), axes.set_xlim), (retain, axes.get_ylim(), axes.set_ylim)):
        if table.example(key).kind == "rate":
            narrow(max(limits[0], -4), min(limits[1], 104))
    return inline_svg(figure, "scatter")


def _scaled(item: Measurement) -> tuple[float, float, float]:
    scale = 100.0 if item.kind == "rate" else 1.0
    low, high = item.interval or (item.value, item.value)
    return scale * item.value, scale * low, scale * high


def _axis_label(item: Measurement) -> str:
    unit = ", %" if item.kind == "rate" else ""
    better = {"higher": " (higher is better)", "lower": " (lower is better)", "neither": ""}
    return f"{item.name}{unit}{better[item.direction]}"


def same_seed_grid(runs: Sequence[Run], *, prompts: int = 8, each: int = 4) -> list[GridLine]:
    """Pictures that every run with a manifest has at the same prompt and seed.

    Args:
        runs: Runs with or without pictures.
        prompts: Prompts at most, those of the file's start.
        each: Pictures per prompt at most.
    """
    shown: list[tuple[Run, dict[tuple[str, int], PictureRow]]] = []
    for run in runs:
        manifest = read_manifest(run.pictures) if run.pictures else None
        if manifest is not None:
            run.explicit |= manifest.explicit
            shown.append((run, {(row.prompt, row.seed): row for row in manifest.pictures}))
    if len(shown) < 2:
        return []
    common = [key for key in shown[0][1] if all(key in rows for _, rows in shown)]
    lines = []
    for prompt in list(dict.fromkeys(prompt for prompt, _ in common))[:prompts]:
        keys = [key for key in common if key[0] == prompt][:each]
        columns = [
            (run.name, tuple(picture for key in keys if (picture := _picture(run, rows[key])))) for run, rows in shown
        ]
        if all(pictures for _, pictures in columns):
            lines.append(GridLine(prompt, tuple(columns)))
    return lines


def _picture(run: Run, row: PictureRow) -> EmbeddedPicture | None:
    """A run's picture, blurred where its run is explicit; its kept preview where there is no picture.

    The page may be published: what is only linked into the folder, from elsewhere, is not embedded.
    """
    if run.pictures is None:
        return None
    for path in (run.pictures / row.file, run.pictures / "previews" / row.file):
        if path.is_file() and path.resolve().is_relative_to(run.pictures.resolve()):
            return embed_picture(read_picture(path), obscured=run.explicit)
    return None
