"""Procedural pictures of coloured shapes: the world that the demo model and its detector know.

A `Scene` says what is drawn (shape, colour, background, style) and how (size, position, rotation). `render` turns
it into a 64 x 64 picture, `caption` into one of the sentences a user might type. The demo Stable Diffusion model,
its detector, tests and classifier experiments all draw from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from salun_diffusers.demo.vocabulary import COLOURS, SHAPES, STYLE_PHRASES, STYLES, describe

SIZE = 64
_SUPERSAMPLING = 4
_OUTLINE_WIDTH = 3.4  # pixels of a 64-pixel picture
_STRIPE_PERIOD = 8  # pixels of a 64-pixel picture; every second half is drawn faintly
_STRIPE_FAINT = 0.3  # opacity of the faint half: the silhouette stays readable

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Scene:
    """One picture, fully described.

    Args:
        shape: One of `SHAPES`.
        colour: Colour name of the shape, one of `COLOURS`.
        background: Colour name of the background, different from `colour`.
        style: One of `STYLES`.
        radius: Half the extent of the shape as a fraction of the picture's side.
        centre: Position of the shape's centre, fractions of the side.
        rotation: Degrees, counter-clockwise.
    """

    shape: str
    colour: str
    background: str
    style: str = "filled"
    radius: float = 0.32
    centre: tuple[float, float] = (0.5, 0.5)
    rotation: float = 0.0


def _regular(corners: int, start: float = -90.0, inner: float | None = None) -> Points:
    """Corners of a regular polygon on the unit circle; with `inner`, a star whose notches lie on that radius."""
    count = corners if inner is None else 2 * corners
    points = []
    for index in range(count):
        radius = 1.0 if inner is None or index % 2 == 0 else inner
        angle = math.radians(start + 360.0 * index / count)
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


def _disc(x: float, y: float, radius: float, corners: int = 96) -> Points:
    return [(x + radius * px, y + radius * py) for px, py in _regular(corners)]


def _heart() -> Points:
    points = []
    for index in range(96):
        t = 2 * math.pi * index / 96
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 16.5, -(y + 2.5) / 15.0))
    return points


def _cross() -> Points:
    arm = 0.34
    return [
        (-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
        (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm),
    ]  # fmt: skip


def _arrow() -> Points:
    return [(1.05, 0), (0.1, -0.85), (0.1, -0.36), (-1.0, -0.36), (-1.0, 0.36), (0.1, 0.36), (0.1, 0.85)]


# Each shape is (filled polygons, polygons cut out of them), in a unit disc with y pointing down.
_OUTLINES: dict[str, Callable[[], tuple[list[Points], list[Points]]]] = {
    "circle": lambda: ([_disc(0, 0, 0.95)], []),
    "square": lambda: ([[(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]], []),
    "triangle": lambda: ([[(0, -1.0), (1.02, 0.8), (-1.02, 0.8)]], []),
    "star": lambda: ([_regular(5, inner=0.42)], []),
    "heart": lambda: ([_heart()], []),
    "cross": lambda: ([_cross()], []),
    "moon": lambda: ([_disc(-0.05, 0, 1.0)], [_disc(0.5, -0.1, 0.82)]),
    "arrow": lambda: ([_arrow()], []),
    "ring": lambda: ([_disc(0, 0, 1.0)], [_disc(0, 0, 0.46)]),
    "flower": lambda: (
        [_disc(0.6 * x, 0.6 * y, 0.42) for x, y in _regular(5)] + [_disc(0, 0, 0.4)],
        [_disc(0, 0, 0.2)],
    ),
}


def _silhouette(scene: Scene, side: int) -> Image.Image:
    """The filled shape as an 8-bit mask of `side` x `side` pixels."""
    angle = math.radians(-scene.rotation)
    cos, sin = math.cos(angle), math.sin(angle)

    def place(points: Points) -> Points:
        return [
            (
                side * (scene.centre[0] + scene.radius * (x * cos - y * sin)),
                side * (scene.centre[1] + scene.radius * (x * sin + y * cos)),
            )
            for x, y in points
        ]

    drawn, cut = _OUTLINES[scene.shape]()
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    for polygon in drawn:
        pen.polygon(place(polygon), fill=255)
    for polygon in cut:
        pen.polygon(place(polygon), fill=0)
    return mask


def _stroke(silhouette: Image.Image, width: float) -> Image.Image:
    """The band of about `width` pixels along the inside of a silhouette's border.

    A blurred straight edge has the value Φ(d/σ) at depth d; cutting at Φ(1.5) with σ = width / 1.5 leaves the band.
    """
    depth = silhouette.filter(ImageFilter.GaussianBlur(width / 1.5))
    return ImageChops.multiply(silhouette, depth.point(lambda value: 255 if value < 238 else 0))


def render(scene: Scene, size: int = SIZE) -> Image.Image:
    """Draw a scene as an antialiased RGB picture.

    Args:
        scene: What to draw.
        size: Side of the picture in pixels.

    Returns:
        An RGB picture of ``size`` x ``size`` pixels.

    Raises:
        ValueError: If the scene names an unknown shape, colour or style, or a shape in its background's colour.
    """
    for value, known in ((scene.shape, SHAPES), (scene.style, STYLES)):
        if value not in known:
            raise ValueError(f"{value!r} cannot be drawn; known: {', '.join(known)}.")
    for value in (scene.colour, scene.background):
        if value not in COLOURS:
            raise ValueError(f"{value!r} is not a colour of the renderer; known: {', '.join(COLOURS)}.")
    if scene.colour == scene.background:
        raise ValueError(f"A {scene.colour} shape on a {scene.background} background is invisible.")
    side = size * _SUPERSAMPLING
    mask = _silhouette(scene, side)
    if scene.style == "outlined":
        mask = _stroke(mask, _OUTLINE_WIDTH * side / SIZE)
    elif scene.style == "striped":
        period = _STRIPE_PERIOD * side // SIZE
        stripes = np.where(np.arange(side) % period < period // 2, 255, 255 * _STRIPE_FAINT).astype(np.uint8)[:, None]
        mask = ImageChops.multiply(mask, Image.fromarray(np.broadcast_to(stripes, (side, side)).copy()))
    picture = Image.new("RGB", (side, side), COLOURS[scene.background])
    picture.paste(COLOURS[scene.colour], (0, 0), mask)
    return picture.resize((size, size), Image.Resampling.BOX)


def sample_scene(rng: np.random.Generator, **fixed: str) -> Scene:
    """Draw a random scene; `fixed` pins shape, colour, background or style."""

    def choose(key: str, options: tuple[str, ...]) -> str:
        return fixed.get(key) or str(rng.choice(options))

    colours = tuple(COLOURS)
    colour = choose("colour", tuple(name for name in colours if name != fixed.get("background")))
    return Scene(
        shape=choose("shape", SHAPES),
        colour=colour,
        background=choose("background", tuple(name for name in colours if name != colour)),
        style=choose("style", STYLES),
        radius=float(rng.uniform(0.28, 0.37)),
        centre=(float(rng.uniform(0.44, 0.56)), float(rng.uniform(0.44, 0.56))),
        rotation=float(rng.uniform(-12, 12)),
    )


def caption(scene: Scene, colour: bool = True, background: bool = True, phrase: str | None = None) -> str:
    """Describe a scene: ``a photo of a red circle on a blue background``, or less of it.

    Args:
        scene: The scene to describe.
        colour: Whether the sentence names the shape's colour.
        background: Whether it names the background.
        phrase: How it opens; by default the first phrase of the style. An empty string leaves the style unsaid.
    """
    opening = STYLE_PHRASES[scene.style][0] if phrase is None else phrase
    return describe(scene.shape, scene.colour if colour else None, scene.background if background else None, opening)


def random_caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of the ways users describe a scene: colour and background are sometimes left out, a photo often unsaid."""
    phrases = STYLE_PHRASES[scene.style]
    phrase = phrases[int(rng.integers(len(phrases)))]
    if scene.style == "filled" and rng.random() < 0.25:
        phrase = ""
    text = caption(scene, colour=rng.random() < 0.75, background=rng.random() < 0.6, phrase=phrase)
    if phrase == "" and rng.random() < 0.3:
        text = text.removeprefix("a ").removeprefix("an ")
    return text


