"""The mask receipt finds every bit that moved where it must not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.receipt import block_of, compare
from salun_diffusers.programs.verify import main

FREE, FROZEN = "conv_out.weight", "mid_block.resnets.0.conv1.weight"


def weights_of(folder: Path) -> Path:
    [file] = (folder / "unet").glob("*.safetensors")
    return file


def edit(folder: Path, change) -> None:
    """Apply `change` to the dictionary of the denoiser's tensors on disk."""
    tensors = load_file(weights_of(folder))
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, weights_of(folder))


@pytest.fixture
def erased(tiny_pipeline, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "erased"))


@pytest.fixture
def mask(tiny_pipeline) -> SaliencyMask:
    """Lets one tensor move, every other weight of it."""
    flags = {name: torch.zeros(t.shape, dtype=torch.bool) for name, t in load_file(weights_of(tiny_pipeline)).items()}
    flags[FREE].view(-1)[::2] = True
    return SaliencyMask.from_bools(flags)


@pytest.fixture
def program(tiny_pipeline, erased, mask, tmp_path, capsys):
    """Run `python -m salun_diffusers.masks.receipt` and return exit code, stdout and stderr."""
    mask.save(tmp_path / "mask.safetensors")

    def run(base=tiny_pipeline, mask_file=tmp_path / "mask.safetensors"):
        code = main([str(base), str(erased), "--mask", str(mask_file)])
        return code, *capsys.readouterr()

    return run


class TestHolds:
    def test_equal(self, tiny_pipeline, erased, mask, program):
        receipt = compare(tiny_pipeline, erased, mask)
        assert receipt.holds and receipt.moved == 0
        assert receipt.weights == sum(tensor.numel() for tensor in load_file(weights_of(tiny_pipeline)).values())
        assert sum(block.weights for block in receipt.blocks) == receipt.weights
        code, out, err = program()
        assert (code, err) == (0, "")
        assert "ok: 0 of" in out and "conv_out" in out

    def test_moved_within_the_mask(self, tiny_pipeline, erased, mask, program):
        edit(erased, lambda tensors: tensors[FREE].view(-1)[::2].add_(1))
        receipt = compare(tiny_pipeline, erased, mask)
        assert receipt.holds and receipt.moved == receipt.selected == mask.number_selected
        assert [block.block for block in receipt.blocks if block.moved] == ["conv_out"]
        assert program()[0] == 0


class TestViolations:
    def test_one_weight(self, tiny_pipeline, erased, mask, program):
        edit(erased, lambda tensors: tensors[FROZEN].view(-1)[5:6].add_(1e-3))
        receipt = compare(tiny_pipeline, erased, mask)
        assert (receipt.violations, receipt.first_violation) == (1, FROZEN)
        code, out, err = program()
        assert (code, err) == (1, "")
        assert f"FAILED: 1 weights outside the mask differ from the base, the first in {FROZEN}." in out

    def test_a_frozen_weight_of_a_tensor_that_is_half_free(self, tiny_pipeline, erased, mask):
        edit(erased, lambda tensors: tensors[FREE].view(-1)[1:2].add_(1))
        assert compare(tiny_pipeline, erased, mask).first_violation == FREE

    def test_the_sign_of_a_zero(self, tmp_path, tiny_pipeline, erased, mask):
        base = Path(shutil.copytree(tiny_pipeline, tmp_path / "base"))
        edit(base, lambda tensors: tensors[FROZEN].zero_())
        edit(erased, lambda tensors: tensors[FROZEN].zero_().neg_())
        receipt = compare(base, erased, mask)
        assert receipt.violations == load_file(weights_of(base))[FROZEN].numel()

    def test_equal_nans_are_equal(self, tmp_path, tiny_pipeline, erased, mask):
        base = Path(shutil.copytree(tiny_pipeline, tmp_path / "base"))
        for folder in (base, erased):
            edit(folder, lambda tensors: tensors[FROZEN].fill_(float("nan")))
        assert compare(base, erased, mask).holds

    @pytest.mark.parametrize(
        "name", ["vae/config.json", "text_encoder/model.safetensors", "model_index.json", "unet/config.json"]
    )
    def test_another_file_that_changed(self, tiny_pipeline, erased, mask, program, name):
        path = erased / name
        content = path.read_bytes()
        path.write_bytes(content + b" " if name.endswith(".json") else content[:-1] + bytes([content[-1] ^ 1]))
        assert compare(tiny_pipeline, erased, mask).changed_files == (f"{name} (changed)",)
        code, out, _ = program()
        assert code == 1 and f"Files beside the denoiser differ from the base: {name} (changed)." in out

    def test_another_file_that_is_missing(self, tiny_pipeline, erased, mask):
        (erased / "scheduler" / "scheduler_config.json").unlink()
        assert compare(tiny_pipeline, erased, mask).changed_files == ("scheduler/scheduler_config.json (missing)",)


