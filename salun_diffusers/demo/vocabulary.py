"""The words of the demo's world; light enough for `--help` and for telling a user which presets exist."""

from __future__ import annotations

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "moon", "arrow", "ring", "flower")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 46, 46),
    "yellow": (247, 218, 66),
    "green": (52, 168, 83),
    "cyan": (80, 205, 225),
    "blue": (44, 84, 214),
    "purple": (148, 58, 186),
    "white": (246, 246, 246),
    "black": (28, 28, 32),
}
STYLES = ("filled", "outlined", "striped")
STYLE_PHRASES: dict[str, tuple[str, ...]] = {
    "filled": ("a photo of",),
    "outlined": ("an outline of", "an outline drawing of"),
    "striped": ("a striped drawing of",),
}


def describe(shape: str, colour: str | None = None, background: str | None = None, opening: str = "a photo of") -> str:
    """One sentence of the demo's language.

    >>> describe("circle", "red", "blue")
    'a photo of a red circle on a blue background'
    """
    noun = f"{colour} {shape}" if colour else shape
    article = "an" if noun[0] in "aeiou" else "a"
    ending = f" on a {background} background" if background else ""
    return f"{opening} {article} {noun}{ending}".strip()
