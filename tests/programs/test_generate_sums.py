"""`salun generate` with BASE+FILE: the pictures, the record, and one line for everything that cannot be."""

from __future__ import annotations

import json

import pytest
import torch
from eraser_outputs import attention, eraseflow, esd, lora, moved, saved, unet_of
from safetensors.torch import save_file

from salun_diffusers.files.run_folder import identity_of
from salun_diffusers.masks.patch import WeightPatch, patch_folder
from salun_diffusers.programs.generate import main


@pytest.fixture
def draw(tmp_path, capsys):
    """Draw one prompt with a model; the exit code, the pictures' bytes and what stands on stderr."""
    (tmp_path / "p.txt").write_text("a photo of a circle\n")

    def run(model: object, name: str, *words: str) -> tuple[int, dict[str, bytes], str]:
        folder = tmp_path / name
        code = main([
            "--pretrained_model_name_or_path", str(model), "--prompts", str(tmp_path / "p.txt"), "--output_dir",
            str(folder), "--num_inference_steps", "2", "--num_images", "2", *words,
        ])  # fmt: skip
        return code, {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}, capsys.readouterr().err

    return run


def test_pictures_are_those_of_the_same_weights_in_a_folder(draw, tiny_pipeline, tmp_path):
    values = esd(tiny_pipeline, tmp_path / "esd.safetensors")
    folder = tmp_path / "folder"
    patch_folder(
        tiny_pipeline, folder, lambda own: {**own, **{name: tensor.float() for name, tensor in values.items()}}
    )
    code, pictures, told = draw(f"{tiny_pipeline} + {tmp_path / 'esd.safetensors'}", "sum")
    assert code == 0, told
    beside = eraseflow(lora(tiny_pipeline, attention), tmp_path / "lora")
    assert pictures == draw(folder, "wanted")[1] != draw(f"{tiny_pipeline}+{beside}", "lora pictures")[1]
    made = json.loads((tmp_path / "sum" / "manifest.json").read_text())["made_with"]
    assert made["model"] == f"{tiny_pipeline} + {tmp_path / 'esd.safetensors'}"
    assert made["model_sha256"] not in (identity_of(tiny_pipeline), identity_of(folder))


def test_a_folder_is_not_gone_on_with_by_another_file(draw, tiny_pipeline, tmp_path):
    for name in ("one", "two"):
        values = moved(unet_of(tiny_pipeline), lambda key, name=name: ("attn2" if name == "one" else "attn1") in key)
        saved(values, tmp_path / "file.safetensors")
        code, _, told = draw(f"{tiny_pipeline}+{tmp_path / 'file.safetensors'}", "out")
        assert code == (0 if name == "one" else 2), told
    assert told.count("\n") == 1 and "model_sha256" in told


class TestRefused:
    @pytest.fixture
    def refused(self, draw, tiny_pipeline, tmp_path):
        def attempt(path: object, words: str, *flags: str) -> None:
            code, _, told = draw(f"{tiny_pipeline}+{path}", "out", *flags)
            assert code == 2 and told.startswith("error: ") and told.count("\n") == 1 and words in told, told
            assert not (tmp_path / "out").exists()

        return attempt

    def test_files_that_are_not_there(self, refused, tmp_path):
        refused(tmp_path / "gone.safetensors", "there is no")

    def test_truncated_files(self, refused, tiny_pipeline, tmp_path):
        esd(tiny_pipeline, tmp_path / "esd.safetensors")
        (tmp_path / "esd.safetensors").write_bytes((tmp_path / "esd.safetensors").read_bytes()[:-1])
        refused(tmp_path / "esd.safetensors", "is truncated or damaged")

    def test_pickles(self, refused, tmp_path):
        torch.save({"conv_in.weight": torch.ones(1)}, tmp_path / "esd.pt")
        refused(tmp_path / "esd.pt", 'convert it: python -c "import sys')
        (tmp_path / "esd.pt").rename(tmp_path / "esd.safetensors")
        refused(tmp_path / "esd.safetensors", "is a pickle")

    def test_foreign_names_and_shapes(self, refused, sdxl, tmp_path):
        save_file({"w": torch.ones(1)}, tmp_path / "one.safetensors")
        refused(tmp_path / "one.safetensors", "has 1 of 1 tensors with names of neither")
        saved(moved(unet_of(sdxl)), tmp_path / "two.safetensors")
        refused(tmp_path / "two.safetensors", "was not made of")

    def test_a_patch_of_another_base(self, refused, tiny_pipeline, tmp_path):
        other = moved(unet_of(tiny_pipeline))
        WeightPatch.between(other, moved(other)).save(tmp_path / "patch.safetensors")
        refused(tmp_path / "patch.safetensors", "The patch needs the base weights")

    def test_a_patch_beside_a_file(self, refused, tiny_pipeline, tmp_path):
        esd(tiny_pipeline, tmp_path / "esd.safetensors")
        (tmp_path / "patch.safetensors").write_bytes(b"")
        refused(tmp_path / "esd.safetensors", "--patch needs a base without a plus", "--patch",
                str(tmp_path / "patch.safetensors"))  # fmt: skip