class TestDataTypes:
    def test_half_base_and_full_erased(self, tmp_path, tiny_pipeline, erased, mask):
        base = Path(shutil.copytree(tiny_pipeline, tmp_path / "base"))
        edit(base, lambda tensors: tensors.update({name: tensor.half() for name, tensor in tensors.items()}))
        edit(erased, lambda tensors: tensors.update({name: t.half().float() for name, t in tensors.items()}))
        assert compare(base, erased, mask).holds
        edit(erased, lambda tensors: tensors[FROZEN].view(-1)[:1].add_(1e-6))
        assert compare(base, erased, mask).violations == 1

    def test_full_base_and_half_erased(self, tiny_pipeline, erased, mask):
        edit(erased, lambda tensors: tensors.update({name: tensor.half() for name, tensor in tensors.items()}))
        assert compare(tiny_pipeline, erased, mask).holds


class TestCannotBeAnswered:
    """Exit code 2 and one line."""

    def refused(self, answer, *contents: str) -> None:
        code, out, err = answer
        assert (code, out) == (2, "")
        assert err.startswith("error: ") and err.count("\n") == 1
        for content in contents:
            assert content in err

    def test_no_such_base(self, program, tmp_path):
        self.refused(program(base=tmp_path / "nowhere"), "there is no folder", "nowhere")

    def test_no_such_mask(self, program, tmp_path):
        self.refused(program(mask_file=tmp_path / "nothing"), "nothing does not exist")

    def test_mask_of_another_model(self, program, tmp_path):
        SaliencyMask.full({"elsewhere": (2,)}).save(tmp_path / "other")
        self.refused(program(mask_file=tmp_path / "other"), "elsewhere", "do not belong together")

    def test_mask_of_another_shape(self, program, tmp_path):
        SaliencyMask.full({FROZEN: (2,)}).save(tmp_path / "other")
        self.refused(program(mask_file=tmp_path / "other"), FROZEN, "(2,)", "do not belong together")

    def test_a_tensor_is_missing(self, program, erased, tmp_path):
        SaliencyMask.full({FREE: tuple(load_file(weights_of(erased))[FREE].shape)}).save(tmp_path / "part")
        edit(erased, lambda tensors: tensors.pop(FROZEN))
        self.refused(program(mask_file=tmp_path / "part"), f"lacks {FROZEN}", "not one model")

    def test_a_tensor_is_new(self, program, erased):
        edit(erased, lambda tensors: tensors.update({"trojan": torch.zeros(1)}))
        self.refused(program(), "lacks trojan", "not one model")

    def test_a_file_is_truncated(self, program, erased):
        weights_of(erased).write_bytes(weights_of(erased).read_bytes()[:-1])
        self.refused(program(), "truncated", str(weights_of(erased)))

    def test_no_denoiser(self, tiny_pipeline, tmp_path, mask):
        base = Path(shutil.copytree(tiny_pipeline, tmp_path / "base"))
        index = json.loads((base / "model_index.json").read_text())
        index.pop("unet")
        (base / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="no denoiser"):
            compare(base, tiny_pipeline, mask)

    def test_missing_arguments(self, capsys):
        assert main(["only-one"]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1


def test_blocks():
    assert block_of("down_blocks.0.resnets.1.conv1.weight") == "down_blocks.0"
    assert block_of("time_embedding.linear_1.weight") == "time_embedding"