def negative(rng: np.random.Generator, size: int = SIZE) -> Image.Image:
    """A picture that shows none of the shapes: a blank, a blob, a frame, noise or a half-formed shape.

    The detector learns these as ``none``; without them an empty frame counts as a square and erasure is overstated.
    """
    colours = list(COLOURS.values())
    first, second = rng.permutation(len(colours))[:2]
    base = Image.new("RGB", (size, size), colours[first])
    kind = int(rng.integers(6))
    if kind == 0:  # Blank, or two flat halves.
        if rng.random() < 0.5:
            cut = int(rng.integers(size // 4, 3 * size // 4))
            base.paste(colours[second], (0, cut, size, size) if rng.random() < 0.5 else (cut, 0, size, size))
        return base
    if kind == 1:  # Soft blob.
        mask = Image.fromarray((rng.random((5, 5)) * 255).astype(np.uint8)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        mask = mask.point(lambda v: 255 if v > 128 else 0).filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 3))))
        base.paste(colours[second], (0, 0), mask)
        return base
    if kind == 2:  # Empty frame around the picture.
        width = int(rng.integers(3, 12))
        base.paste(colours[second], (width, width, size - width, size - width))
        return base
    if kind == 3:  # Mottle.
        grain = rng.normal(0, 60, (int(rng.integers(4, 17)),) * 2 + (3,))
        noise = Image.fromarray(np.clip(128 + grain, 0, 255).astype(np.uint8)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        return Image.blend(base, noise, float(rng.uniform(0.3, 1.0)))
    picture = render(sample_scene(rng), size)
    pixels = np.asarray(picture).copy()
    if kind == 4:  # Half of a shape.
        background = pixels[0, 0]
        half = slice(0, size // 2) if rng.random() < 0.5 else slice(size // 2, size)
        if rng.random() < 0.5:
            pixels[half] = background
        else:
            pixels[:, half] = background
        return Image.fromarray(pixels)
    blocks = [
        pixels[y : y + size // 4, x : x + size // 4]
        for y in range(0, size, size // 4)
        for x in range(0, size, size // 4)
    ]
    order = rng.permutation(len(blocks))  # Shuffled pieces of a shape.
    rows = [np.concatenate([blocks[i] for i in order[r : r + 4]], axis=1) for r in range(0, 16, 4)]
    return Image.fromarray(np.concatenate(rows, axis=0))


def sample_pictures(rng: np.random.Generator, count: int, **fixed: str) -> Iterator[tuple[Scene, Image.Image]]:
    """Yield `count` random scenes with their pictures."""
    for _ in range(count):
        scene = sample_scene(rng, **fixed)
        yield scene, render(scene)
