"""Folders of pictures: order, rows, sizes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.feature_files import classes_of
from salun_diffusers.evaluation.image_folder import (
    blurred,
    decoded,
    read_image_folder,
    require_one_size,
)
from salun_diffusers.evaluation.manifest import FORMAT, Manifest, PictureRow, read_manifest
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


def test_a_picture_beside_class_folders_is_named(tmp_path: Path) -> None:
    """Such as an overview that a script left: without a word ten thousand pictures would have no class."""
    for name in ("church/a.png", "tench/a.png", "grid.png"):
        save(tmp_path / name)
    with pytest.raises(UserError, match=r"1 of 3 pictures lie in no sub-folder: grid\.png"):
        read_image_folder(tmp_path).without(["church"])
    with pytest.raises(UserError, match=r"1 of 3 pictures lie in no sub-folder: grid\.png"):
        classes_of(tmp_path)


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


def test_prompts_beside_a_manifest_are_said_not_to_be_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Manifest((PictureRow("7.png", "a star", 0, 7.5, 7, 0, "star"),), {"model": "demo"}).save(tmp_path / "drawn")
    save(tmp_path / "drawn" / "7.png")
    save(tmp_path / "plain" / "7.png")
    asked = [PromptRow("a tench", 7, 3, None, "tench")]
    assert [row.label for row in read_image_folder(tmp_path / "plain", asked).rows] == ["tench"]
    assert [row.label for row in read_image_folder(tmp_path / "drawn").rows] == ["star"]
    assert capsys.readouterr().err == ""  # One source only: nothing to say.
    assert [row.label for row in read_image_folder(tmp_path / "drawn", asked).rows] == ["star"]
    told = f"note: the manifest of {tmp_path / 'drawn'} says what its pictures are; the prompt file is not asked.\n"
    assert capsys.readouterr().err == told


def test_classes_of_a_manifest_without_any_come_from_the_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Drawing again for a column that was forgotten would take hours."""
    for name in ("000007_0.png", "000008_0.png"):
        save(tmp_path / name)
    drawn = (PictureRow("000007_0.png", "a tench", 3, 7.5, 7), PictureRow("000008_0.png", "a dog", 4, 7.5, 8))
    Manifest(drawn, {}).save(tmp_path)
    prompts = [PromptRow("a tench", 7, 3, None, "tench"), PromptRow("another dog", 8, 4, None, "dog")]
    assert [row.label for row in read_image_folder(tmp_path, prompts).rows] == ["tench", ""]
    assert "the prompt file is asked for their classes only" in capsys.readouterr().err


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


class TestWalk:
    """What `pictures` decides holds for every folder that is measured."""

    def test_linked_class_folders(self, tmp_path: Path) -> None:
        save(tmp_path / "store" / "dog" / "0.png")
        save(tmp_path / "set" / "cat" / "0.png")
        (tmp_path / "set" / "dog").symlink_to(tmp_path / "store" / "dog")
        (tmp_path / "set" / "dog" / "again").symlink_to(tmp_path / "set")
        assert [row.label for row in read_image_folder(tmp_path / "set").rows] == ["cat", "dog"]

    @pytest.mark.parametrize("name", ["previews", "detections"])
    def test_anybodys_class_may_have_such_a_name(self, tmp_path: Path, name: str) -> None:
        save(tmp_path / name / "0.png")
        save(tmp_path / "zebra" / "0.png")
        (tmp_path / "manifest.json.txt").touch()
        assert [row.label for row in read_image_folder(tmp_path).rows] == [name, "zebra"]
        # Ours lies beside a manifest of ours; that of another program is none.
        Manifest((PictureRow("x.png"),), {}).save(tmp_path / "zebra")
        save(tmp_path / "zebra" / name / "0.png")
        assert len(read_image_folder(tmp_path).files) == 2
        (tmp_path / "zebra" / "manifest.json").write_text('{"name": "an app"}')
        assert len(read_image_folder(tmp_path).files) == 3

    def test_what_is_left_out_is_said(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("0.png", "1.gif", "2.TIFF", "._0.png", "__MACOSX/0.png"):
            save(tmp_path / name)
        (tmp_path / "3.heic").touch()
        assert len(read_image_folder(tmp_path).files) == len(read_image_folder(tmp_path).files) == 3
        assert capsys.readouterr().err == f"note: {tmp_path}: 3 left out (1 ending .heic, 2 hidden or the system's).\n"

    def test_nothing_but_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "0.heic").touch()
        with pytest.raises(UserError, match=r"it has none \(left out: 1 ending .heic\)"):
            read_image_folder(tmp_path)


