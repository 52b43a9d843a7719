"""The one decoder: what people see, in 8-bit RGB, or one line with the file's name."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salun_diffusers.errors import UserError
from salun_diffusers.pictures.decoding import endings, read_header, read_picture, square, upright_rgb

RED, WHITE = (255, 0, 0), (255, 255, 255)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(read_picture(path)).astype(int)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize(
    ("orientation", "across", "down"),
    [(1, 0, 0), (2, 1, 0), (3, 1, 1), (4, 0, 1), (5, 0, 0), (6, 1, 0), (7, 1, 1), (8, 0, 1)],
)
def test_orientation(tmp_path: Path, ending: str, orientation: int, across: int, down: int) -> None:
    """EXIF 2.3, tag 274: where the stored top left quarter is seen. 5 to 8 change width and height."""
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :16] = RED
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"0.{ending}"
    Image.fromarray(stored).save(path, exif=exif)
    seen = read_picture(path)
    assert seen.size == read_header(path).size == ((32, 16) if orientation < 5 else (16, 32))
    red = np.asarray(seen)[..., 0] > 128
    half = [(slice(None, seen.height // 2), slice(seen.height // 2, None)),
            (slice(None, seen.width // 2), slice(seen.width // 2, None))]  # fmt: skip
    assert red[half[0][down], half[1][across]].mean() > 0.9 and red.mean() < 0.3


def test_a_damaged_orientation_leaves_the_picture_as_it_lies(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2)).save(tmp_path / "0.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_picture(tmp_path / "0.jpg").size == read_header(tmp_path / "0.jpg").size == (4, 2)


@pytest.mark.parametrize("ending", ["png", "tiff", "pgm"])
def test_16_bit_grey_is_scaled(tmp_path: Path, ending: str) -> None:
    """1/257: 0, 257 and 65535 are 0, 1 and 255; 128 · 257 is 128; Pillow's own conversion has 255 from 256 on."""
    levels = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / f"0.{ending}")
    assert pixels(tmp_path / f"0.{ending}")[0, :, 1].tolist() == [0, 1, 128, 255]


