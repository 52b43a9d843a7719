"""The one decoder: any raster picture, from a file or from memory, as upright 8-bit RGB."""

from __future__ import annotations

import functools
import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from salun_diffusers.errors import UserError, one_line

DECODED: Final = "pictures upright, on white, 8-bit RGB"
"""How every file is decoded, for protocols: EXIF orientation applied, transparency composited on white."""

# Formats of pixels only. Pillow hands EPS to ghostscript and WMF to Windows, whatever a file's ending says; the others
# that it knows are no pictures of people's (FITS, HDF5, GRIB, …) or cannot be decoded at all.
_RASTER = (
    "PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "QOI", "TGA", "PCX", "DCX", "ICO",
    "CUR", "ICNS", "SGI", "SUN", "DDS", "BLP", "FTEX", "GBR", "PSD", "FLI", "IM", "MSP", "PCD", "PIXAR", "XBM", "XPM",
)  # fmt: skip
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION, _BITS_PER_SAMPLE = 0x0112, 258
_filters = threading.Lock()


@dataclass(frozen=True)
class Header:
    """What a file says of its picture.

    Args:
        size: Width and height as the picture is shown, EXIF orientation applied.
        frames: Whether there are several pictures in it, such as an animation's; the first one counts.
    """

    size: tuple[int, int]
    frames: bool


@functools.cache
def formats() -> tuple[str, ...]:
    """Raster formats that the installed Pillow decodes."""
    Image.init()
    return tuple(name for name in _RASTER if name in Image.OPEN)


@functools.cache
def endings() -> frozenset[str]:
    """Endings of files in those formats, in lower case; MPO, what phones write, is decoded as JPEG."""
    known = {*formats(), "MPO"}
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in known)


def read_header(file: Path) -> Header:
    """Size and frames of a picture, without decoding it where its header says them.

    Raises:
        UserError: If it is no picture.
    """
    with _opened(file) as picture:
        frames = bool(getattr(picture, "is_animated", False))
        if picture.width != picture.height:
            if picture.format not in ("JPEG", "MPO"):
                picture.load()  # Others may say their orientation behind the pixels.
            if _orientation(picture) >= 5:
                return Header((picture.height, picture.width), frames)
        return Header(picture.size, frames)


def read_picture(file: Path) -> Image.Image:
    """Decode a file; of an animation, the first frame.

    Raises:
        UserError: If it is damaged, no picture of a raster format, larger than Pillow's limit against decompression
            bombs, or of pixels whose range is unknown.
    """
    with _opened(file) as picture:
        return upright_rgb(picture)


def picture_of(data: bytes, name: str) -> Image.Image:
    """Decode what stands for a file, as `read_picture` does.

    Args:
        data: The bytes of a file.
        name: What the picture is called, for the message.

    Raises:
        UserError: As for a file.
    """
    with _opened(io.BytesIO(data), name, "download it again") as picture:
        return upright_rgb(picture)


def upright_rgb(picture: Image.Image) -> Image.Image:
    """A picture as people see it, in 8-bit RGB.

    * EXIF orientation is applied.
    * Transparency is composited on white: colours that nobody sees stay unseen.
    * 16-bit grey is scaled by 255 / 65535 (Pillow's own conversion clips it to white).

    Args:
        picture: Opened or in memory, of any mode.

    Raises:
        ValueError: If its pixels are 32-bit numbers, which may mean anything.
    """
    picture.load()
    turn = _UPRIGHT.get(_orientation(picture))
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        shown = _from_16_bit(picture)
    elif picture.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers of unknown range (mode {picture.mode}); save it with 8 bits")
    elif picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        seen = picture.convert("RGBA")
        shown = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    else:
        shown = picture.convert("RGB")
    return shown if turn is None else shown.transpose(turn)


def square(picture: Image.Image, side: int) -> Image.Image:
    """Scale the shorter side to `side` pixels (Lanczos) and crop the centre square."""
    if picture.size == (side, side):
        return picture
    scale = side / min(picture.size)
    size = max(side, round(picture.width * scale)), max(side, round(picture.height * scale))
    scaled = picture.resize(size, Image.Resampling.LANCZOS)
    left, top = (scaled.width - side) // 2, (scaled.height - side) // 2
    return scaled.crop((left, top, left + side, top + side))


@contextmanager
def _opened(
    file: Path | io.BytesIO, name: str = "", advice: str = "remove it or copy it again"
) -> Iterator[Image.Image]:
    """Open a file, and tell whatever goes wrong with it in one line."""
    try:
        with _one_line_at_most():
            picture = Image.open(file, formats=formats())
        with picture:
            yield picture
    except UserError:
        raise
    except Exception as error:  # Decoders of damaged files raise a dozen unrelated kinds.
        why = one_line(error, 200).replace(f" {file!r}", "") or type(error).__name__
        raise UserError(f"{name or file} cannot be read as a picture ({why}); {advice}.") from error


@contextmanager
def _one_line_at_most() -> Iterator[None]:
    """Keep Pillow's warnings from the terminal; that of a bomb, at half the size at which it refuses, is an error.

    Filters of warnings belong to all threads, hence the lock.
    """
    with _filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation, 1 (upright) where it is missing or damaged."""
    try:
        with _one_line_at_most():
            value: Any = picture.getexif().get(_ORIENTATION, 1)
        return value if isinstance(value, int) else 1
    except Exception:  # The pixels are whole; other readers, too, then show them as they lie.
        return 1


def _from_16_bit(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits in RGB; TIFF has 12 bits, too, and PNG a level that means transparent."""
    levels = np.asarray(picture).astype(np.int64)
    tags: Any = getattr(picture, "tag_v2", {})
    full = 4095 if tags.get(_BITS_PER_SAMPLE) in (12, (12,)) else 65535
    grey = np.rint(levels * (255 / full)).clip(0, 255).astype(np.uint8)
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey[levels == clear] = 255
    return Image.fromarray(grey).convert("RGB")
