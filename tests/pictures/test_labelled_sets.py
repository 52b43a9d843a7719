"""Labelled sets from folders and files: one size, square, uint8, and refused where they would be misread."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from salun_diffusers.errors import UserError
from salun_diffusers.pictures.labelled_pictures import LabelledPictures
from salun_diffusers.pictures.picture_sources import load_pictures


def save(path: Path, size: tuple[int, int] = (8, 8), colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


class TestFolders:
    def test_size_is_the_most_frequent_one(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The first file is a thumbnail; three of four pictures have 12 pixels."""
        for name, size in (("cat/0.png", 4), ("cat/1.png", 12), ("dog/0.png", 12), ("dog/1.png", 12)):
            save(tmp_path / name, (size, size))
        assert load_pictures(str(tmp_path))[0].pixels.shape == (4, 3, 12, 12)
        assert "1 of 4 pictures are not 12×12" in capsys.readouterr().err
        assert load_pictures(str(tmp_path), image_size=6)[0].pixels.shape == (4, 3, 6, 6)

    def test_a_folder_named_as_a_data_set_is_not_read_without_a_word(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("digits/a/0.png", "digits/b/0.png"):
            save(tmp_path / name)
        monkeypatch.chdir(tmp_path)
        assert load_pictures("digits")[0].num_classes == 10
        assert "digits is the data set of that name; your folder is ./digits" in capsys.readouterr().err
        assert load_pictures("./digits")[0].class_names == ("a", "b")

    def test_of_equally_frequent_sizes_the_largest(self, tmp_path: Path) -> None:
        for name, size in (("a/0.png", 4), ("b/0.png", 9)):
            save(tmp_path / name, (size, size))
        assert load_pictures(str(tmp_path))[0].pixels.shape[-2:] == (9, 9)

    def test_the_centre_of_what_is_not_square(self, tmp_path: Path) -> None:
        """Of 12 × 4 pixels, columns 4 to 7 stay, which are white here; the test set has the training set's size."""
        picture = Image.new("RGB", (12, 4), "red")
        picture.paste("white", (4, 0, 8, 4))
        for part in ("train", "test"):
            save(tmp_path / part / "a" / "0.png").unlink()
            picture.save(tmp_path / part / "a" / "0.png")
        save(tmp_path / "test" / "a" / "1.png", (40, 40))
        train, test = load_pictures(str(tmp_path))
        assert train.pixels.shape == (1, 3, 4, 4) and train.pixels.unique().tolist() == [255]
        assert test is not None and test.pixels.shape == (2, 3, 4, 4)

    def test_16_bits_orientation_and_transparency(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)).save(tmp_path / "a" / "0.png")
        Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a" / "1.png")
        pixels = load_pictures(str(tmp_path))[0].pixels
        assert [part.unique().tolist() for part in pixels] == [[100], [255]]

    @pytest.mark.parametrize("name", ["test", "val", "valid", "validation", "Testing"])
    def test_names_of_the_held_out_set(self, tmp_path: Path, name: str) -> None:
        save(tmp_path / ("Training" if name == "Testing" else "train") / "a" / "0.png")
        save(tmp_path / name / "a" / "0.png")
        train, test = load_pictures(str(tmp_path))
        assert len(train) == 1 and test is not None and len(test) == 1 and train.class_names == ("a",)

    def test_a_test_set_without_classes_gives_way(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Kaggle's test/ has no labels; valid/ has."""
        save(tmp_path / "train" / "a" / "0.png")
        save(tmp_path / "test" / "0.png")
        with pytest.raises(UserError, match=r"test must hold one folder of pictures per class"):
            load_pictures(str(tmp_path))
        save(tmp_path / "valid" / "a" / "0.png")
        assert load_pictures(str(tmp_path))[1] is not None
        assert "the test set is valid; not used: test." in capsys.readouterr().err

    def test_classes_of_the_test_set_only(self, tmp_path: Path) -> None:
        save(tmp_path / "train" / "a" / "0.png")
        save(tmp_path / "test" / "b" / "0.png")
        with pytest.raises(UserError, match=r"test must hold classes of .*train \(a\), found 'b' too"):
            load_pictures(str(tmp_path))

    def test_folders_that_are_no_classes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("a/0.png", ".ipynb_checkpoints/0.png", "__MACOSX/a/._0.png", "c/deeper/1.png", "loose.png"):
            save(tmp_path / name)
        (tmp_path / "b").mkdir()
        (tmp_path / "a" / "notes.txt").touch()
        data = load_pictures(str(tmp_path))[0]
        assert data.class_names == ("a", "c") and data.labels.tolist() == [0, 1]
        told = capsys.readouterr().err
        assert "4 left out (1 ending .txt, 2 hidden or the system's, 1 in no class folder)" in told
        assert "no class where no picture is: b." in told

    @pytest.mark.parametrize("name", ["previews", "detections", "test", "a.png"])
    def test_any_name_may_be_a_class(self, tmp_path: Path, name: str) -> None:
        save(tmp_path / name / "a.png")
        save(tmp_path / "zebra" / "0.png")
        assert load_pictures(str(tmp_path))[0].class_names == (name, "zebra")

    def test_linked_classes(self, tmp_path: Path) -> None:
        save(tmp_path / "store" / "0.png")
        save(tmp_path / "set" / "a" / "0.png")
        (tmp_path / "set" / "b").symlink_to(tmp_path / "store")
        assert load_pictures(str(tmp_path / "set"))[0].class_names == ("a", "b")

    def test_damaged_pictures(self, tmp_path: Path) -> None:
        save(tmp_path / "a" / "0.png")
        whole = save(tmp_path / "a" / "1.png", (300, 300)).read_bytes()
        (tmp_path / "a" / "1.png").write_bytes(whole[:-40])
        with pytest.raises(UserError, match=r"1\.png cannot be read as a picture"):
            load_pictures(str(tmp_path))

    def test_more_than_fits(self, tmp_path: Path) -> None:
        """3 · 40000² bytes are 4.5 GiB."""
        save(tmp_path / "a" / "0.png")
        with pytest.raises(UserError, match=r"need 4\.5 GiB, at most 4 are read"):
            load_pictures(str(tmp_path), image_size=40_000)


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., str]:
    """A file of two training pictures and one of test; tensors can be given in their place."""

    def write(**tensors: Tensor) -> str:
        whole = {
            "train_pixels": torch.full((2, 3, 4, 4), 7, dtype=torch.uint8),
            "train_labels": torch.tensor([0, 1]),
            "test_pixels": torch.full((1, 3, 4, 4), 7, dtype=torch.uint8),
            "test_labels": torch.tensor([1]),
        }
        save_file(whole | tensors, tmp_path / "set.safetensors")
        return str(tmp_path / "set.safetensors")

    return write


