"""Checkpoints of one file become pipeline folders, once, with every weight in its place."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from single_files import write_single_file
from tiny_models import build_sdxl

from salun_diffusers.errors import UserError
from salun_diffusers.files import single_file
from salun_diffusers.files.loading import dtype_argument
from salun_diffusers.files.single_file import find_model
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.programs import generate, verify
from salun_diffusers.programs.erase import main

FP32 = {dtype_argument(): torch.float32}
KINDS = {"1.x": StableDiffusionPipeline, "xl": StableDiffusionXLPipeline}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def configurations(tiny_pipeline, tmp_path_factory) -> dict[str, Path]:
    """Pipeline folders of both kinds."""
    return {"1.x": tiny_pipeline, "xl": build_sdxl(tmp_path_factory.mktemp("models") / "xl")}


@pytest.fixture(scope="module")
def files(configurations, tmp_path_factory) -> dict[str, Path]:
    """The same as single files."""
    place = tmp_path_factory.mktemp("files")
    return {
        kind: write_single_file(
            KINDS[kind].from_pretrained(folder, local_files_only=True), place / f"{kind}.safetensors"
        )
        for kind, folder in configurations.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_in_its_place(files, configurations, kind):
    """And the folder draws what the pipeline drew."""
    folder = find_model(str(files[kind]), single_file_config=str(configurations[kind]))
    found, wanted = (
        KINDS[kind].from_pretrained(one, local_files_only=True, **FP32) for one in (folder, configurations[kind])
    )
    for name, part in wanted.components.items():
        if isinstance(part, torch.nn.Module):
            state = getattr(found, name).state_dict()
            for key, tensor in part.state_dict().items():
                assert torch.equal(state[key], tensor), f"{name}.{key}"
    drawn = []
    for pipe in (found, wanted):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(1)
        drawn.append(pipe("a star", num_inference_steps=2, generator=generator, output_type="latent").images)
    assert torch.equal(*drawn)


def test_what_is_no_weight_is_the_configurations(files, configurations):
    folder = find_model(str(files["xl"]), single_file_config=str(configurations["xl"]))
    names = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"}
    assert Path("tokenizer_2/tokenizer_config.json") in names and Path("unet/config.json") in names
    for name in names - {Path("model_index.json")}:
        assert (folder / name).read_bytes() == (configurations["xl"] / name).read_bytes()


def test_a_text_encoder_is_named_as_on_the_hub(files, configurations):
    """transformers 4 reads no other names."""
    folder = find_model(str(files["1.x"]), single_file_config=str(configurations["1.x"]))
    assert all(name.startswith("text_model.") for name in load_file(folder / "text_encoder" / "model.safetensors"))


def test_is_written_once(files, configurations, monkeypatch, cache):
    folder = find_model(str(files["1.x"]), single_file_config=str(configurations["1.x"]))
    assert folder.is_relative_to(cache / "salun_diffusers" / "single_files")
    monkeypatch.setattr(single_file, "_write_out", lambda *_: pytest.fail("written out again"))
    assert find_model(str(files["1.x"]), single_file_config=str(configurations["1.x"])) == folder
    # Later programs need no configuration.
    assert find_model(str(files["1.x"])) == folder


def test_another_file_of_that_name_is_another_model(files, configurations, tmp_path):
    file = tmp_path / "mine.safetensors"
    shutil.copyfile(files["1.x"], file)
    first = find_model(str(file), single_file_config=str(configurations["1.x"]))
    tensors = load_file(file)
    tensors["model.diffusion_model.out.2.bias"] += 1
    save_file(tensors, file)
    second = find_model(str(file), single_file_config=str(configurations["1.x"]))
    assert first != second
    stored = [load_file(one / "unet" / "diffusion_pytorch_model.safetensors") for one in (first, second)]
    assert torch.equal(stored[0]["conv_out.bias"] + 1, stored[1]["conv_out.bias"])


def test_data_type_of_the_file(configurations, tmp_path):
    pipe = StableDiffusionPipeline.from_pretrained(configurations["1.x"], local_files_only=True)
    file = write_single_file(pipe, tmp_path / "half.safetensors")
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    folder = find_model(str(file), single_file_config=str(configurations["1.x"]))
    for weights in folder.rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float16}


def test_a_v_model_of_xl_says_so(configurations, tmp_path):
    """By empty tensors, as its makers do."""
    pipe = StableDiffusionXLPipeline.from_pretrained(configurations["xl"], local_files_only=True)
    file = write_single_file(pipe, tmp_path / "v.safetensors", ("v_pred", "ztsnr"))
    folder = find_model(str(file), single_file_config=str(configurations["xl"]))
    found = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    wanted = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert found == json.loads((configurations["xl"] / "scheduler" / "scheduler_config.json").read_text()) | wanted


def test_a_safety_checker_of_the_configuration_is_left_out(sd14, files):
    """The file has none; the pipeline says so and loads."""
    folder = find_model(str(files["1.x"]), single_file_config=str(sd14))
    index = json.loads((folder / "model_index.json").read_text())
    assert index["safety_checker"] == [None, None] and index["requires_safety_checker"] is False
    StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)


def test_processes_that_come_together_write_once(files, configurations, monkeypatch):
    write, written = single_file._write_out, []
    monkeypatch.setattr(single_file, "_write_out", lambda *words: (written.append(1), write(*words)))
    with ThreadPoolExecutor(2) as pool:
        config = str(configurations["1.x"])
        calls = [pool.submit(find_model, str(files["1.x"]), single_file_config=config) for _ in range(2)]
        found = {call.result() for call in calls}
    assert len(found) == len(written) == 1


class TestErasing:
    @pytest.mark.parametrize("kind", KINDS)
    def test_from_the_file_to_a_folder_that_is_loaded_and_verified(
        self, kind, files, configurations, small_run, tmp_path
    ):
        words = {"pretrained_model_name_or_path": files[kind], "single_file_config": configurations[kind]}
        run = tmp_path / "run"
        assert main(small_run(output_dir=run, max_train_steps=2, **words)) == 0
        KINDS[kind].from_pretrained(run / "pipeline", local_files_only=True, **FP32)
        assert SaliencyMask.load(run / "mask.safetensors").recipe["base"] == files[kind].name
        assert verify.main([str(files[kind]), str(run / "pipeline"), "--mask", str(run / "mask.safetensors")]) == 0

    def test_the_plan_writes_nothing(self, files, configurations, small_run, capsys, tmp_path, empty_folder):
        words = {"pretrained_model_name_or_path": files["1.x"], "single_file_config": configurations["1.x"]}
        assert main(small_run(dry_run=True, **words)) == 0
        assert "to be written out as a folder" in capsys.readouterr().out
        assert not [*tmp_path.iterdir()]

    def test_other_programs_take_it_at_once(self, files, configurations, tmp_path):
        (tmp_path / "prompts.txt").write_text("a star\n")
        words = ["--prompts", str(tmp_path / "prompts.txt"), "--output_dir", str(tmp_path / "drawn")]
        words += ["--pretrained_model_name_or_path", str(files["1.x"]), "--num_inference_steps", "2"]
        assert generate.main([*words, "--single_file_config", str(configurations["1.x"])]) == 0
        assert [*(tmp_path / "drawn").glob("*.png")]


class TestRefused:
    @pytest.fixture
    def told(self, refused, configurations):
        return lambda file, *words: refused(
            *words, pretrained_model_name_or_path=file, single_file_config=configurations["1.x"]
        )

    def test_a_pickle_with_the_command_that_converts_it(self, told, files, tmp_path):
        """The command is run here, word by word."""
        old = tmp_path / "mo del.ckpt"
        torch.save({"state_dict": load_file(files["1.x"]), "epoch": 1}, old)
        line = told(old, "is a pickle, which can run code")
        command = shlex.split(line.partition("convert it: ")[2])
        subprocess.run([sys.executable, *command[1:]], check=True)
        wanted, made = load_file(files["1.x"]), load_file(tmp_path / "mo del.safetensors")
        assert made.keys() == wanted.keys()
        assert all(torch.equal(made[name], tensor) for name, tensor in wanted.items())

    @pytest.mark.parametrize(
        ("tensors", "words"),
        [
            ({"lora_unet_down_blocks_0.lora_down.weight": 1}, "is a LoRA"),
            ({"down_blocks.0.resnets.0.conv1.weight": 1}, "one component of a pipeline folder"),
            ({"w": 1}, "its tensors are such as w"),
            ({"model.diffusion_model.out.0.weight": 1}, "has no VAE"),
            ({"model.diffusion_model.out.0.weight": 1, "first_stage_model.w": 1}, "has no text encoder"),
        ],
    )
    def test_other_contents(self, told, tmp_path, tensors, words):
        save_file({name: torch.ones(size) for name, size in tensors.items()}, tmp_path / "other.safetensors")
        told(tmp_path / "other.safetensors", words)

    def test_other_files(self, told, tmp_path):
        (tmp_path / "model.gguf").write_bytes(b"x")
        told(tmp_path / "model.gguf", "a .safetensors file is required")
        (tmp_path / "cut.safetensors").write_bytes(b"x")
        told(tmp_path / "cut.safetensors", "damaged or no safetensors file")

    def test_another_kind_than_the_configuration(self, files, configurations, cache):
        with pytest.raises(UserError, match=r"cannot be read as StableDiffusionPipeline.*of one kind are required"):
            find_model(str(files["xl"]), single_file_config=str(configurations["1.x"]))
        assert not [path for path in cache.rglob("*") if path.suffix not in ("", ".lock")]

    def test_an_inpainting_configuration_before_anything_is_written(self, copied, files, refused):
        index = json.loads((copied / "model_index.json").read_text()) | {
            "_class_name": "StableDiffusionInpaintPipeline"
        }
        (copied / "model_index.json").write_text(json.dumps(index))
        refused("an inpainting model", pretrained_model_name_or_path=files["1.x"], single_file_config=copied)

    def test_no_configuration_and_no_hub(self, refused, files):
        refused(
            "stable-diffusion-v1-5/stable-diffusion-v1-5", "could not be had from the hub", "--single_file_config",
            pretrained_model_name_or_path=files["1.x"],
        )  # fmt: skip

    def test_a_configuration_for_a_folder(self, refused, tiny_pipeline):
        refused("goes with a single file", single_file_config=tiny_pipeline)


def test_weights_that_the_file_lacks_are_missed(files, configurations, tmp_path):
    tensors = load_file(files["1.x"])
    del tensors["model.diffusion_model.out.2.bias"]
    save_file(tensors, tmp_path / "less.safetensors")
    with pytest.raises(UserError, match="tensors are missing"):
        find_model(str(tmp_path / "less.safetensors"), single_file_config=str(configurations["1.x"]))
