"""A user's own pictures: which there are, what they show, how they are cut, and what is refused of them in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from salun_diffusers.errors import UserError
from salun_diffusers.pictures import picture_files
from salun_diffusers.pictures.captions import class_caption
from salun_diffusers.pictures.framing import View, scaled_size, views
from salun_diffusers.pictures.own_pictures import data_set_pictures, folder_pictures, readable


@pytest.fixture(autouse=True)
def _notes_anew() -> None:
    picture_files.tell_once.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A folder of pictures in one colour each."""

    def make(*names: str, **files: str) -> Path:
        root = tmp_path / "pictures"
        for number, name in enumerate(names):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 8), (number, 0, 0)).save(root / name)
        for name, text in files.items():
            (root / name.replace("_", ".")).write_text(text)
        return root

    return make


def captions(root: Path, column: str | None = None) -> list[str]:
    return [one.caption for one in folder_pictures(root, column, None)]


class TestCaptions:
    def test_of_json_lines(self, folder):
        lines = [{"file_name": f"{n}.png", "text": f"picture  {n} "} for n in (1, 0)]
        assert captions(folder("0.png", "1.png", metadata_jsonl="\n".join(map(json.dumps, lines)))) == [
            "picture 0", "picture 1",
        ]  # fmt: skip

    def test_of_a_csv_with_another_column(self, folder, capsys):
        root = folder("a/0.png", metadata_csv='file_name,caption,words\na/0.png,plain,"two, three"\n')
        assert captions(root) == ["plain"]
        assert captions(root, "words") == ["two, three"]
        assert capsys.readouterr().err == ""  # Metadata are no file that was left out.

    def test_nearest_metadata_count(self, folder):
        root = folder("a/0.png", "b/0.png", metadata_csv="file_name,text\na/0.png,above\nb/0.png,above\n")
        (root / "a" / "metadata.csv").write_text("file_name,text\n0.png,beside\n")
        assert captions(root) == ["beside", "above"]

    def test_none_are_labels_of_class_folders(self, folder):
        found = folder_pictures(folder("gas_pump/0.png", "n03417042/x/1.png", "2.png"), None, None)
        assert [(one.caption, one.label) for one in found] == [("", ""), ("", "gas_pump"), ("", "n03417042")]
        assert class_caption("gas_pump") == "an image of a gas pump"
        assert class_caption("n03417042") == "an image of a garbage truck"

    def test_a_folder_apart_does_not_count(self, folder):
        root = folder("star/0.png", "heart/1.png")
        assert [one.label for one in folder_pictures(root, None, root / "star")] == ["heart"]

    @pytest.mark.parametrize(
        ("files", "column", "words"),
        [
            ({"metadata_csv": "file,text\n0.png,x\n"}, None, "must have a column file_name; its columns are file"),
            ({"metadata_csv": "file_name,label\n0.png,x\n"}, None, "a column text or caption is none of the columns"),
            ({"metadata_csv": "file_name,text\n0.png,x\n"}, "words", "--caption_column words is none of the columns"),
            ({"metadata_csv": "file_name,text\n0.png,x\n"}, None, "1 of 2 have none, the first is 1.png"),
            ({"metadata_csv": "file_name,text\n0.png,\n"}, None, "Row 1 of"),
            ({"metadata_csv": "file_name,text\n0.png,a,b\n"}, None, "more cells than there are columns"),
            ({"metadata_csv": "file_name,text\n"}, None, "one row per picture, it has none"),
            ({"metadata_jsonl": "[1]"}, None, "each line must be an object"),
            ({"metadata_jsonl": '{"file_name": "0.png", "text": 3}'}, None, "Row 1 of"),
            ({"metadata_jsonl": "{", "metadata_csv": "x"}, None, "which one counts"),
            ({}, "text", "has neither"),
        ],
    )  # fmt: skip
    def test_damaged_or_missing(self, folder, files, column, words):
        with pytest.raises(UserError) as told:
            captions(folder("0.png", "1.png", **files), column)
        assert words in str(told.value) and "\n" not in str(told.value)

    def test_parts_of_a_data_set_are_no_classes(self, folder):
        with pytest.raises(UserError, match=r"train, val are parts of a data set: name .*val"):
            captions(folder("train/star/0.png", "val/star/0.png"))

    def test_ids_are_no_words(self):
        with pytest.raises(UserError, match="n00000001 is an id of WordNet"):
            class_caption("n00000001")