class TestFiles:
    @pytest.mark.parametrize(
        "kind", [torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64]
    )
    def test_whole_numbers_up_to_255(self, stored: Callable[..., str], kind: torch.dtype) -> None:
        train, _ = load_pictures(stored(train_pixels=torch.full((2, 3, 4, 4), 100).to(kind)))
        assert train.pixels.dtype == torch.uint8 and train.pixels.unique().tolist() == [100]

    @pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool])
    def test_from_0_to_1(self, stored: Callable[..., str], kind: torch.dtype) -> None:
        half = torch.tensor([0.0, 1.0]).to(kind).view(2, 1, 1, 1).expand(2, 3, 4, 4).contiguous()
        train, _ = load_pictures(stored(train_pixels=half))
        assert train.pixels.dtype == torch.uint8 and train.pixels.unique().tolist() == [0, 255]

    @pytest.mark.parametrize(
        ("tensors", "words"),
        [
            ({"train_pixels": torch.full((2, 3, 4, 4), 300)}, "must lie in 0 to 255, got 300 to 300"),
            ({"train_pixels": torch.full((2, 3, 4, 4), -1)}, "must lie in 0 to 255, got -1"),
            ({"train_pixels": torch.ones(2, 3, 4, 4, dtype=torch.int32)}, "must lie in 0 to 255, got 1 to 1"),
            ({"train_pixels": torch.full((2, 3, 4, 4), 7.0)}, r"must lie in \[0, 1\], got 7 to 7"),
            ({"train_pixels": torch.full((2, 3, 4, 4), torch.inf)}, "must be finite"),
            ({"train_pixels": torch.zeros(2, 3, 4, 4, dtype=torch.complex64)}, "uint8, or floats in .*got C64"),
            ({"train_pixels": torch.zeros(2, 4, 5, 3, dtype=torch.uint8)}, r"1 or 3 channels.*permute\(0, 3, 1, 2\)"),
            ({"train_pixels": torch.zeros(2, 8, 8, 1, dtype=torch.uint8)}, r"1 or 3 channels.*permute\(0, 3, 1, 2\)"),
            ({"train_pixels": torch.zeros(2, 4, 4, 4, dtype=torch.uint8)}, "1 or 3 channels.*grey or RGB"),
            ({"train_pixels": torch.zeros(2, 4, 4, dtype=torch.uint8)}, r"must have shape \(n, channels"),
            ({"train_pixels": torch.zeros(2, 3, 0, 4, dtype=torch.uint8)}, "and hold a picture"),
            ({"test_pixels": torch.zeros(1, 1, 4, 4, dtype=torch.uint8)}, "must be of one shape"),
            ({"test_pixels": torch.zeros(1, 3, 4, 5, dtype=torch.uint8)}, "must be of one shape"),
            (
                {"test_pixels": torch.zeros(0, 3, 4, 4, dtype=torch.uint8), "test_labels": torch.zeros(0).long()},
                "test_pixels .* hold a picture",
            ),
            (
                {"train_pixels": torch.zeros(0, 3, 4, 4, dtype=torch.uint8), "train_labels": torch.zeros(0).long()},
                "train_pixels .* hold a picture",
            ),
            ({"train_labels": torch.tensor([0.0, 1.0])}, "train_labels .* whole numbers"),
            ({"train_labels": torch.tensor([False, True])}, "train_labels .* whole numbers"),
            ({"train_labels": torch.tensor([0])}, "one label per picture"),
            ({"train_labels": torch.tensor([[0], [1]])}, "one label per picture"),
            ({"train_labels": torch.tensor([0, 2**40])}, "below 65,536, got 1099511627776"),
            ({"test_labels": torch.tensor([2**62])}, "below 65,536"),
            ({"train_labels": torch.tensor([0, -1])}, "labels are missing"),
            ({"train_labels": torch.tensor([0, 2**63], dtype=torch.uint64)}, "labels are missing"),
        ],
    )
    def test_refused(self, stored: Callable[..., str], tensors: dict[str, Tensor], words: str) -> None:
        with pytest.raises(UserError, match=words) as told:
            load_pictures(stored(**tensors))
        assert "\n" not in str(told.value)

    def test_centre_of_what_is_not_square(self, stored: Callable[..., str]) -> None:
        wide = torch.arange(6, dtype=torch.uint8).expand(2, 3, 2, 6).contiguous()
        train, _ = load_pictures(stored(train_pixels=wide, test_pixels=wide[:1].clone()))
        assert train.pixels.shape == (2, 3, 2, 2) and train.pixels[0, 0, 0].tolist() == [2, 3]
        # Training asks for a size, unlearning for that of the model's folder: both see the centre.
        sized, _ = load_pictures(stored(train_pixels=wide, test_pixels=wide[:1].clone()), image_size=2)
        assert torch.equal(sized.pixels, train.pixels)

    def test_a_file_that_claims_gigabytes(self, tmp_path: Path) -> None:
        """4 kB on the disk: a header of 12 GB of pixels, and a hole behind it."""
        n = 12 * 10**9 // (3 * 32 * 32)
        size, labels = n * 3 * 32 * 32, n * 8
        header, at = {}, 0
        for part in ("train", "test"):
            for what, kind, shape, length in (("pixels", "U8", [n, 3, 32, 32], size), ("labels", "I64", [n], labels)):
                header[f"{part}_{what}"] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + length]}
                at += length
        text = json.dumps(header).encode()
        path = tmp_path / "set.safetensors"
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
        with pytest.raises(UserError, match=r"need 22\.\d GiB, at most 4 are read"):
            load_pictures(str(path))

    @pytest.mark.parametrize("content", [b"", b"no safetensors", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"])
    def test_damaged(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "set.safetensors").write_bytes(content)
        with pytest.raises(UserError, match=r"set\.safetensors cannot be read"):
            load_pictures(str(tmp_path / "set.safetensors"))


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-has-this-name/set", "mnist"])
def test_names_of_nothing(name: str) -> None:
    with pytest.raises(UserError, match="The data set"):
        load_pictures(name)


def test_pictures_in_memory_are_of_two_kinds() -> None:
    label = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(UserError, match=r"uint8 in 0 to 255 or floats in \[0, 1\], got torch.int64"):
        LabelledPictures(torch.full((1, 1, 2, 2), 9), label, ("a",))
    with pytest.raises(UserError, match="Labels must be whole numbers"):
        LabelledPictures(torch.zeros(1, 1, 2, 2), torch.zeros(1), ("a",))
    wide = LabelledPictures(torch.rand(1, 1, 2, 4), label, ("a",))
    assert torch.equal(wide.squared().pixels, wide.pixels[..., 1:3])
    assert wide.resized(3).pixels.shape == (1, 1, 3, 3)