def test_16_bit_colour(tmp_path: Path) -> None:
    """A PNG of one pixel with 16 bits a channel, by hand: IHDR 1×1, depth 16, colour type 2; level 0x8080 is 128."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = zlib.compress(b"\0" + struct.pack(">HHH", 0, 0x8080, 0xFFFF))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")
    (tmp_path / "0.png").write_bytes(png)
    assert pixels(tmp_path / "0.png").tolist() == [[[0, 128, 255]]]


def test_a_transparent_level_of_16_bits_is_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 700, 701]], np.uint16)).save(tmp_path / "0.png", transparency=700)
    assert pixels(tmp_path / "0.png")[0, :, 0].tolist() == [0, 255, 3]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (2, 2), 7).save(tmp_path / "0.tiff")
    with pytest.raises(UserError, match=rf"0\.tiff cannot be read .*unknown range \(mode {mode}\)"):
        read_picture(tmp_path / "0.tiff")
    with pytest.raises(ValueError, match="unknown range"):
        upright_rgb(Image.new(mode, (2, 2)))


class TestTransparency:
    """What nobody sees is white; half of red on white is (255, 127 or 128, …)."""

    def test_alpha(self, tmp_path: Path) -> None:
        picture = Image.new("RGBA", (3, 1))
        picture.putdata([(*RED, 0), (*RED, 255), (*RED, 128)])
        picture.save(tmp_path / "0.png")
        assert pixels(tmp_path / "0.png")[0].tolist() == [list(WHITE), list(RED), [255, 127, 127]]

    def test_grey_with_alpha(self, tmp_path: Path) -> None:
        picture = Image.new("LA", (2, 1))
        picture.putdata([(9, 0), (9, 255)])
        picture.save(tmp_path / "0.png")
        assert pixels(tmp_path / "0.png")[0, :, 0].tolist() == [255, 9]

    @pytest.mark.parametrize("ending", ["png", "gif"])
    def test_palette(self, tmp_path: Path, ending: str) -> None:
        picture = Image.new("P", (2, 1))
        picture.putpalette([*RED, 0, 0, 255])
        picture.putdata([0, 1])
        picture.save(tmp_path / f"0.{ending}", transparency=0)
        assert pixels(tmp_path / f"0.{ending}")[0].tolist() == [list(WHITE), [0, 0, 255]]

    def test_a_colour_that_means_transparent(self, tmp_path: Path) -> None:
        picture = Image.new("RGB", (2, 1), RED)
        picture.putpixel((1, 0), (1, 2, 3))
        picture.save(tmp_path / "0.png", transparency=RED)
        assert pixels(tmp_path / "0.png")[0].tolist() == [list(WHITE), [1, 2, 3]]


def test_cmyk_palette_and_bits(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "0.jpg", quality=100)
    assert np.abs(pixels(tmp_path / "0.jpg") - RED).max() <= 3
    Image.new("1", (2, 2), 1).save(tmp_path / "1.png")
    assert pixels(tmp_path / "1.png").min() == 255
    Image.new("RGB", (2, 2), RED).convert("P").save(tmp_path / "2.gif")
    assert pixels(tmp_path / "2.gif")[0, 0].tolist() == list(RED)


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_frame(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    path = tmp_path / f"0.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if ending == "webp" else {}))
    assert read_header(path).frames
    assert pixels(path)[0, 0].tolist() == list(RED)
    frames[0].save(tmp_path / f"1.{ending}")
    assert not read_header(tmp_path / f"1.{ending}").frames


class TestNoPicture:
    def test_damaged(self, tmp_path: Path) -> None:
        """Truncated, of no bytes, text, and a PNG whose second block of pixels is spoilt."""
        noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "0.png")
        whole = (tmp_path / "0.png").read_bytes()
        second = whole.index(b"IDAT", whole.index(b"IDAT") + 1)
        for number, content in enumerate(
            (whole[:2000], b"", b"<html>", whole[:second] + b"IDXX" + whole[second + 4 :])
        ):
            path = tmp_path / f"bad{number}.png"
            path.write_bytes(content)
            with pytest.raises(UserError, match=rf"bad{number}\.png cannot be read as a picture \(") as told:
                read_picture(path)
            assert "\n" not in str(told.value)

    @pytest.mark.parametrize("side", [60, 90])
    def test_bombs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int) -> None:
        """With a limit of 3,000 pixels Pillow warns at 3,600 and refuses from 6,000 on; both are one line here."""
        Image.new("RGB", (side, side)).save(tmp_path / "0.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
        for read in (read_header, read_picture):
            with pytest.raises(UserError, match=r"0\.png cannot be read .*decompression bomb"):
                read(tmp_path / "0.png")

    def test_postscript_starts_no_other_program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pillow would hand it to `gs`; here one that leaves a trace is first on the PATH."""
        (tmp_path / "bin").mkdir()
        gs = tmp_path / "bin" / "gs"
        gs.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
        gs.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
        (tmp_path / "0.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")
        with pytest.raises(UserError, match=r"0\.png cannot be read as a picture"):
            read_picture(tmp_path / "0.png")
        assert not (tmp_path / "started").exists()
        assert not {".eps", ".ps", ".pdf", ".wmf", ".emf", ".h5", ".mpg"} & endings()
        assert {".png", ".jpg", ".jpeg", ".jfif", ".gif", ".tif", ".tiff", ".webp", ".bmp", ".tga"} <= endings()

    def test_another_ending_does_not_matter(self, tmp_path: Path) -> None:
        Image.new("RGB", (2, 2), RED).save(tmp_path / "0.bmp")
        (tmp_path / "0.bmp").rename(tmp_path / "0.jpg")
        assert pixels(tmp_path / "0.jpg")[0, 0].tolist() == list(RED)


@pytest.mark.parametrize(("size", "left"), [((12, 4), 4), ((4, 12), 4)])
def test_a_square_is_the_centre(size: tuple[int, int], left: int) -> None:
    """Of 12 pixels those from 4 to 7 are kept at scale 1."""
    ramp = np.arange(12, dtype=np.uint8) * 20
    wide = np.broadcast_to(ramp, (4, 12)) if size[0] > size[1] else np.broadcast_to(ramp[:, None], (12, 4))
    seen = np.asarray(square(Image.fromarray(wide.copy()), 4))
    assert sorted(set(seen.ravel().tolist())) == [20 * (left + step) for step in range(4)]
    assert square(Image.new("RGB", (10, 30)), 5).size == (5, 5)