class TestReadable:
    def test_damaged_ones_are_named_and_left_out(self, folder, capsys):
        root = folder("0.png", "1.png", "2.png")
        (root / "1.png").write_bytes((root / "1.png").read_bytes()[:45])
        kept = readable(folder_pictures(root, None, None), "here")
        assert [Path(one.name).name for one in kept] == ["0.png", "2.png"]
        error = capsys.readouterr().err
        assert "here: 1 of 3 pictures are left out." in error and "1.png cannot be read" in error
        assert error.count("\n") == 1

    def test_other_processes_are_silent(self, folder, capsys, monkeypatch):
        monkeypatch.setenv("RANK", "1")
        root = folder("0.png", "1.png")
        (root / "1.png").write_bytes(b"")
        assert len(readable(folder_pictures(root, None, None), "there")) == 1
        assert capsys.readouterr().err == ""

    def test_none_left_is_an_error(self, folder):
        root = folder("0.png")
        (root / "0.png").write_bytes(b"no picture")
        with pytest.raises(UserError, match=r"none of its 1 can be read: .*0\.png cannot be read"):
            readable(folder_pictures(root, None, None), "here")

    def test_content_is_what_is_seen(self, folder):
        """The same pixels under another name and in another format are the same picture; a turned one is not."""
        root = folder("0.png")
        pixels = np.random.default_rng(0).integers(0, 255, (6, 9, 3)).astype(np.uint8)
        shown = Image.fromarray(pixels)
        shown.save(root / "1.bmp")
        shown.save(root / "2.webp", lossless=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        shown.save(root / "3.png", exif=exif)
        clear = Image.fromarray(np.dstack([pixels, np.full((6, 9), 255, np.uint8)]), "RGBA")
        clear.save(root / "4.png")
        found = {Path(one.name).name: one for one in readable(folder_pictures(root, None, None), "")}
        assert found["1.bmp"].sha256 == found["2.webp"].sha256 == found["4.png"].sha256
        assert len({one.sha256 for one in found.values()}) == 3
        assert found["3.png"].size == (6, 9) and found["1.bmp"].size == (9, 6)


class TestFraming:
    def test_scaled_as_torchvision_does(self):
        """`_compute_resized_output_size`: the longer side is rounded down."""
        assert scaled_size((500, 333), 512) == (768, 512)
        assert scaled_size((333, 500), 512) == (512, 768)
        assert scaled_size((160, 213), 100) == (100, 133)

    def test_the_centre(self):
        """As in train_text_to_image_sdxl: y1 = round((height - side) / 2)."""
        (view,) = views((30, 20), 10, center_crop=True, random_flip=False, name=(0, "x"))
        assert (view.top, view.left, view.original) == (0, 2, (20, 30))
        assert view.sizes == (20, 30, 0, 2, 10, 10)
        shown = view.of(Image.fromarray(np.arange(15, dtype=np.uint8)[None].repeat(10, 0)))
        assert np.asarray(shown)[0].tolist() == list(range(2, 12))

    def test_elsewhere_is_told_by_seed_and_content(self):
        def lefts(seed: int) -> list[int]:
            return [
                view.left
                for item in range(40)
                for view in views((40, 10), 10, center_crop=False, random_flip=True, name=(seed, str(item)))
            ]

        assert lefts(0) == lefts(0) != lefts(1)
        assert set(lefts(0)) <= set(range(31)) and len(set(lefts(0))) > 20
        assert lefts(0)[::2] != lefts(0)[1::2]

    def test_mirrored_before_it_is_cut(self):
        picture = Image.fromarray(np.arange(8, dtype=np.uint8)[None].repeat(4, 0))
        plain, mirrored = views(picture.size, 4, center_crop=True, random_flip=True, name=(0, ""))
        assert (plain.mirrored, mirrored.mirrored) == (False, True)
        assert np.asarray(View(4, True, 0, 1, (4, 8)).of(picture))[0].tolist() == [6, 5, 4, 3]
        assert np.asarray(plain.of(picture))[0].tolist() == [2, 3, 4, 5]


class HubImage:
    """Stands for `datasets.Image`."""

    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class HubRows:
    """Stands for a table of `datasets`."""

    def __init__(self, columns: dict[str, list[Any]], **features: Any) -> None:
        self.features = {name: SimpleNamespace() for name in columns} | features
        self._columns = columns

    def cast_column(self, key: str, feature: HubImage) -> HubRows:
        assert not feature.decode
        return self

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, key: str | int) -> Any:
        return self._columns[key] if isinstance(key, str) else {n: cells[key] for n, cells in self._columns.items()}


