"""Previews of explicit pictures: colours and composition, no details."""

from __future__ import annotations

from PIL import Image, ImageFilter

_CELLS = 12


def blurred(picture: Image.Image) -> Image.Image:
    """A preview that shows colours and composition only.

    The picture is averaged down to a dozen cells before it is blurred up again, so no sharpening brings it back.
    """
    small = picture.convert("RGB").resize((_CELLS, _CELLS), Image.Resampling.BOX)
    return small.resize(picture.size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(max(picture.size) / 32))
