"""The patch: base + patch = erased and back, bit for bit; any other model is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from salun_diffusers.errors import UserError
from salun_diffusers.files.pipeline_folder import embedded_detector
from salun_diffusers.files.stored_weights import bit_patterns, weights_sha256
from salun_diffusers.files.whole_files import check_whole
from salun_diffusers.masks.packed_bits import pack
from salun_diffusers.masks.patch import WeightPatch, patch_folder
from salun_diffusers.programs.patch import main


def weights(dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Eleven weights, of which places 0, 8 and 10 of `a` move (one to NaN, one from 0.0 to -0.0); `b` stays."""
    old = torch.arange(11, dtype=dtype)
    new = old.clone()
    new[0], new[8], new[10] = -0.0, float("nan"), 3.5
    return {"a": old, "b": torch.ones(2, 2, dtype=dtype)}, {"a": new, "b": torch.ones(2, 2, dtype=dtype)}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(bit_patterns(left[name]), bit_patterns(right[name])) for name in left
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_there_and_back(dtype: torch.dtype, tmp_path: Path) -> None:
    base, erased = weights(dtype)
    WeightPatch.between(base, erased).save(tmp_path / "p.safetensors")
    patch = WeightPatch.load(tmp_path / "p.safetensors")
    assert patch.number_moved == 3
    assert {name: bits.tolist() for name, bits in patch.places.items()} == {"a": [0b00000001, 0b00000101]}
    assert same(patch.apply(base), erased) and same(patch.revert(erased), base)
    assert same(base, weights(dtype)[0]), "the arguments stay as they are"


def test_the_change_is_an_exclusive_or_of_bits() -> None:
    """1.0 is 0x3F800000 and -1.0 is 0xBF800000: they differ in the sign bit, which as int32 is the smallest number."""
    patch = WeightPatch.between({"w": torch.tensor([1.0])}, {"w": torch.tensor([-1.0])})
    assert patch.changes["w"].tolist() == [-(2**31)]


def test_equal_models_give_an_empty_patch() -> None:
    base, _ = weights(torch.float32)
    patch = WeightPatch.between(base, base)
    assert patch.number_moved == 0 and patch.places == {}


class TestDamaged:
    """A changed patch gives no weights: neither where it is read, nor, made in memory, where it is applied."""

    @pytest.mark.parametrize("at", [-1, -3, -9])
    def test_one_bit_on_disk(self, tmp_path: Path, at: int) -> None:
        path = tmp_path / "p.safetensors"
        WeightPatch.between(*weights(torch.float32)).save(path)
        data = bytearray(path.read_bytes())
        data[at] ^= 4
        path.write_bytes(data)
        with pytest.raises(UserError, match="is damaged"):
            WeightPatch.load(path)

    @pytest.mark.parametrize("name", ["base_sha256", "erased_sha256", "sha256"])
    def test_another_header(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / "p.safetensors"
        base, erased = weights(torch.float32)
        WeightPatch.between(base, erased).save(path)
        metadata = check_whole(path)["__metadata__"] | {name: "0" * 64}
        save_file(load_file(path), path, metadata=metadata)
        with pytest.raises(UserError, match=r"is damaged|needs the base weights"):
            WeightPatch.load(path).apply(base)

    def test_what_comes_out_is_what_was_promised(self) -> None:
        base, erased = weights(torch.float32)
        patch = WeightPatch.between(base, erased)
        patch.changes["a"][1] ^= 1
        for change, start in ((patch.apply, base), (patch.revert, erased)):
            with pytest.raises(UserError, match="promises weights with SHA-256"):
                change(start)

    def test_a_file_of_version_1_is_read_and_still_checked_by_what_it_gives(self, tmp_path: Path) -> None:
        path = tmp_path / "p.safetensors"
        base, erased = weights(torch.float32)
        WeightPatch.between(base, erased).save(path)
        metadata = {n: v for n, v in check_whole(path)["__metadata__"].items() if n != "sha256"} | {"version": "1"}
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # the file is written over
        save_file(tensors, path, metadata=metadata)
        assert same(WeightPatch.load(path).apply(base), erased)
        tensors["changes.a"][0] ^= 2
        save_file(tensors, path, metadata=metadata)
        with pytest.raises(UserError, match="promises weights"):
            WeightPatch.load(path).apply(base)


class TestRefusals:
    def test_another_base(self) -> None:
        base, erased = weights(torch.float32)
        patch = WeightPatch.between(base, erased)
        with pytest.raises(UserError, match="those of the erased model"):
            patch.apply(erased)
        with pytest.raises(UserError, match="those of the base"):
            patch.revert(base)
        with pytest.raises(UserError, match="those of another model, or were changed since"):
            patch.apply(base | {"b": torch.zeros(2, 2)})

    def test_the_base_in_another_data_type_is_told_by_it(self) -> None:
        """Plain weights of a patch of the fp16 variant are not those of another model."""
        told = "stored as float32, it was made of float16: --variant names the files of that type"
        half = WeightPatch.between(*weights(torch.float16))
        both = replace(half, erased_sha256="")
        for change in (half.apply, half.revert, both.apply, both.revert):
            with pytest.raises(UserError, match=told):
                change(weights(torch.float32)[0])
        with pytest.raises(UserError, match="those of another model"):  # It is not the patch that is damaged.
            both.revert({"c": torch.zeros(2)})

    def test_a_hash_tells_shape_type_and_name(self) -> None:
        ones = torch.ones(4)
        hashes = {
            weights_sha256(each)
            for each in ({"a": ones}, {"b": ones}, {"a": ones.view(2, 2)}, {"a": ones.view(torch.int32)})
        }
        assert len(hashes) == 4

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            ({"a": torch.ones(3)}, "only one of them has b"),
            ({"a": torch.ones(3), "b": torch.ones(3, dtype=torch.float16)}, "--save_dtype base"),
            ({"a": torch.ones(3), "b": torch.ones(1, 3)}, "equal shapes"),
        ],
    )
    def test_models_of_two_kinds(self, other: dict[str, Tensor], message: str) -> None:
        with pytest.raises(UserError, match=message):
            WeightPatch.between({"a": torch.ones(3), "b": torch.ones(3)}, other)

    def test_files_that_are_none(self, tmp_path: Path) -> None:
        file = tmp_path / "p.safetensors"
        with pytest.raises(UserError, match="there is no file"):
            WeightPatch.load(file)
        save_file({"a": torch.ones(2)}, file)
        with pytest.raises(UserError, match="not a patch"):
            WeightPatch.load(file)
        WeightPatch.between(*weights(torch.float32)).save(file)
        whole = file.read_bytes()
        file.write_bytes(whole[:-4])
        with pytest.raises(UserError, match="truncated"):
            WeightPatch.load(file)

    def test_places_without_their_changes(self, tmp_path: Path) -> None:
        patch = WeightPatch.between(*weights(torch.float32))
        broken = WeightPatch(
            {"a": pack(torch.ones(11, dtype=torch.bool))}, patch.changes, patch.base_sha256, patch.erased_sha256
        )
        broken.save(tmp_path / "p.safetensors")
        with pytest.raises(UserError, match="do not pair up"):
            WeightPatch.load(tmp_path / "p.safetensors")

    def test_places_beyond_the_tensor(self) -> None:
        """A bit behind the last of 11 places, with a change of its own: no index beyond, but one line."""
        base, erased = weights(torch.float32)
        patch = WeightPatch.between(base, erased)
        name = next(name for name in patch.places if base[name].numel() % 8)
        places, changes = patch.places[name].clone(), patch.changes[name]
        places[-1] |= 0b1000_0000
        beyond = {**patch.places, name: places}, {**patch.changes, name: torch.cat([changes, changes[:1]])}
        with pytest.raises(UserError, match="has another size or data type"):
            WeightPatch(*beyond, patch.base_sha256, patch.erased_sha256).apply(base)


