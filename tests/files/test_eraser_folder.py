"""BASE+FILE as a pipeline folder of its own: erased from once more, and read by every program that takes a base."""

from __future__ import annotations

import json

import pytest
import torch
from eraser_outputs import UNET, attention, eraseflow, esd, lora, moved, saved, text_of, unet_of
from safetensors.torch import load_file

from salun_diffusers import UserError
from salun_diffusers.files.component_files import check_complete
from salun_diffusers.files.pipeline_folder import public_name
from salun_diffusers.files.single_file import find_model
from salun_diffusers.masks.patch import WeightPatch
from salun_diffusers.programs.erase import main as erase
from salun_diffusers.programs.verify import main as verify


def test_a_unet_is_written_out_once(tiny_pipeline, tmp_path, capsys):
    values = esd(tiny_pipeline, tmp_path / "esd.safetensors")
    name = f"{tiny_pipeline} + {tmp_path / 'esd.safetensors'}"
    folder = find_model(name, cache_dir=str(tmp_path / "cache"))
    assert "are written out as a pipeline folder" in capsys.readouterr().err
    check_complete(folder)
    made, own = load_file(folder / UNET), unet_of(tiny_pipeline)
    assert made.keys() == own.keys()
    for key, tensor in made.items():
        assert torch.equal(tensor, values[key].float() if key in values else own[key])
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        for file in (tiny_pipeline / part).iterdir():
            assert (folder / part / file.name).read_bytes() == file.read_bytes()
    assert find_model(name, cache_dir=str(tmp_path / "cache")) == folder and capsys.readouterr().err == ""
    esd(tiny_pipeline, tmp_path / "esd.safetensors", "unet.")
    assert find_model(name, cache_dir=str(tmp_path / "cache")) != folder


@pytest.mark.parametrize("which", ["text_encoder", "text_encoder_2"])
def test_a_text_encoder_of_a_variant(sdxl, tmp_path, which):
    values = moved(text_of(sdxl, which))
    name = f"{sdxl}+{saved(values, tmp_path / 'te.safetensors')}"
    folder = find_model(name, cache_dir=str(tmp_path / "cache"), variant="fp16")
    check_complete(folder, "fp16")
    made = load_file(folder / which / "model.fp16.safetensors")
    assert len(made) == len(values)
    for key, tensor in values.items():
        own = key if key in made else key.removeprefix("text_model.")
        assert made[own].dtype == torch.float16 and torch.equal(made[own], tensor.half())
    other = {"text_encoder": "text_encoder_2", "text_encoder_2": "text_encoder"}[which]
    for part in (f"{other}/model.fp16.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"):
        before, after = load_file(sdxl / part), load_file(folder / part)
        assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_values_beyond_the_base_s_type_are_refused(sd14, tmp_path):
    values = {"conv_in.bias": torch.full((8,), 1e6)}
    name = f"{sd14}+{saved(values, tmp_path / 'file.safetensors')}"
    with pytest.raises(UserError, match="are no numbers as float16"):
        find_model(name, cache_dir=str(tmp_path / "cache"), variant="fp16")
    assert not any((tmp_path / "cache").glob("*/file-*[!k]"))


def test_other_kinds_say_how_a_folder_is_made(tiny_pipeline, tmp_path):
    path = eraseflow(lora(tiny_pipeline, attention), tmp_path / "lora")
    with pytest.raises(UserError, match=r"is a lora; here a pipeline folder is required.*fuse_lora"):
        find_model(f"{tiny_pipeline}+{path}")
    WeightPatch.between(unet_of(tiny_pipeline), moved(unet_of(tiny_pipeline))).save(tmp_path / "patch.safetensors")
    with pytest.raises(UserError, match=f"salun patch apply {tiny_pipeline} {tmp_path}/patch.safetensors FOLDER"):
        find_model(f"{tiny_pipeline}+{tmp_path / 'patch.safetensors'}")


def test_cards_do_not_say_where_either_lies(tmp_path):
    assert public_name("demo+/home/somebody/esd.safetensors") == ("demo + esd.safetensors", "local")
    assert public_name(f"{tmp_path}/a/pipeline + x/esd.safetensors")[0].endswith(" + esd.safetensors")


def test_the_plan_of_an_erasure_writes_nothing(tiny_pipeline, small_run, tmp_path, capsys):
    esd(tiny_pipeline, tmp_path / "esd.safetensors")
    name = f"{tiny_pipeline}+{tmp_path / 'esd.safetensors'}"
    assert erase(small_run(pretrained_model_name_or_path=name, cache_dir=tmp_path / "cache", dry_run=True)) == 0
    assert "to be written out as a folder" in capsys.readouterr().out and not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_an_erasure_goes_on_from_another_s(tiny_pipeline, small_run, tmp_path):
    """Only what the run itself moved differs from BASE+FILE, and `salun verify` says so."""
    values = esd(tiny_pipeline, tmp_path / "esd.safetensors")
    name = f"{tiny_pipeline}+{tmp_path / 'esd.safetensors'}"
    flags = {"pretrained_model_name_or_path": name, "cache_dir": tmp_path / "cache"}
    assert erase(small_run(**flags, output_dir=tmp_path / "run", mask_ratio=0.1)) == 0
    own = unet_of(tiny_pipeline) | {key: tensor.float() for key, tensor in values.items()}
    made = load_file(tmp_path / "run" / "pipeline" / UNET)
    same = sum(int((made[key] == tensor).sum()) for key, tensor in own.items())
    assert 0.9 <= same / sum(tensor.numel() for tensor in own.values()) < 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["pretrained_model_name_or_path"] == name
    words = [name, str(tmp_path / "run" / "pipeline"), "--cache_dir", str(tmp_path / "cache")]
    assert verify([*words, "--mask", str(tmp_path / "run" / "mask.safetensors")]) == 0


def test_files_of_another_base_are_told_before_anything_is_made(sdxl, refused, tiny_pipeline, tmp_path):
    saved(moved(unet_of(sdxl)), tmp_path / "file.safetensors")
    refused("was not made of", pretrained_model_name_or_path=f"{tiny_pipeline}+{tmp_path / 'file.safetensors'}")
    refused("there is no gone", pretrained_model_name_or_path=f"{tiny_pipeline}+gone")