class TestDataSet:
    @pytest.fixture
    def serve(self, monkeypatch, tmp_path) -> Callable[..., None]:
        Image.new("RGB", (4, 4), "red").save(tmp_path / "0.png")
        cells = [
            {"bytes": (tmp_path / "0.png").read_bytes(), "path": None},
            {"bytes": None, "path": tmp_path / "0.png"},
        ]

        def load(columns: dict[str, list[Any]], **features: Any) -> None:
            rows = HubRows({"image": cells, **columns}, image=HubImage(), **features)

            def loaded(name: str, configuration: str | None, *, split: str) -> HubRows:
                assert (name, configuration, split) == ("somebody/pictures", "small", "train")
                return rows

            monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(Image=HubImage, load_dataset=loaded))

        return load

    def test_captions_and_pictures(self, serve):
        serve({"text": ["one", "two"]})
        found = data_set_pictures("somebody/pictures", "small", ("image", None))
        assert [one.caption for one in found] == ["one", "two"]
        assert {one.sha256 for one in readable(found, "")} == {readable(found, "")[0].sha256}

    def test_classes_are_labels(self, serve):
        serve({"label": [1, -1]}, label=SimpleNamespace(names=["cat", "dog"]))
        assert [one.label for one in data_set_pictures("somebody/pictures", "small", ("image", None))] == ["", ""]
        with pytest.raises(UserError, match="row 1 has none"):
            data_set_pictures("somebody/pictures", "small", ("image", "label"))
        serve({"label": [1, 0]}, label=SimpleNamespace(names=["cat", "dog"]))
        found = data_set_pictures("somebody/pictures", "small", ("image", "label"))
        assert [(one.caption, one.label) for one in found] == [("", "dog"), ("", "cat")]

    def test_wrong_columns(self, serve):
        serve({"text": ["one", "two"]})
        with pytest.raises(UserError, match=r"--image_column text is no column of pictures.*pictures in image"):
            data_set_pictures("somebody/pictures", "small", ("text", None))
        with pytest.raises(UserError, match="--caption_column words is none of the columns"):
            data_set_pictures("somebody/pictures", "small", ("image", "words"))

    def test_nobody_at_home(self, monkeypatch):
        def load(*_: object, **__: object) -> None:
            raise ConnectionError("no route\nto the hub")

        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(Image=HubImage, load_dataset=load))
        with pytest.raises(UserError, match="could not be loaded: no route to the hub"):
            data_set_pictures("somebody/pictures", None, ("image", None))
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(UserError, match=r"pip install 'salun-diffusers\[hub-data\]'"):
            data_set_pictures("somebody/pictures", None, ("image", None))