class TestProgram:
    @pytest.fixture
    def erased(self, tiny_pipeline: Path, tmp_path: Path) -> Path:
        """The tiny pipeline with one weight moved."""
        folder = tmp_path / "erased"

        def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return tensors | {"conv_in.bias": tensors["conv_in.bias"] + 1}

        patch_folder(tiny_pipeline, folder, move)
        return folder

    def test_make_apply_revert(self, tiny_pipeline, erased, tmp_path, capsys) -> None:
        file, there, back = (str(tmp_path / name) for name in ("p.safetensors", "there", "back"))
        assert main(["make", str(tiny_pipeline), str(erased), file]) == 0
        assert main(["apply", str(tiny_pipeline), file, there]) == 0
        assert main(["revert", str(erased), file, back]) == 0
        assert "weights moved" in capsys.readouterr().out
        name = "unet/diffusion_pytorch_model.safetensors"
        assert same(load_file(Path(there) / name), load_file(erased / name))
        for path in tiny_pipeline.rglob("*"):
            if path.is_file():
                assert (Path(back) / path.relative_to(tiny_pipeline)).read_bytes() == path.read_bytes()

    def test_the_patched_folder_loads(self, erased) -> None:
        from diffusers import StableDiffusionPipeline

        assert StableDiffusionPipeline.from_pretrained(erased).unet is not None

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("apply", "{base}", "{file}", "{erased}"), "must be empty or new"),
            (("apply", "{erased}", "{file}", "{new}"), "those of the erased model"),
            (("make", "{base}", "{erased}", "{file}"), "exists already"),
            (("make", "{base}", "{new}", "{new}"), "no folder"),
            (("apply", "{base}", "{new}", "{new}"), "no file"),
            (("undo", "{base}", "{file}", "{new}"), "invalid choice"),
        ],
    )
    def test_mistakes_cost_one_line(self, tiny_pipeline, erased, tmp_path, capsys, words, message) -> None:
        names = {name: tmp_path / name for name in ("file", "new")} | {"base": tiny_pipeline, "erased": erased}
        assert main(["make", str(tiny_pipeline), str(erased), str(names["file"])]) == 0
        assert main([word.format(**names) for word in words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert not names["new"].exists()


def test_linked_files_are_not_copied(tiny_pipeline: Path, tmp_path: Path) -> None:
    patch_folder(tiny_pipeline, tmp_path / "linked", dict, link=True)
    assert (tmp_path / "linked/vae/config.json").is_symlink()
    assert not (tmp_path / "linked/unet/diffusion_pytorch_model.safetensors").is_symlink()


def test_detectors_are_no_pipelines(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model_index"):
        patch_folder(embedded_detector("demo"), tmp_path / "new", dict)
