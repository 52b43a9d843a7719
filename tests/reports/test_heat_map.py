"""A table of shares as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salun_diffusers.reports.heat_map import heat_map, write_figure


def test_cells_have_their_numbers_and_nothing_has_none(tmp_path: Path) -> None:
    figure = heat_map("a $title_1$", ["top", "end"], ["x", "y"], [[0.125, None], [1.0, 0.0]])
    axes = figure.axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["0", "100", "12"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["top", "end"]
    values = axes.images[0].get_array()
    assert np.ma.getmaskarray(values).tolist() == [[False, True], [False, False]]
    assert axes.images[0].get_clim() == (0, 1), "one scale for all pictures"
    write_figure(figure, tmp_path / "map.svg")
    assert (tmp_path / "map.svg").read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_same_figure_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    """Also with a name that the font has no letters for: warnings are errors here."""
    for name in ("one", "two"):
        write_figure(heat_map("円", ["r"], ["c"], [[0.5]]), tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"one.{suffix}").read_bytes() == (tmp_path / f"two.{suffix}").read_bytes()


def test_darker_is_more(tmp_path: Path) -> None:
    write_figure(heat_map("t", ["r"], ["a", "b"], [[0.1, 0.9]]), tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as opened:
        picture = np.asarray(opened.convert("L"), dtype=float)
    blue = heat_map("t", ["r"], ["a", "b"], [[0.1, 0.9]]).axes[0].images[0].cmap
    assert sum(blue(0.9)[:3]) < sum(blue(0.1)[:3]) and picture.min() < 100 < picture.max()
