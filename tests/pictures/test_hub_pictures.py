"""Labelled sets of the hub, served by a stand-in for the package that reads them."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from salun_diffusers.errors import UserError
from salun_diffusers.pictures.picture_sources import load_pictures


def _png(colour: int, size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (colour, 0, 0)).save(file, "PNG")
    return file.getvalue()


class _HubPicture:
    """Stands for `datasets.Image`."""

    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class _HubRows:
    """Stands for a table of `datasets`: pictures as files once the column was cast so, labels, names of classes."""

    def __init__(self, cells: list[Any], labels: list[Any], names: tuple[str, ...] = ("cat", "dog")) -> None:
        self.features = {"img": _HubPicture(), "label": SimpleNamespace(names=names)}
        self._columns = {"img": cells, "label": labels}

    def cast_column(self, key: str, feature: _HubPicture) -> _HubRows:
        assert key == "img" and not feature.decode
        return self

    def __getitem__(self, key: str) -> list[Any]:
        return self._columns[key]


class TestHub:
    """What comes from the hub is decoded as files are, and refused in one line where files would be."""

    @pytest.fixture
    def hub(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[_HubRows], None]:
        def serve(rows: _HubRows) -> None:
            def load(name: str, configuration: object, *, split: str) -> _HubRows:
                assert name == "uoft-cs/cifar10" and split in ("train", "test")
                return rows

            monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(Image=_HubPicture, load_dataset=load))

        return serve

    def test_bytes_and_paths(self, hub: Callable[[_HubRows], None], tmp_path: Path) -> None:
        (tmp_path / "1.png").write_bytes(_png(200))
        cells = [{"bytes": _png(100), "path": None}, {"bytes": None, "path": str(tmp_path / "1.png")}]
        hub(_HubRows(cells, [0, 1]))
        train, test = load_pictures("cifar10")
        assert test is not None and train.class_names == ("cat", "dog") and test.labels.tolist() == [0, 1]
        assert train.pixels[:, 0].flatten(1).unique(dim=1).tolist() == [[100], [200]]

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (_png(0, (30, 30)), "decompression bomb"),
            (_png(0)[:40], ""),
            (b"no picture", "cannot identify"),
            (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "cannot identify"),
            (b"", "cannot identify"),
        ],
        ids=["bomb", "truncated", "text", "postscript", "empty"],
    )
    def test_a_picture_that_cannot_be_decoded(
        self, hub: Callable[[_HubRows], None], monkeypatch: pytest.MonkeyPatch, data: bytes, words: str
    ) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        hub(_HubRows([{"bytes": _png(100), "path": None}, {"bytes": data, "path": None}], [0, 1]))
        with pytest.raises(UserError) as told:
            load_pictures("cifar10")
        assert str(told.value).startswith("Picture 1 of cifar10 (train) cannot be read as a picture (")
        assert words in str(told.value) and str(told.value).endswith("; download it again.")
        assert "\n" not in str(told.value) and "BytesIO" not in str(told.value)

    @pytest.mark.parametrize(
        "change",
        [
            lambda rows: rows.features.pop("img"),
            lambda rows: rows.features.pop("label"),
            lambda rows: rows["label"].__setitem__(0, None),
            lambda rows: rows["img"].__setitem__(0, None),
        ],
    )
    def test_a_table_of_another_make(self, hub: Callable[[_HubRows], None], change: Callable[[_HubRows], Any]) -> None:
        rows = _HubRows([{"bytes": _png(100), "path": None}], [0])
        change(rows)
        hub(rows)
        with pytest.raises(UserError, match=r"cifar10 \(uoft-cs/cifar10\) is not as it was known, or damaged: \S"):
            load_pictures("cifar10")