def test_pictures_are_decoded_by_the_one_decoder(tmp_path: Path) -> None:
    """Upright, on white, and 16 bits scaled: 100 · 257 is 100."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4), "red").save(tmp_path / "0.jpg", exif=exif)
    Image.new("RGBA", (4, 8), (255, 0, 0, 0)).save(tmp_path / "1.png")
    Image.fromarray(np.full((8, 4), 100 * 257, np.uint16)).save(tmp_path / "2.png")
    files = read_image_folder(tmp_path).files
    assert require_one_size(files) == (4, 8)
    ((turned, white, grey),) = decoded(files, 4)
    assert turned.size == (4, 8) and white.getpixel((0, 0)) == (255, 255, 255) and grey.getpixel((0, 0)) == (100,) * 3
    assert blurred(Image.new("RGBA", (4, 4), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_leaving_out_a_class_that_is_none(tmp_path: Path) -> None:
    save(tmp_path / "circle" / "0.png")
    save(tmp_path / "star" / "0.png")
    with pytest.raises(UserError, match="no pictures of the class 'Circle' to leave out; the closest is 'circle'"):
        read_image_folder(tmp_path).without(["Circle"])


class TestManifestsOfStrangers:
    """One line that names the file, whatever it holds; and never a file outside the folder."""

    ROW: ClassVar = {"file": "0.png", "prompt": "a", "seed": 0, "guidance": 7.5, "case_number": 0, "sample": 0}

    def told(self, folder: Path, text: str) -> str:
        (folder / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=r"manifest\.json is no manifest of `salun generate`") as told:
            read_image_folder(folder)
        assert "\n" not in str(told.value)
        return str(told.value)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"file": "../secret.png"}, "leads out of the folder"),
            ({"file": "pics/../../secret.png"}, "leads out of the folder"),
            ({"file": "/etc/secret.png"}, "leads out of the folder"),
            ({"file": "..\\secret.png"}, "leads out of the folder"),
            ({"file": "C:\\secret.png"}, "leads out of the folder"),
            ({"file": "C:secret.png"}, "leads out of the folder"),
            ({"file": ""}, "leads out of the folder"),
            ({"file": "a\0b"}, "leads out of the folder"),
            ({"file": "x" * 300}, "is too long"),
            ({"file": 3}, "'file' must be a text"),
            ({"file": None}, "'file' must be a text"),
            ({"prompt": ["a"]}, "'prompt' must be a text"),
            ({"prompt": "\ud800"}, "surrogates not allowed"),
            ({"seed": 1.5}, "'seed' must be a whole number"),
            ({"seed": True}, "'seed' must be a whole number"),
            ({"seed": 2**70}, "more than 64 bits"),
            ({"guidance": None}, "'guidance' must be a number"),
            ({"guidance": float("nan")}, "'guidance' must be a number"),
            ({"guidance": 10**400}, "'guidance' must be finite"),
            ({"colour": "red"}, "'colour' is unknown"),
        ],
    )
    def test_a_row(self, tmp_path: Path, change: dict[str, object], words: str) -> None:
        content = {"format": FORMAT, "pictures": [{**self.ROW, **change}], "made_with": {}}
        told = self.told(tmp_path, json.dumps(content))
        assert "picture 0: " in told and words in told

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"pictures": []}, "a list of pictures is required"),
            ({"pictures": {}}, "a list of pictures is required"),
            ({"pictures": [[]]}, "an object is required, found list"),
            ({"pictures": [{}]}, "'file' is missing"),
            ({"made_with": []}, "'made_with' must be an object"),
            ({"made_with": None}, "'made_with' must be an object"),
            ({"made_with": {"scheduler": 3}}, "'scheduler' must be a name or an object"),
            ({"made_with": {"num_inference_steps": "50"}}, "'num_inference_steps' must be a whole number"),
            ({"made_with": {"height": [64]}}, "'height' must be a whole number"),
            ({"explicit": "no"}, "'explicit' must be true or false"),
            ({"command": 1}, "'command' must be a text"),
            ({"format": "other"}, "its format is not"),
            ({"more": 1}, "'more' is unknown"),
        ],
    )
    def test_the_whole(self, tmp_path: Path, change: dict[str, object], words: str) -> None:
        content = {"format": FORMAT, "pictures": [self.ROW], "made_with": {}, **change}
        assert words in self.told(tmp_path, json.dumps(content))

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "Expecting value"),
            ("[]", "its format is not"),
            ("[" * 100_000, "nested too deeply"),
            ('{"format": ' + "[" * 100_000, "nested too deeply"),
            ('{"format": "a", "format": "b"}', "'format' stands there twice"),
            ('{"a": 1e999}', "a finite number is required"),
            ('{"a": ' + "9" * 5000 + "}", "integer string conversion"),
        ],
    )
    def test_no_json(self, tmp_path: Path, text: str, words: str) -> None:
        assert words in self.told(tmp_path, text)

    def test_two_pictures_of_one_name(self, tmp_path: Path) -> None:
        content = {"format": FORMAT, "pictures": [self.ROW, {**self.ROW, "seed": 1}], "made_with": {}}
        assert "two pictures have one name" in self.told(tmp_path, json.dumps(content))

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "manifest.json").write_bytes(b"\xff\xfe{")
        with pytest.raises(UserError, match=r"manifest\.json is no manifest"):
            read_image_folder(tmp_path)
