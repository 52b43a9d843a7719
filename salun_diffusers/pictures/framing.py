"""How a picture of any size becomes a square to train on: as diffusers' train_text_to_image scripts do it.

Differs from the official code: pictures are scaled by Lanczos' filter, diffusers' default; there bicubically.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image

from salun_diffusers.seeds import stream


@dataclass(frozen=True)
class View:
    """A square cut from a picture.

    Args:
        side: Of the square, in pixels.
        mirrored: Whether the picture is mirrored before it is cut.
        top: Row where the cut begins, in the scaled picture.
        left: Column.
        original: Height and width of the picture.
    """

    side: int
    mirrored: bool
    top: int
    left: int
    original: tuple[int, int]

    @property
    def sizes(self) -> tuple[int, ...]:
        """What Stable Diffusion XL is told: original height and width, corner of the cut, height and width wanted."""
        return (*self.original, self.top, self.left, self.side, self.side)

    def of(self, picture: Image.Image) -> Image.Image:
        """Scale, mirror and cut a picture."""
        size = scaled_size(picture.size, self.side)
        shown = picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)
        if self.mirrored:
            shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return shown.crop((self.left, self.top, self.left + self.side, self.top + self.side))


def scaled_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height when the shorter one is `side`; the other is rounded down, as torchvision's `Resize` does.

    >>> scaled_size((500, 333), 512)
    (768, 512)
    """
    width, height = size
    if width <= height:
        return side, max(side, int(side * height / width))
    return max(side, int(side * width / height)), side


def views(
    size: tuple[int, int], side: int, *, center_crop: bool, random_flip: bool, name: tuple[int, str]
) -> list[View]:
    """The views of a picture that training may see: one, or with `random_flip` one of each hand.

    Differs from diffusers' scripts: a cut that is not central is drawn once for each picture and hand, by seed and
    content, and not anew in every pass, so that a picture is encoded once.

    Args:
        size: Width and height of the picture.
        side: Of the square.
        center_crop: Cut the centre, as torchvision's `CenterCrop`; else anywhere.
        random_flip: Whether mirrored ones belong to it.
        name: The seed, and what tells the picture from others.
    """
    width, height = scaled_size(size, side)
    found = []
    for mirrored in (False, True) if random_flip else (False,):
        if center_crop:
            top, left = round((height - side) / 2), round((width - side) / 2)
        else:
            seed, content = name
            drawn = stream(seed, "crop", content, int(mirrored))
            top, left = (int(torch.randint(0, free + 1, (), generator=drawn)) for free in (height - side, width - side))
        found.append(View(side, mirrored, top, left, (size[1], size[0])))
    return found
