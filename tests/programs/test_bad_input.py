"""Bad input: one line that helps, the right exit code, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.programs.erase import main

pytestmark = pytest.mark.usefixtures("empty_folder")


class TestConcept:
    NO_PROMPTS = dict.fromkeys(("forget_prompt", "anchor_prompt", "retain_prompts"))

    def test_unknown_name_lists_the_presets_with_the_closest_first(self, refused):
        line = refused("Unknown concept 'cirlce'", "--forget_prompt", concept="cirlce", **self.NO_PROMPTS)
        assert "closest first: circle, " in line and "--kind" in line

    def test_ambiguous_name_lists_all_that_it_may_mean(self, refused):
        line = refused("Unknown concept 'sta'", concept="sta", **self.NO_PROMPTS)
        assert "closest first: star, " in line

    @pytest.mark.parametrize("name", ["", "  "])
    def test_empty_name(self, refused, name):
        refused("--concept is required", "--list_concepts", concept=name, **self.NO_PROMPTS)

    @pytest.mark.parametrize("anchor", ["a photo of a circle", "  A photo  of a CIRCLE "])
    def test_anchor_that_is_the_forget_prompt(self, refused, anchor):
        refused("must differ from the forget prompt", "'a photo of a circle'", anchor_prompt=anchor)

    def test_forget_prompt_of_a_preset_without_its_anchor(self, refused):
        refused("replaces the prompts of the preset 'circle'", "--anchor_prompt", concept="circle", anchor_prompt=None)

    def test_numbers_of_anchors_and_forget_prompts(self, small_run, capsys):
        words = [*small_run(forget_prompt=None), "--forget_prompt", "one", "two", "three"]
        assert main([*words, "--anchor_prompt", "four", "five"]) == 2
        assert "got 3 forget and 2 anchor prompts" in capsys.readouterr().err

    def test_missing_anchor(self, refused):
        refused("at least one anchor prompt", "--anchor_prompt", anchor_prompt=None)

    def test_missing_forget_prompt(self, refused):
        """The words themselves are asked for then, of which this model has none."""
        refused("has no word for 'disc'", "or give --forget_prompt", forget_prompt=None)

    @pytest.mark.parametrize("dry_run", [True, None])
    @pytest.mark.parametrize("name", ["DPMSolver", "EulerScheduler", "Scheduler", "os"])
    def test_schedulers_that_diffusers_does_not_have(self, refused, name, dry_run):
        refused("--scheduler must be the name of a diffusers class", f"got {name!r}", scheduler=name, dry_run=dry_run)

    def test_a_scheduler_that_does_not_fit(self, refused):
        refused("FlowMatchEulerDiscreteScheduler does not go with", "DPMSolverMultistepScheduler",
                scheduler="FlowMatchEulerDiscreteScheduler")  # fmt: skip

    def test_blank_forget_prompt(self, refused):
        refused("A forget prompt is empty", forget_prompt=" ")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, "cannot be read"),
            (b"", "is empty"),
            (b"\n \n", "is empty"),
            (b"\x89PNG\xff", "cannot be read"),
            (b"a\0b", "is binary"),
        ],
    )
    def test_retain_file(self, refused, tmp_path, content, words):
        path = tmp_path / "prompts.txt"
        if content is not None:
            path.write_bytes(content)
        refused("--retain_prompts must", str(path), words, retain_prompts=path)

    def test_retain_folder(self, refused, tmp_path):
        refused("--retain_prompts must be a text file", retain_prompts=tmp_path)


class TestModel:
    def test_no_such_folder(self, refused, tmp_path):
        missing = tmp_path / "nowhere"
        refused("there is no folder", str(missing), "`demo`", pretrained_model_name_or_path=missing)

    @pytest.mark.parametrize("dry_run", [True, None])
    def test_hub_id_without_a_network(self, refused, dry_run):
        name = "CompVis/stable-diffusion-v1-4"
        refused(name, "could it be had from the hub", "a local folder", "`demo`",
                pretrained_model_name_or_path=name, dry_run=dry_run)  # fmt: skip

    def test_no_model_index(self, refused, copied):
        (copied / "model_index.json").unlink()
        refused("not a diffusers pipeline", "no model_index.json", pretrained_model_name_or_path=copied)

    def test_the_folder_of_a_run(self, refused, copied):
        copied.rename(copied.parent / "pipeline")
        told = f"{copied.parent / 'pipeline'} is one"
        refused("no model_index.json", told, pretrained_model_name_or_path=copied.parent)

    @pytest.mark.parametrize("content", ["{", "[]"])
    def test_spoilt_model_index(self, refused, copied, content):
        (copied / "model_index.json").write_text(content)
        refused("model_index.json", "JSON", pretrained_model_name_or_path=copied)

    def test_no_denoiser(self, refused, copied):
        index = json.loads((copied / "model_index.json").read_text())
        index.pop("unet")
        (copied / "model_index.json").write_text(json.dumps(index))
        refused("has no denoiser", pretrained_model_name_or_path=copied)

    def test_missing_component(self, refused, copied):
        shutil.rmtree(copied / "text_encoder")
        refused("is incomplete", "'text_encoder'", pretrained_model_name_or_path=copied)

    def test_missing_configuration(self, refused, copied):
        (copied / "unet" / "config.json").unlink()
        refused("is incomplete", "config.json", pretrained_model_name_or_path=copied)

    @pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
    def test_missing_weights(self, refused, copied, component):
        next((copied / component).glob("*.safetensors")).unlink()
        refused(str(copied / component), "must hold safetensors weights", pretrained_model_name_or_path=copied)

    def test_missing_variant(self, refused, copied):
        refused("safetensors weights of variant fp16", pretrained_model_name_or_path=copied, variant="fp16")

    def test_missing_shard(self, refused, copied):
        listing = copied / "unet" / "diffusion_pytorch_model.safetensors.index.json"
        listing.write_text(json.dumps({"weight_map": {"a": "diffusion_pytorch_model-00002-of-00002.safetensors"}}))
        refused("is incomplete", "00002-of-00002", pretrained_model_name_or_path=copied)

    @pytest.mark.parametrize("component", ["unet", "text_encoder"])
    def test_truncated_weights(self, refused, copied, component):
        file = next((copied / component).glob("*.safetensors"))
        length = file.stat().st_size
        with file.open("r+b") as stream:
            stream.truncate(length - 10)
        refused(str(file), f"{length} bytes are required, found {length - 10}", pretrained_model_name_or_path=copied)

    def test_header_cut_off(self, refused, copied):
        file = next((copied / "unet").glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:20])
        refused(str(file), "is truncated or damaged", "20 bytes", pretrained_model_name_or_path=copied)

    def test_git_lfs_pointer(self, refused, copied):
        file = next((copied / "unet").glob("*.safetensors"))
        file.write_text("version https://git-lfs.github.com/spec/v1\n")
        refused(str(file), "git lfs pull", pretrained_model_name_or_path=copied)

    def test_pickled_weights_only(self, refused, copied):
        file = next((copied / "unet").glob("*.safetensors"))
        file.rename(file.with_suffix(".bin"))
        refused("pickled weights only", "diffusion_pytorch_model.bin", pretrained_model_name_or_path=copied)

    def test_patch_between_two_data_types(self, refused):
        refused("--save_patch", "--save_dtype at base", "float16", save_patch=True, save_dtype="float16")

    @pytest.mark.parametrize("dry_run", [True, None])
    def test_pipeline_of_another_class(self, refused, copied, dry_run):
        index = json.loads((copied / "model_index.json").read_text())
        index["_class_name"] = "FluxPipeline"
        (copied / "model_index.json").write_text(json.dumps(index))
        refused("StableDiffusionPipeline", "FluxPipeline", pretrained_model_name_or_path=copied, dry_run=dry_run)

    def test_damage_that_only_loading_finds(self, stopped, copied, tmp_path):
        (copied / "vae" / "config.json").write_text("{")
        stopped(str(copied), "cannot be loaded", pretrained_model_name_or_path=copied)
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words", [["--output_dir", "~nobodyhere/out"], ["--pretrained_model_name_or_path", "~nobodyhere/m"]]
)
def test_homes_that_are_not_there(words, capsys):
    assert main(["--concept", "circle", "--pretrained_model_name_or_path", "demo", *words]) == 2
    assert "a user who has no home here" in capsys.readouterr().err


class TestValues:
    @pytest.mark.parametrize(
        ("flag", "value", "words"),
        [
            ("mask_ratio", 0, "above 0 and at most 1, got 0"),
            ("mask_ratio", -0.5, "above 0 and at most 1, got -0.5"),
            ("mask_ratio", 50, "got 50.0. It is a fraction: 0.5 is 50 %."),
            ("mask_ratio", "nan", "got nan"),
            ("mask_ratio", "half", "invalid number value: 'half'"),
            ("num_forget_images", 0, "at least 1 and at most 10000000, got 0"),
            ("num_forget_images", 10**15, "at most 10000000"),
            ("output_dir", " ", "it is blank"),
            ("num_retain_images", -3, "at least 1 and at most 10000000, got -3"),
            ("num_inference_steps", 2.5, "invalid whole number value: '2.5'"),
            ("train_batch_size", "eight", "invalid whole number value: 'eight'"),
            ("max_train_steps", 0, "at least 1, got 0"),
            ("num_validation_images", 0, "at least 1 and at most 1000000, got 0"),
            ("checkpointing_steps", 0, "at least 1, got 0"),
            ("gradient_accumulation_steps", 0, "at least 1, got 0"),
            ("learning_rate", 0, "above 0, got 0"),
            ("learning_rate", -0.01, "above 0, got -0.01"),
            ("learning_rate", "inf", "above 0, got inf"),
            ("retain_weight", -1, "at least 0, got -1"),
            ("retain_weight", "nan", "at least 0, got nan"),
            ("seed", -1, "at least 0"),
            ("seed", "one", "invalid whole number value: 'one'"),
            ("recipe", "papr", "invalid choice: 'papr'"),
            ("detector", "eyes", "--detector must be preset, none, nudenet"),
            ("mixed_precision", "fp8", "invalid choice: 'fp8'"),
            ("ratio", 0.5, "unrecognized arguments: --ratio"),
        ],
    )
    def test_out_of_range_or_no_number(self, refused, flag, value, words):
        refused(f"--{flag}", words, **{flag: value})

    def test_tracker_that_does_not_exist(self, refused):
        refused("crayons", report_to="crayons")

    def test_tracker_that_is_not_installed(self, refused, monkeypatch):
        monkeypatch.setattr("accelerate.tracking.is_tensorboard_available", lambda: False)
        monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
        monkeypatch.setattr("accelerate.utils.is_tensorboard_available", lambda: False)
        refused("--report_to tensorboard", "pip install tensorboard", report_to="tensorboard")

    def test_nudenet_that_is_not_installed(self, refused, monkeypatch):
        monkeypatch.setitem(sys.modules, "nudenet", None)
        refused("needs NudeNet", "pip install", "--detector none", concept="nudity")


class TestOutput:
    def test_path_below_a_file(self, refused, tmp_path):
        (tmp_path / "file").touch()
        refused("must be a folder that can be written", f"{tmp_path / 'file'} is a file",
                output_dir=tmp_path / "file" / "run")  # fmt: skip

    def test_file(self, refused, tmp_path):
        (tmp_path / "file").touch()
        refused("must be a folder that can be written", output_dir=tmp_path / "file")

    def test_runs_is_a_file(self, refused, tmp_path):
        (tmp_path / "runs").touch()
        refused("must be a folder that can be written", "runs")

    @pytest.mark.parametrize("dry_run", [True, None])
    def test_folder_that_is_not_empty(self, refused, tmp_path, dry_run):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "holiday.jpg").touch()
        refused("must be empty or new", str(tmp_path / "full"), output_dir=tmp_path / "full", dry_run=dry_run)

    def test_folder_that_is_no_run(self, refused, tmp_path):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "holiday.jpg").touch()
        refused("no run of this program", output_dir=tmp_path / "full", resume_from_checkpoint="latest")

    def test_run_with_other_settings(self, refused, tmp_path):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "run.json").write_text('{"identity": "another"}')
        refused(
            "another base model, seed or set of prompts", output_dir=tmp_path / "other", resume_from_checkpoint="latest"
        )
        refused("must be empty or new", output_dir=tmp_path / "other")

    def test_spoilt_record(self, refused, tmp_path):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "run.json").write_text("{")
        refused("run.json", "damaged", output_dir=tmp_path / "other", resume_from_checkpoint="latest")

    @pytest.mark.parametrize("output_dir", ["run", None])
    def test_checkpoint_that_does_not_exist(self, refused, tmp_path, output_dir):
        (tmp_path / "run" / "checkpoint-10").mkdir(parents=True)
        (tmp_path / "run" / "run.json").write_text('{"identity": "x"}')
        refused("does not exist", "checkpoints there: checkpoint-10",
                output_dir=output_dir, resume_from_checkpoint="run/checkpoint-20")  # fmt: skip

    def test_checkpoint_that_is_damaged(self, refused, tmp_path):
        (tmp_path / "run" / "checkpoint-10").mkdir(parents=True)
        (tmp_path / "run" / "run.json").write_text('{"identity": "x"}')
        refused("is no checkpoint", resume_from_checkpoint="run/checkpoint-10")
        (tmp_path / "run" / "checkpoint-10" / "state.safetensors").write_bytes(b"abc")
        refused("state.safetensors", "damaged", resume_from_checkpoint="run/checkpoint-10")

    def test_too_little_space(self, refused, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
        refused("needs about", "GB are free")


class TestMaskFile:
    def test_neither_word_nor_file(self, refused):
        refused("--mask must be one of saliency, saliency_ratio, random, full", "no file salency", mask="salency")

    def test_damaged(self, refused, tmp_path):
        (tmp_path / "mask.safetensors").write_bytes(b"no mask")
        refused("mask.safetensors", "no safetensors file", mask=tmp_path / "mask.safetensors")

    def test_of_another_model(self, stopped, tmp_path):
        SaliencyMask.full({"somewhere.weight": (3, 3)}).save(tmp_path / "mask.safetensors")
        stopped("mask.safetensors", "no tensor in common", mask=tmp_path / "mask.safetensors")
        assert not (tmp_path / "runs").exists()
