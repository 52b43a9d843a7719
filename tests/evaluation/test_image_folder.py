"""Folders of pictures: order, rows, sizes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.image_folder import blurred, decoded, read_image_folder, require_one_size
from salun_diffusers.evaluation.manifest import Manifest, PictureRow, read_manifest, same_pictures
from salun_diffusers.evaluation.prompt_files import PromptRow


def save(path: Path, colour: str = "red", size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_order_is_by_number(tmp_path: Path) -> None:
    for name in ("10_0.png", "2_1.png", "2_0.jpg", ".hidden/1.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    assert [file.name for file in read_image_folder(tmp_path).files] == ["2_0.jpg", "2_1.png", "10_0.png"]


def test_rows_come_from_names(tmp_path: Path) -> None:
    save(tmp_path / "7_1.png")
    (row,) = read_image_folder(tmp_path, [PromptRow("a tench", 7, 3, None, "tench")]).rows
    assert (row.case_number, row.sample, row.label) == (7, 1, "tench")
    save(tmp_path / "8_0.png")
    with pytest.raises(UserError, match=r"8_0.png belongs to no row"):
        read_image_folder(tmp_path, [PromptRow("a tench", 7, 3)])


def test_rows_come_from_class_folders(tmp_path: Path) -> None:
    save(tmp_path / "church" / "a.png")
    save(tmp_path / "tench" / "a.png")
    assert [row.label for row in read_image_folder(tmp_path).rows] == ["church", "tench"]


def test_classes_left_out(tmp_path: Path) -> None:
    save(tmp_path / "church" / "a.png")
    save(tmp_path / "tench" / "a.png")
    folder = read_image_folder(tmp_path)
    assert [file.parent.name for file in folder.without(["tench"]).files] == ["church"]
    assert folder.without([]) is folder
    with pytest.raises(UserError, match="no pictures of other classes than tench, church"):
        folder.without(["tench", "church"])
    with pytest.raises(UserError, match="has no classes"):
        read_image_folder(tmp_path / "tench").without(["tench"])


def test_rows_come_from_the_manifest(tmp_path: Path) -> None:
    rows = (PictureRow("b.png", "b", 1, 7.5, 1), PictureRow("a.png", "a", 0, 7.5, 0))
    Manifest(rows, {"model": "demo"}).save(tmp_path)
    save(tmp_path / "a.png")
    with pytest.raises(UserError, match="2 pictures are required by its manifest, found 1"):
        read_image_folder(tmp_path)
    save(tmp_path / "b.png")
    assert [file.name for file in read_image_folder(tmp_path).files] == ["b.png", "a.png"]
    assert same_pictures(rows, tuple(read_image_folder(tmp_path).rows))
    assert not same_pictures(rows, rows[::-1])


def test_damaged_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match="is no manifest"):
        read_manifest(tmp_path)


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it has none"):
        read_image_folder(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        read_image_folder(tmp_path / "absent")


def test_unreadable_picture(tmp_path: Path) -> None:
    save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"1.png cannot be read as a picture"):
        read_image_folder(tmp_path)


def test_truncated_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "0.png")
    (tmp_path / "0.png").write_bytes((tmp_path / "0.png").read_bytes()[:2000])
    with pytest.raises(UserError, match=r"0.png cannot be read"):
        list(decoded(read_image_folder(tmp_path).files, 4))


def test_mixed_sizes(tmp_path: Path) -> None:
    save(tmp_path / "0.png")
    save(tmp_path / "1.png", size=(8, 12))
    with pytest.raises(UserError, match=r"0.png is 8×8, 1.png is 8×12. --resize N"):
        require_one_size(read_image_folder(tmp_path).files)
    ((first, second),) = decoded(read_image_folder(tmp_path).files, 4, resize=4)
    assert first.size == second.size == (4, 4)


def test_pixels_are_untouched_without_resize(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    ((picture,),) = decoded(read_image_folder(tmp_path).files, 4)
    assert np.array_equal(np.asarray(picture), pixels)


def test_batches_keep_the_order(tmp_path: Path) -> None:
    for number in range(5):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / f"{number}.png")
    found = [
        [picture.getpixel((0, 0))[0] for picture in batch] for batch in decoded(read_image_folder(tmp_path).files, 2)
    ]
    assert found == [[0, 1], [2, 3], [4]]


def test_a_preview_has_no_details() -> None:
    """A checkerboard of single pixels averages to grey: nothing of it is left to sharpen."""
    board = np.indices((96, 96)).sum(axis=0) % 2 * 255
    preview = np.asarray(blurred(Image.fromarray(board.astype(np.uint8))))
    assert preview.min() >= 120 and preview.max() <= 135
