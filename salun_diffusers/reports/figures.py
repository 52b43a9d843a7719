"""Pictures and charts of the report page, each as text to embed in it."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageFilter

from salun_diffusers.reports.report import BlockRow
from salun_diffusers.reports.strength import StrengthCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALLEST_SIDE = 128  # pixels; smaller pictures are enlarged without smoothing
LARGEST_SIDE = 384  # pixels; about twice the size on the page, so that forty pictures stay a few megabytes
_MOSAIC = 10  # cells across an obscured picture

# matplotlib cannot write CSS variables: these stand-ins are drawn and then renamed, so charts follow light and dark.
INK, ACCENT, SOFT, LINE = "#010a01", "#010a02", "#010a03", "#010a04"
_CSS = {INK: "var(--muted)", ACCENT: "var(--accent)", SOFT: "var(--accent-soft)", LINE: "var(--line)"}


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture as a ``data:`` address.

    Args:
        address: Base64 PNG.
        pixelated: Whether browsers should keep its pixels sharp.
    """

    address: str
    pixelated: bool


def embed_picture(picture: Image.Image, obscured: bool = False) -> EmbeddedPicture:
    """Encode a picture for the page.

    Args:
        picture: Any mode and size.
        obscured: Keep only a coarse blur; the details are not in the file.
    """
    picture = picture.convert("RGB")
    side = max(picture.size)
    small = side < SMALLEST_SIDE
    if obscured:
        target = tuple(max(SMALLEST_SIDE * length // side, 1) for length in picture.size)
        cells = tuple(max(_MOSAIC * length // side, 1) for length in picture.size)
        coarse = picture.resize((cells[0], cells[1]), Image.Resampling.BOX)
        picture = coarse.resize((target[0], target[1]), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(6))
    elif small:
        factor = max(2, -(-SMALLEST_SIDE // side))
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    elif side > LARGEST_SIDE:
        picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return EmbeddedPicture(f"data:image/png;base64,{encoded}", small and not obscured)


def loss_chart(series: Sequence[Mapping[str, float | None]], key: str) -> str:
    """Draw one loss over the steps: every value pale, their running mean strong.

    Args:
        series: Rows with ``step`` and `key`; rows without a value are skipped.
        key: ``forget_loss`` or ``retain_loss``.

    Returns:
        An SVG element, or an empty string if fewer than two rows have a value.
    """
    found = [(row.get("step"), row.get(key)) for row in series]
    points = [(step, value) for step, value in found if step is not None and value is not None]
    if len(points) < 2:
        return ""
    steps, values = np.array(points, dtype=float).T
    figure, axes = bare_chart(4.6, 2.5)
    axes.plot(steps, values, color=SOFT, linewidth=1.1)
    axes.plot(steps, running_mean(values, max(1, len(values) // 15)), color=ACCENT, linewidth=2.2)
    axes.set_xlabel("step")
    axes.set_xlim(steps[0], steps[-1])
    axes.set_ylim(bottom=min(0.0, float(values.min())))
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.locator_params(axis="y", nbins=5)
    axes.locator_params(axis="x", nbins=6, integer=True)
    return inline_svg(figure, key)


def running_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """Average each value with its neighbours up to `reach` away, fewer at the ends.

    Args:
        values: `(steps,)`.
        reach: Neighbours on either side; 0 returns the values.
    """
    window = np.ones(2 * min(reach, (len(values) - 1) // 2) + 1)
    return np.asarray(np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same"))


def block_chart(blocks: Sequence[BlockRow], *, width: float = 9.4) -> str:
    """Draw per block the share of weights in the mask (pale) and the share that moved (strong, inside it).

    Args:
        blocks: Rows in the order of the network.
        width: Inches; the page shows a narrow chart on telephones.

    Returns:
        An SVG element, or an empty string without rows.
    """
    if not blocks:
        return ""
    figure, axes = bare_chart(width, 0.34 * len(blocks) + 0.6)
    rows = np.arange(len(blocks))
    axes.barh(rows, [100 * block.density for block in blocks], height=0.66, color=SOFT)
    axes.barh(rows, [100 * block.moved for block in blocks], height=0.28, color=ACCENT)
    for row, block in enumerate(blocks):
        axes.text(101.5, row, _short_count(block.weights), va="center", ha="left", color=INK)
    axes.set_yticks(rows, [block.name for block in blocks])
    axes.set_ylim(len(blocks) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    return inline_svg(figure, f"blocks-{width}")


def strength_chart(curve: StrengthCurve | None) -> str:
    """Draw the two rates against the strength, with their 95 % intervals; a dotted line marks the saved weights.

    Args:
        curve: Points on the line; early checkpoints stand in the table only.

    Returns:
        An SVG element, or an empty string without a curve.
    """
    if curve is None:
        return ""
    figure, axes = bare_chart(4.6, 2.9)
    line = [point for point in curve.points if not point.steps]
    for rates, colour, style in (
        ([(point.strength, point.forgotten) for point in line], ACCENT, "-"),
        ([(point.strength, point.retained) for point in line if point.retained], INK, "--"),
    ):
        at = [strength for strength, _ in rates]
        limits = [rate.interval or (rate.value, rate.value) for _, rate in rates]
        axes.vlines(at, [100 * low for low, _ in limits], [100 * high for _, high in limits], color=colour, alpha=0.45)
        values = [100 * rate.value for _, rate in rates]
        axes.plot(at, values, color=colour, linestyle=style, marker="o", markersize=4, linewidth=1.8)
    if not curve.steps:
        axes.axvline(curve.chosen, color=INK, linewidth=1.1, linestyle=":")
    axes.set_xlabel("strength s")
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-3, 103)
    axes.set_yticks([0, 25, 50, 75, 100], ["0", "25", "50", "75", "100 %"])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    return inline_svg(figure, "strength")


def _short_count(count: int) -> str:
    """Shorten a count to three digits: ``1.23 M``."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def bare_chart(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a bare figure of `width` x `height` inches, without touching pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK, labelsize=10, pad=6)
    axes.xaxis.label.set_color(INK)
    axes.spines[:].set_visible(False)
    return figure, axes


def inline_svg(figure: Figure, name: str) -> str:
    """Write a figure as an inline SVG element whose colours are the page's variables."""
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    buffer = io.StringIO()
    # Text stays text: it takes the page's font. A salt of its own keeps the identifiers of two charts apart.
    # A $ in the name of a class or of a model is a $, also where matplotlib makes the text only now.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # The prologue's global style rule would leak into the page, and HTML needs no namespaces.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(xmlns(:\w+)?|version|width|height)="[^"]*"', "", svg[: svg.index(">")]) + svg[svg.index(">") :]
    svg = re.sub(r'id="(figure|axes|patch|text|line2d|matplotlib\.axis|xtick|ytick)_\d+"', "", svg)
    for stand_in, variable in _CSS.items():
        svg = svg.replace(stand_in, variable)
    return svg.strip()
