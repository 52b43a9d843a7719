"""Files of features: what they hold, and what is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.feature_extractors import FeatureExtractor
from salun_diffusers.evaluation.feature_files import FeatureSet, features_of

RECORD = {"format": "salun_diffusers features, version 1", "protocol": "means", "digest": "0" * 64, "source": "a"}
MEANS = FeatureExtractor("means", 3, "means", 3, lambda pixels: pixels.float().mean((2, 3)))


@pytest.fixture
def told(tmp_path: Path) -> Callable[..., str]:
    def load(tensors: dict[str, Tensor], record: object) -> str:
        text = record if isinstance(record, str) else json.dumps(record)
        save_file(tensors, tmp_path / "f.safetensors", metadata={"record": text})
        with pytest.raises(UserError, match=r"f\.safetensors is no file of features") as error:
            FeatureSet.load(tmp_path / "f.safetensors")
        assert "\n" not in str(error.value)
        return str(error.value)

    return load


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (torch.zeros(3), "of shape (pictures, dimension), found F32 (3,)"),
        (torch.zeros(0, 3), "found F32 (0, 3)"),
        (torch.zeros(3, 3, dtype=torch.int64), "found I64 (3, 3)"),
        (torch.tensor([[1.0, torch.nan]]), "features must be finite"),
        (torch.tensor([[1.0, torch.inf]]), "features must be finite"),
    ],
)
def test_values(told: Callable[..., str], values: Tensor, words: str) -> None:
    assert words in told({"features": values}, RECORD)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ([], "its format is not"),
        ({**RECORD, "format": "other"}, "its format is not"),
        ({**RECORD, "protocol": 3}, "'protocol' must be a text"),
        ({**RECORD, "digest": None}, "'digest' must be a text"),
        ({**RECORD, "source": ["a"]}, "'source' must be a text"),
        ("[" * 100_000, "nested too deeply"),
        ('{"format": 1, "format": 2}', "stands there twice"),
        ("", "Expecting value"),
    ],
)
def test_records(told: Callable[..., str], record: object, words: str) -> None:
    assert words in told({"features": torch.zeros(2, 3)}, record)


def test_other_tensors_and_other_files(told: Callable[..., str], tmp_path: Path) -> None:
    assert "features" in told({"other": torch.zeros(2, 3)}, RECORD)
    save_file({"features": torch.zeros(2, 3)}, tmp_path / "bare.safetensors")
    (tmp_path / "text.safetensors").write_text("no features")
    for name in ("bare", "text", "absent"):
        with pytest.raises(UserError, match=rf"{name}\.safetensors is no file of features"):
            FeatureSet.load(tmp_path / f"{name}.safetensors")


def test_a_file_that_claims_gigabytes(tmp_path: Path) -> None:
    """Eight bytes of length, a header of 2^31 numbers, and a hole of 8 GiB that takes no disk."""
    entry = {"dtype": "F32", "shape": [2**20, 2**11], "data_offsets": [0, 2**33]}
    header = json.dumps({"__metadata__": {"record": json.dumps(RECORD)}, "features": entry}).encode()
    with (tmp_path / "f.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2**33)
    with pytest.raises(UserError, match="2,147,483,648 numbers, at most 1,073,741,824 are read"):
        FeatureSet.load(tmp_path / "f.safetensors")


class TestOfPictures:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "set" / "star").mkdir(parents=True)
        Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "set" / "star" / "0.png")
        return tmp_path / "set"

    def test_the_protocol_says_how_they_are_decoded(self, folder: Path) -> None:
        """A transparent red picture is white: three means of 255."""
        made = features_of(folder, MEANS, batch_size=2, resize=None)
        assert made.values.tolist() == [[255, 255, 255]]
        assert made.protocol == "means, pictures upright, on white, 8-bit RGB"

    def test_kept_features_are_of_these_pictures(self, folder: Path, tmp_path: Path) -> None:
        made = features_of(folder, MEANS, batch_size=2, resize=None, cache=tmp_path / "kept")
        assert torch.equal(
            features_of(folder, MEANS, batch_size=2, resize=None, cache=tmp_path / "kept").values, made.values
        )
        (kept,) = (tmp_path / "kept").glob("*.safetensors")
        FeatureSet(made.values + 1, made.protocol, "of others", made.source).save(kept)
        with pytest.raises(UserError, match="does not hold the features that its name says; delete it"):
            features_of(folder, MEANS, batch_size=2, resize=None, cache=tmp_path / "kept")

    def test_what_a_file_leaves_out_is_left_out_on_every_side(self, folder: Path, tmp_path: Path) -> None:
        """Else pictures with circles would be measured against a reference without any, and nothing said so."""
        (folder / "circle").mkdir()
        Image.new("RGB", (4, 4)).save(folder / "circle" / "0.png")
        features_of(folder, MEANS, batch_size=2, resize=None, exclude=("circle",), cache=tmp_path / "kept")
        (file,) = (tmp_path / "kept").iterdir()
        assert len(features_of(file, MEANS, batch_size=2, resize=None, exclude=("circle",)).values) == 1
        with pytest.raises(UserError, match="without circle; --exclude circle is required"):
            features_of(file, MEANS, batch_size=2, resize=None)

    def test_a_file_of_the_class_that_is_left_out_alone(self, folder: Path, tmp_path: Path) -> None:
        features_of(folder, MEANS, batch_size=2, resize=None).save(tmp_path / "f.safetensors")
        assert len(features_of(tmp_path / "f.safetensors", MEANS, batch_size=2, resize=None).values) == 1
        with pytest.raises(UserError, match="no pictures of other classes than star"):
            features_of(tmp_path / "f.safetensors", MEANS, batch_size=2, resize=None, exclude=["star"])
