"""The file of a mask: what is written comes back, and anything else is refused in one line."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from salun_diffusers.errors import UserError
from salun_diffusers.files.whole_files import check_whole
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.mask_file import bits_sha256
from salun_diffusers.masks.saliency import Saliency

SHAPES = {"conv": (4, 3, 3), "bias": (5,), "scalar": (), "linear": (7, 11)}


def random_mask(seed: int) -> SaliencyMask:
    return SaliencyMask.random(SHAPES, 0.5, torch.Generator().manual_seed(seed))


class TestFile:
    def test_round_trip(self, tmp_path):
        mask = SaliencyMask.from_saliency(
            Saliency({name: torch.rand(shape) for name, shape in SHAPES.items()}),
            0.3,
            recipe={"concept": "円", "seeds": [1, 2], "guidance": 7.5, "teacher": None},
        )
        path = tmp_path / "new folder" / "mask.safetensors"
        mask.save(path)
        loaded = SaliencyMask.load(path)
        assert loaded == mask
        assert list(loaded) == list(SHAPES)
        assert loaded.recipe == mask.recipe
        assert [entry.name for entry in path.parent.iterdir()] == ["mask.safetensors"]

    def test_holds_one_bit_per_weight(self, tmp_path):
        SaliencyMask.full({"w": (1000, 80)}).save(tmp_path / "mask.safetensors")
        assert load_file(tmp_path / "mask.safetensors")["w"].shape == (10_000,)

    def test_an_interrupted_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "mask.safetensors"
        random_mask(0).save(path)

        def fail(*_):
            raise OSError("disk full")

        monkeypatch.setattr("pathlib.Path.replace", fail)
        with pytest.raises(OSError, match="disk full"):
            random_mask(1).save(path)
        assert SaliencyMask.load(path) == random_mask(0)
        assert list(tmp_path.iterdir()) == [path]


def _rewrite(path, tensors=None, **changes):
    metadata = {**check_whole(path)["__metadata__"], **changes}
    tensors = tensors or {}
    kept = {name: tensor.clone() for name, tensor in {**load_file(path), **tensors}.items() if tensor.numel()}
    save_file(kept, path, metadata={name: value for name, value in metadata.items() if value})


def _truncate(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


DAMAGED, ALTERED = "is damaged: expected shapes, recipe and sha256", "shapes or its recipe have been altered"

BAD_FILES = {
    "missing": (lambda path: path.unlink(), "does not exist: expected a mask file .* found no file"),
    "empty": (lambda path: path.write_bytes(b""), "no safetensors file: a header is required, found 0 bytes"),
    "pickle": (lambda path: torch.save({"a": torch.ones(9)}, path), "no safetensors file: a header is required"),
    "no JSON": (
        lambda path: path.write_bytes((9).to_bytes(8, "little") + b"{nonsense"),
        "no safetensors file: a JSON header of tensors is required",
    ),
    "header cut": (
        lambda path: _truncate(path, 60),
        r"is truncated or damaged: a header of \d+ bytes",
    ),
    "data cut": (lambda path: _truncate(path, -1), r"truncated or damaged: \d+ bytes are required, found \d+"),
    "bytes added": (
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        r"truncated or damaged: \d+ bytes are required",
    ),
    "foreign": (
        lambda path: save_file({"weight": torch.ones(2)}, path),
        "not a saliency mask: expected the metadata format='salun_diffusers.mask', found None",
    ),
    "newer": (lambda path: _rewrite(path, version="3"), "version '3', expected '2': update salun_diffusers"),
    "other recipe": (
        lambda path: _rewrite(path, recipe='{"concept": "dog"}'),
        ALTERED,
    ),
    "other shape": (
        lambda path: _rewrite(
            path, shapes=check_whole(path)["__metadata__"]["shapes"].replace("[4, 3, 3]", "[3, 4, 3]")
        ),
        ALTERED,
    ),
    "no seal": (lambda path: _rewrite(path, seal=""), ALTERED),
    "a shape of millions": (
        lambda path: _rewrite(path, version="1", seal="", shapes='{"conv": [99999999999999999]}'),
        "is damaged",
    ),
    "a deep recipe": (lambda path: _rewrite(path, version="1", seal="", recipe="[" * 50_000), "is damaged"),
    "no shapes": (
        lambda path: _rewrite(path, version="1", seal="", shapes=""),
        DAMAGED,
    ),
    "shapes no dict": (
        lambda path: _rewrite(path, version="1", seal="", shapes="[1]"),
        DAMAGED,
    ),
    "altered bits": (
        lambda path: _rewrite(path, {"conv": torch.zeros(5, dtype=torch.uint8)}),
        f"bits have been altered: expected sha256 {'[0-9a-f]' * 64}, found",
    ),
    "byte count": (
        lambda path: _rewrite(path, {"conv": torch.zeros(4, dtype=torch.uint8)}),
        r"tensor conv of shape \(4, 3, 3\) expected 5 bytes of bits, found torch.uint8 of shape \(4,\)",
    ),
    "type": (
        lambda path: _rewrite(path, {"bias": torch.zeros(1)}),
        r"tensor bias of shape \(5,\) expected 1 bytes of bits, found torch.float32",
    ),
    "padding": (
        lambda path: _rewrite(path, {"bias": torch.tensor([0b1000_0001], dtype=torch.uint8)}),
        "tensor bias expected only zeros beyond its 5 bits, found 0b100",
    ),
    "tensor lacking": (
        lambda path: _rewrite(path, {"linear": torch.empty(0)}),
        "expected a tensor linear, found none of that name",
    ),
    "tensor too many": (
        lambda path: _rewrite(path, {"extra": torch.zeros(1, dtype=torch.uint8)}),
        "found tensor extra, expected only tensors that the header has a shape for",
    ),
}


class TestBadFiles:
    @pytest.mark.parametrize("kind", BAD_FILES)
    def test_is_refused_in_one_line_naming_the_file(self, kind, tmp_path):
        spoil, words = BAD_FILES[kind]
        path = tmp_path / "mask.safetensors"
        random_mask(0).save(path)
        spoil(path)
        with pytest.raises(UserError, match=words) as caught:
            SaliencyMask.load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_file_of_version_1_is_read_with_a_warning_until_it_is_sealed(self, tmp_path, capsys):
        path = tmp_path / "mask.safetensors"
        random_mask(0).save(path)
        assert SaliencyMask.load(path) == random_mask(0) and capsys.readouterr().err == ""
        _rewrite(path, version="1", seal="")
        assert SaliencyMask.load(path) == random_mask(0)
        err = capsys.readouterr().err
        assert err.startswith(f"warning: {path} is of version 1") and "nothing vouches" in err and err.count("\n") == 1
        SaliencyMask.load(path).save(path)  # As the warning says.
        capsys.readouterr()
        assert SaliencyMask.load(path) == random_mask(0) and capsys.readouterr().err == ""

    def test_a_seal_is_not_shed_by_naming_another_version(self, tmp_path):
        path = tmp_path / "mask.safetensors"
        random_mask(0).save(path)
        _rewrite(path, version="1", recipe='{"concept": "dog"}')
        with pytest.raises(UserError, match=ALTERED):
            SaliencyMask.load(path)

    def test_the_hash_covers_names_and_bytes_in_sorted_order(self):
        packed = {"b": torch.tensor([1, 2], dtype=torch.uint8), "a": torch.tensor([3], dtype=torch.uint8)}
        assert bits_sha256(packed) == hashlib.sha256(b"a\0\x03b\0\x01\x02").hexdigest()

    def test_metadata_is_as_documented(self, tmp_path):
        mask = random_mask(0)
        mask.save(tmp_path / "mask.safetensors")
        metadata = check_whole(tmp_path / "mask.safetensors")["__metadata__"]
        assert metadata["format"] == "salun_diffusers.mask"
        assert metadata["version"] == "2"
        assert json.loads(metadata["shapes"]) == {name: list(shape) for name, shape in SHAPES.items()}
        assert json.loads(metadata["recipe"]) == dict(mask.recipe)
        assert metadata["sha256"] == mask.sha256
