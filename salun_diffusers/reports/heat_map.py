"""A table of shares as a picture: one cell per row and column, the darker the larger."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from salun_diffusers.files.whole_files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = "Blues"
_DARK = 0.55  # Above this share the numbers are white.


def heat_map(
    title: str, rows: Sequence[str], columns: Sequence[str], shares: Sequence[Sequence[float | None]]
) -> Figure:
    """Draw shares, each cell with its number; the scale is 0 to 100 % in every picture, so that two can be compared.

    Args:
        title: Above the picture.
        rows: Names, from the top.
        columns: Names, from the left.
        shares: One in [0, 1] per row and column; None where there is nothing.
    """
    import numpy as np
    from matplotlib.figure import Figure

    values = np.array([[np.nan if share is None else share for share in row] for row in shares], dtype=float)
    figure = Figure(
        figsize=(2.6 + 0.95 * len(columns), 1.7 + 0.36 * len(rows)), layout="constrained", facecolor="white"
    )
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap=_COLOURS, vmin=0, vmax=1, aspect="auto")
    for row, line in enumerate(values):
        for column, share in enumerate(line):
            if not np.isnan(share):
                colour = "white" if share > _DARK else "black"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_facecolor("#eeeeee")  # Of cells without a value.
    axes.set_title(title, fontsize=11, loc="left", parse_math=False)
    bar = figure.colorbar(image, ax=axes, ticks=[0, 0.25, 0.5, 0.75, 1], fraction=0.05)
    bar.ax.set_yticklabels(["0", "25", "50", "75", "100 %"])
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def write_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, whole or not at all; the same figure gives the same bytes.

    Args:
        figure: The figure.
        path: Ends with .png or .svg.
    """
    import warnings

    from matplotlib import rc_context

    kind = path.suffix[1:]
    nothing = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}[kind]
    same_names = rc_context({"svg.hashsalt": "salun_diffusers", "text.parse_math": False})
    with same_names, whole_file(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # A name in letters that the font lacks shows boxes.
        figure.savefig(partial, format=kind, dpi=150, metadata=nothing)  # type: ignore[arg-type]
