"""The parts of the page: what stands in them, and what never leaves the process."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from salun_diffusers.errors import UserError
from salun_diffusers.studio.easel import BASE, Asked
from salun_diffusers.studio.panels import Figure, figure_of, map_panel, measures_panel, pictures_panel, styles
from salun_diffusers.studio.side_by_side import read_strength, side_by_side, why_hidden

ASKED = Asked("a photo of a circle", 5, 2, 2.0)


class Page(HTMLParser):
    """The elements of a piece of HTML; refuses what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any]]] = []
        self.words, self._open = "", []
        self.feed(text)
        assert self._open == [], self._open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("img", "path", "use"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("img", "path", "use"):
            assert self._open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.found if name == tag]


def decoded(address: str) -> Image.Image:
    kind, _, data = address.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.fixture
def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8))


class TestPictures:
    def test_a_picture_is_in_the_page_to_the_last_bit(self, noise):
        figure = figure_of("base", "demo", noise, 'a "red" <b>', hidden=False)
        page = Page(pictures_panel([figure], "drawn"))
        (shown,) = page.all("img")
        assert decoded(shown["src"]).tobytes() == noise.tobytes()
        assert shown["alt"] == 'Picture by base for the prompt “a "red" <b>”' and "class" not in shown

    def test_small_ones_keep_their_pixels_square(self, noise):
        page = Page(pictures_panel([figure_of("base", "", noise.resize((64, 64)), "x", hidden=False)], ""))
        assert page.all("img")[0]["class"] == "sharp"

    def test_a_hidden_one_leaves_its_details_behind(self, noise):
        figure = figure_of("base", "", noise, "x", hidden=True)
        blur = np.asarray(decoded(figure.address), dtype=float)
        assert blur.std() < 15 < np.asarray(noise, dtype=float).std()
        page = Page(pictures_panel([figure], "", hidden="the concept nudity is explicit"))
        assert page.all("img")[0]["alt"].startswith("Blurred picture by base")
        assert "Blurred, since the concept nudity is explicit." in page.words

    def test_one_that_is_being_drawn_has_its_place(self):
        page = Page(pictures_panel([Figure("base", "demo")], "Drawing …"))
        assert page.all("img") == [] and {"class": "empty", "aria-hidden": "true"} in page.all("div")
        assert {"class": "status", "role": "status"} in page.all("p")

    def test_trouble_is_told_as_it_is(self):
        page = Page(pictures_panel([], "", trouble="<script>alert(1)</script>"))
        assert {"class": "trouble", "role": "alert"} in page.all("p")
        assert "<script>alert(1)</script>" in page.words and page.all("script") == []

    def test_every_panel_has_its_heading(self, easel):
        erased = easel.shown.erased
        for panel in (pictures_panel([], ""), map_panel(erased), measures_panel(erased)):
            page = Page(panel)
            (section,), (heading,) = page.all("section"), page.all("h2")
            assert section["aria-labelledby"] == heading["id"]

    def test_nothing_is_fetched(self, easel):
        erased = easel.shown.erased
        text = styles() + map_panel(erased) + measures_panel(erased) + pictures_panel([], "")
        assert not re.search(r"https?:|url\((?!#)|@import|<link|<script", text)


class TestMap:
    def test_bars_and_numbers_of_every_block(self, easel):
        (one,) = easel.shown.erased
        page = Page(map_panel([one]))
        assert len(page.all("svg")) == 2 and one.receipt.sentence() in page.words
        for row in one.blocks:
            cells = f"{row.name}{row.weights:,}{row.density:.1%}{row.moved:.1%}"
            assert cells in page.words

    def test_without_a_mask(self, easel):
        bare = dataclasses.replace(easel.shown.erased[0], masked=False)
        assert "No mask lies beside this model" in Page(map_panel([bare])).words


class TestMeasures:
    def test_of_a_report(self, easel):
        (one,) = easel.shown.erased
        report = one.record.report
        page = Page(measures_panel([one]))
        assert report.verdict_reason in page.words
        assert len(page.all("tr")) >= len(report.comparisons) + len(report.measurements) + 1
        for item in report.measurements:
            assert f"{item.name} {item.n} pictures" in page.words and item.text() in page.words

    def test_without_a_report(self, easel):
        (one,) = easel.shown.erased
        bare = dataclasses.replace(one, record=dataclasses.replace(one.record, report=None))
        assert "No report lies beside it" in Page(measures_panel([bare])).words


class TestSideBySide:
    def test_picture_after_picture(self, easel):
        steps = [Page(panel) for panel in side_by_side(easel, ASKED, 1.0, show=False)]
        assert [len(page.all("img")) for page in steps] == [0, 1, 2]
        assert "Drawing “a photo of a circle”, seed 5, 2 steps, guidance 2 …" in steps[0].words
        assert re.search(r"guidance 2: drawn in \d+\.\d s", steps[-1].words)
        assert "disc erased strength 1 (as erased)" in " ".join(steps[-1].words.split())
        base, erased = (decoded(image["src"]).tobytes() for image in steps[-1].all("img"))
        assert base == easel.picture(BASE, 0, ASKED).tobytes() != erased == easel.picture(0, 1.0, ASKED).tobytes()

    def test_at_strength_0_both_are_the_base(self, easel):
        *_, last = side_by_side(easel, ASKED, 0.0, show=False)
        first, second = Page(last).all("img")
        assert first["src"] == second["src"] and "strength 0 (the base)" in last

    def test_a_mistake_ends_it_with_a_sentence(self, easel, monkeypatch):
        def fails(*_: object) -> None:
            raise UserError("it cannot\nbe drawn")

        monkeypatch.setattr(type(easel), "picture", fails)
        *_, last = side_by_side(easel, ASKED, 1.0, show=False)
        assert "it cannot be drawn" in Page(last).words and Page(last).all("img") == []

    def test_explicit_pictures_are_blurred_until_asked(self, easel):
        one = dataclasses.replace(easel.shown.erased[0], explicit=True)
        easel.shown = dataclasses.replace(easel.shown, erased=(one,))
        *_, hidden = side_by_side(easel, ASKED, 1.0, show=False)
        *_, shown = side_by_side(easel, ASKED, 1.0, show=True)
        plain = {image["src"] for image in Page(shown).all("img")}
        assert len(plain) == 2 and not any(address in hidden for address in plain)
        assert "the concept disc is explicit" in hidden and "Blurred" not in shown

    @pytest.mark.parametrize(
        ("explicit", "word", "prompt", "words"),
        [
            (False, "auto", "a star", ""),
            (True, "auto", "a star", "the concept disc is explicit"),
            (False, "auto", "a Naked man", "the prompt says “naked”"),
            (False, "no", "a naked man", ""),
        ],
    )
    def test_why(self, easel, explicit, word, prompt, words):
        one = dataclasses.replace(easel.shown.erased[0], explicit=explicit)
        where = dataclasses.replace(easel.shown.where, explicit=word)
        assert why_hidden(dataclasses.replace(easel.shown, erased=(one,), where=where), prompt) == words

    @pytest.mark.parametrize("value", [None, "1", True, float("nan"), -0.1, 1.6, [1]])
    def test_strengths_that_a_page_may_not_send(self, value):
        with pytest.raises(UserError, match="The strength must be"):
            read_strength(value)

    def test_strengths(self):
        assert (read_strength(0), read_strength(1.5)) == (0.0, 1.5)
