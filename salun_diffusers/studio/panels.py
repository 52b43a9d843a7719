"""The parts of the page, as HTML that loads nothing: pictures lie in it as data, so that no file holds them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from salun_diffusers.reports.figures import SMALLEST_SIDE, block_chart, embed_picture
from salun_diffusers.reports.measurement import Measurement
from salun_diffusers.studio.shown import Erased

_TEMPLATES = "templates"
_FIRST = ("concept", "retained", "retained across", "drift", "alignment", "fidelity")
"""Groups of measurements that are seen at once."""


@dataclass(frozen=True)
class Figure:
    """One picture of the page.

    Args:
        title: Which model drew it.
        note: What else is said of it.
        address: The picture as a ``data:`` address; empty while it is being drawn.
        alt: What it is, for who does not see it.
        sharp: Whether its pixels stay square when it is enlarged.
    """

    title: str
    note: str = ""
    address: str = ""
    alt: str = ""
    sharp: bool = False


def figure_of(title: str, note: str, picture: Image.Image, prompt: str, hidden: bool) -> Figure:
    """A drawn picture for the page.

    Args:
        title: Which model drew it.
        note: What else is said of it.
        picture: As it was drawn.
        prompt: What was asked for.
        hidden: Whether only a coarse blur of it leaves this process.
    """
    alt = f"{'Blurred picture' if hidden else 'Picture'} by {title} for the prompt “{prompt}”"
    address = embed_picture(picture, obscured=True).address if hidden else _address(picture)
    return Figure(title, note, address, alt, sharp=max(picture.size) < SMALLEST_SIDE and not hidden)


def _address(picture: Image.Image) -> str:
    """The whole picture as base64 PNG."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def pictures_panel(figures: Sequence[Figure], status: str, *, hidden: str = "", trouble: str = "") -> str:
    """The pictures.

    Args:
        figures: One per model, the base first.
        status: What is being done, or was; read out by screen readers.
        hidden: Why pictures are blurred; empty where they are not.
        trouble: What went wrong; empty where nothing did.
    """
    return _render("pictures", figures=figures, status=status, hidden=hidden, trouble=trouble)


def map_panel(erased: Sequence[Erased]) -> str:
    """Where the masks lie and what moved, per block."""
    models = [
        {
            "name": one.name,
            "sentence": _sentence(one),
            "chart": Markup(block_chart(one.blocks)),
            "narrow": Markup(block_chart(one.blocks, width=4.6)),
            "rows": one.blocks,
        }
        for one in erased
    ]
    return _render("map", models=models)


def measures_panel(erased: Sequence[Erased]) -> str:
    """What the reports say."""
    return _render("measures", models=[_measured(one) for one in erased])


def styles() -> str:
    """The style sheet of the page."""
    return (files("salun_diffusers.studio") / _TEMPLATES / "studio.css").read_text(encoding="utf-8")


def _measured(one: Erased) -> dict[str, Any]:
    """The figures of one report: those over all prompts at once, and the rest apart."""
    report = one.record.report
    rows: list[tuple[str, Measurement | None, Measurement, str, str]]
    rows = [] if report is None else [(pair.name, pair.before, pair.after, pair.change_text(), pair.after.group)
                                      for pair in (*report.comparisons, *report.collateral)]  # fmt: skip
    rows += [] if report is None else [(item.name, None, item, "–", item.group)
                                       for item in (*report.measurements, *report.collateral_drift)]  # fmt: skip
    first = [row for row in rows if row[4] in _FIRST]
    return {"name": one.name, "report": report, "first": first, "rest": [row for row in rows if row not in first]}


def _sentence(one: Erased) -> str:
    if one.masked:
        return one.receipt.sentence()
    return (
        f"{one.receipt.moved:,} of {one.receipt.weights:,} weights differ from the base. No mask lies beside this "
        "model, so all of them count as allowed to."
    )


def _render(name: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("salun_diffusers.studio", _TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(f"{name}.html.j2").render(**values)
