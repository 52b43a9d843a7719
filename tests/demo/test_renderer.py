"""The demo's renderer: what is asked for is what is drawn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from salun_diffusers.demo.renderer import Scene, caption, negative, random_caption, render, sample_scene
from salun_diffusers.demo.vocabulary import COLOURS, SHAPES, STYLES, describe

SQUARE = Scene("square", "red", "blue", radius=0.4)


def pixel(scene: Scene, x: int, y: int) -> tuple[int, ...]:
    return tuple(np.asarray(render(scene))[y, x].tolist())


def test_a_filled_square_has_its_colours_inside_and_outside() -> None:
    """The square's half side is 0.85 · 0.4 · 64 = 21.8 pixels, so x = 12 lies inside and x = 8 outside."""
    assert pixel(SQUARE, 32, 32) == COLOURS["red"]
    assert pixel(SQUARE, 12, 32) == COLOURS["red"]
    assert pixel(SQUARE, 8, 32) == COLOURS["blue"]


def test_an_outline_is_hollow() -> None:
    outlined = dataclasses.replace(SQUARE, style="outlined")
    assert pixel(outlined, 32, 32) == COLOURS["blue"]
    assert pixel(outlined, 11, 32) == COLOURS["red"]


def test_stripes_alternate_every_four_pixels() -> None:
    """Rows 32 … 35 are drawn in full, rows 36 … 39 at 30 % opacity: 46 + 0.7 · (84 - 46) = 72.6 in green."""
    striped = dataclasses.replace(SQUARE, style="striped")
    assert pixel(striped, 32, 33) == COLOURS["red"]
    faint = pixel(striped, 32, 37)
    assert faint[1] == pytest.approx(46 + 0.7 * (84 - 46), abs=2)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_covers_some_of_the_picture_and_stays_inside(shape: str, style: str) -> None:
    drawn = np.asarray(render(Scene(shape, "white", "black", style)))[..., 0] > 60
    assert 0.02 < drawn.mean() < 0.6
    border = np.concatenate([drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]])
    assert not border.any()


def test_all_shapes_differ() -> None:
    pictures = {np.asarray(render(Scene(shape, "white", "black"))).tobytes() for shape in SHAPES}
    assert len(pictures) == len(SHAPES)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"shape": "hexagon"}, "'hexagon' cannot be drawn"),
        ({"style": "sketched"}, "'sketched' cannot be drawn"),
        ({"colour": "beige"}, "'beige' is not a colour"),
        ({"background": "red"}, "red shape on a red background is invisible"),
    ],
)
def test_what_cannot_be_drawn_is_said(changed: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        render(dataclasses.replace(SQUARE, **changed))


def test_same_seed_same_scene() -> None:
    assert sample_scene(np.random.default_rng(3)) == sample_scene(np.random.default_rng(3))


def test_fixed_parts_stay_fixed_and_colours_never_coincide() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = sample_scene(rng, shape="star", background="red")
        assert (scene.shape, scene.background) == ("star", "red")
        assert scene.colour != "red"


def test_captions() -> None:
    scene = Scene("arrow", "red", "blue", "outlined")
    assert caption(scene) == "an outline of a red arrow on a blue background"
    assert caption(scene, colour=False, background=False) == "an outline of an arrow"
    assert caption(scene, background=False, phrase="") == "a red arrow"
    assert describe("circle", "red", "blue") == "a photo of a red circle on a blue background"


def test_random_captions_name_the_shape_and_never_a_wrong_colour() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        scene = sample_scene(rng)
        words = random_caption(scene, rng).split()
        assert scene.shape in words
        assert set(words) & set(COLOURS) <= {scene.colour, scene.background}


def test_negatives_come_in_many_forms() -> None:
    rng = np.random.default_rng(0)
    pictures = [np.asarray(negative(rng)) for _ in range(60)]
    assert {picture.shape for picture in pictures} == {(64, 64, 3)}
    flat = sum(bool((picture == picture[0, 0]).all()) for picture in pictures)
    assert 0 < flat < 30
