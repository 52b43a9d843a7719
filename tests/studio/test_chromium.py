"""The page in a real browser: typed into, looked at in two widths, and used without a mouse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest
from chromium import Chromium, chromium

pytestmark = pytest.mark.slow

DRAWN = "/drawn in/.test(document.querySelector('.status')?.textContent)"
PICTURES = "[...document.querySelectorAll('.pictures img')].map(image => image.src)"
STRENGTH, PANEL = "document.querySelector('input[type=number]')", "document.querySelector('.pictures')"
NOTE = "document.querySelector('.hidden-note')?.textContent"
DRAW = "[...document.querySelectorAll('button')].find(button => button.textContent.trim() == 'Draw')"
PROMPT = "document.querySelector('textarea, input[type=text]')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(browser: Chromium, served) -> Chromium:
    """The page, opened anew at the width of a desk."""
    browser.requests.clear()
    browser.complaints.clear()
    browser.size(1280, 900)
    browser.call("Page.navigate", url=served.address)
    browser.until(f"{DRAW} && {PROMPT} && document.querySelector('.status')")
    return browser


def drawn(page: Chromium, prompt: str) -> list[str]:
    """Type a prompt and press Enter; what is shown then."""
    page.run(f"{PROMPT}.focus(); {PROMPT}.select()")
    page.type(prompt)
    page.press("Enter", 13)
    page.until(f"document.querySelector('.status').textContent.startsWith({('“' + prompt)!r}) && {DRAWN}")
    return page.run(PICTURES)


def strength(page: Chromium, value: float) -> None:
    """Type a strength into the box beside the slider."""
    page.run(
        "document.querySelector('input[type=number]').focus(); document.querySelector('input[type=number]').select()"
    )
    page.type(str(value))
    page.press("Tab", 9)
    page.until(f"{PANEL}.textContent.includes('strength {value:g}') && {DRAWN}")


def test_a_prompt_is_typed_and_two_pictures_differ(page):
    base, erased = drawn(page, "a photo of a circle")
    assert base.startswith("data:image/png") and base != erased
    strength(page, 0)
    assert page.run(PICTURES) == [base, base]
    strength(page, 0.5)
    first, half = page.run(PICTURES)
    assert first == base and half not in (base, erased)
    strength(page, 1)
    assert page.run(PICTURES) == [base, erased]


def test_the_slider_moves_by_keyboard(page):
    base, erased = drawn(page, "a star")
    page.run("document.querySelector('input[type=range]').focus()")
    for _ in range(20):
        page.press("ArrowLeft", 37)
    page.until(f"{PANEL}.textContent.includes('strength 0 ') && {DRAWN}")
    assert page.run(PICTURES) == [base, base] != [base, erased]


def test_the_button_is_reached_and_pressed_without_a_mouse(page):
    page.run(f"{PROMPT}.focus()")
    page.press("Tab", 9)
    assert page.run("document.activeElement.textContent.trim()") == "Draw"
    page.press("Enter", 13)
    page.until(DRAWN)
    assert len(page.run(PICTURES)) == 2


def test_nothing_is_asked_of_other_machines_and_nothing_is_wrong(page, served):
    drawn(page, "a heart")
    hosts = {urlparse(address).netloc for address in page.requests if not address.startswith(("data:", "blob:"))}
    assert hosts == {urlparse(served.address).netloc}
    assert page.complaints == []


def test_words_of_a_prompt_are_words(page):
    drawn(page, "${1+1} {{7*7}} <img src=x onerror=alert(1)> a star")
    status = page.run("document.querySelector('.status').textContent")
    assert status.startswith("“${1+1} {{7*7}} <img src=x onerror=alert(1)> a star”, seed 0")
    assert page.run("document.querySelectorAll('.studio img').length") == 2


def test_explicit_pictures_are_blurred_until_asked(page):
    blurred = drawn(page, "a naked man")
    assert page.run(NOTE).strip().startswith("Blurred, since the prompt")
    page.run("[...document.querySelectorAll('button')].find(b => b.textContent.includes('explicit')).click()")
    page.until("document.querySelector('input[type=checkbox]')?.offsetParent")
    page.run("document.querySelector('input[type=checkbox]').focus()")
    page.press(" ", 32)
    page.until(f"!document.querySelector('.hidden-note') && {DRAWN}")
    assert not {*page.run(PICTURES)} & {*blurred}


@pytest.mark.parametrize(("width", "columns"), [(1280, 2), (390, 2)])
def test_it_fits(page, width, columns):
    page.size(width, 900, phone=width < 600)
    drawn(page, "a star")
    page.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.run("document.documentElement.scrollWidth") <= width
    tops = page.run("[...document.querySelectorAll('.pictures figure')].map(one => one.getBoundingClientRect().top)")
    assert len(set(tops)) == 2 / columns
    wide, narrow = page.run("['wide', 'narrow'].map(one => document.querySelector('.chart.' + one).offsetHeight)")
    assert (wide > 0, narrow > 0) == (width > 640, width <= 640)


def test_every_control_has_a_name_and_every_picture_words(page):
    drawn(page, "a star")
    page.run("[...document.querySelectorAll('button')].find(b => b.textContent.includes('explicit')).click()")
    page.until("document.querySelector('input[type=checkbox]')?.offsetParent")
    page.call("Accessibility.enable")
    nodes = [one for one in page.call("Accessibility.getFullAXTree")["nodes"] if not one["ignored"]]
    named = [(one["role"]["value"], one.get("name", {}).get("value", "")) for one in nodes]
    controls = ("button", "textbox", "slider", "spinbutton", "checkbox", "combobox", "searchbox", "region")
    found = [pair for pair in named if pair[0] in controls]
    assert len(found) >= 12 and [pair for pair in found if not pair[1]] == []
    assert page.run("[...document.querySelectorAll('img, [role=img]')].every(one => one.alt || one.ariaLabel)")
    headings = page.run("[...document.querySelectorAll('h1, h2, h3')].map(one => one.tagName + one.textContent)")
    assert headings == ["H1Before and after erasing disc", "H2Side by side", "H2Where the weights moved", "H3disc",
                        "H2What was measured", "H3disc"]  # fmt: skip


def test_screenshots_can_be_taken(page, tmp_path: Path):
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
