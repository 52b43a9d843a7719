"""Bad input: one line that helps, the right exit code, and nothing left behind."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from salun_diffusers.erase import main
from salun_diffusers.mask import SaliencyMask


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Default run folders would lie here."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(small_run, capsys, tmp_path):
    """Run, expect exit code 2 and one line on stderr that holds all of some words, and no run folder."""

    def attempt(*contents: str, left: tuple[str, ...] = (), **flags: object) -> str:
        before = {path.name for path in tmp_path.iterdir()}
        assert main(small_run(**flags)) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and captured.err.endswith("\n"), captured.err
        assert captured.err.count("\n") == 1, captured.err
        assert captured.out == ""
        for content in contents:
            assert content in captured.err
        assert {path.name for path in tmp_path.iterdir()} == before | set(left)
        return captured.err

    return attempt


@pytest.fixture
def stopped(small_run, capsys):
    """Run until something stops it late: exit code 2 and a last line on stderr that holds all of some words."""

    def attempt(*contents: str, code: int = 2, kind: str = "error", **flags: object) -> str:
        assert main(small_run(**flags)) == code
        lines = capsys.readouterr().err.splitlines()
        assert sum(line.startswith(f"{kind}: ") for line in lines) == 1
        assert lines[-1].startswith(f"{kind}: ")
        for content in contents:
            assert content in lines[-1]
        return lines[-1]

    return attempt


@pytest.fixture
def copied(tiny_pipeline, tmp_path):
    """A copy of the tiny pipeline, to be spoilt."""
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "copied"))


class TestConcept:
    NO_PROMPTS = dict.fromkeys(("forget_prompt", "anchor_prompt", "retain_prompts"))

    def test_unknown_name_lists_the_presets_with_the_closest_first(self, refused):
        line = refused("Unknown concept 'cirlce'", "--forget_prompt", concept="cirlce", **self.NO_PROMPTS)
        assert "closest first: circle, " in line
        assert "nudity" in line

    def test_ambiguous_name_lists_all_that_it_may_mean(self, refused):
        line = refused("Unknown concept 'st'", concept="st", **self.NO_PROMPTS)
        assert "closest first: star, " in line

    @pytest.mark.parametrize("name", ["", "  "])
    def test_empty_name(self, refused, name):
        refused("--concept is required", "circle", concept=name, **self.NO_PROMPTS)

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
        refused("at least one forget prompt", "--forget_prompt", forget_prompt=None)

    def test_missing_retain_prompts(self, refused):
        refused("at least one retain prompt", "--retain_prompts FILE", retain_prompts=None)

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
        refused(str(file), "is damaged", "20 bytes", pretrained_model_name_or_path=copied)

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


class TestValues:
    @pytest.mark.parametrize(
        ("flag", "value", "words"),
        [
            ("mask_ratio", 0, "above 0 and at most 1, got 0"),
            ("mask_ratio", -0.5, "above 0 and at most 1, got -0.5"),
            ("mask_ratio", 50, "got 50.0. It is a fraction: 0.5 is 50 %."),
            ("mask_ratio", "nan", "got nan"),
            ("mask_ratio", "half", "invalid number value: 'half'"),
            ("num_forget_images", 0, "at least 1, got 0"),
            ("num_retain_images", -3, "at least 1, got -3"),
            ("num_inference_steps", 2.5, "invalid whole number value: '2.5'"),
            ("train_batch_size", "eight", "invalid whole number value: 'eight'"),
            ("max_train_steps", 0, "at least 1, got 0"),
            ("num_validation_images", 0, "at least 1, got 0"),
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
            ("detector", "eyes", "invalid choice: 'eyes'"),
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
        refused("other settings", "same command", output_dir=tmp_path / "other", resume_from_checkpoint="latest")
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
        refused("--mask must be one of saliency, random, full", "no file salency", mask="salency")

    def test_damaged(self, refused, tmp_path):
        (tmp_path / "mask.safetensors").write_bytes(b"no mask")
        refused("mask.safetensors", "not a safetensors file", mask=tmp_path / "mask.safetensors")

    def test_of_another_model(self, stopped, tmp_path):
        SaliencyMask.full({"somewhere.weight": (3, 3)}).save(tmp_path / "mask.safetensors")
        stopped("mask.safetensors", "conv_in.weight", mask=tmp_path / "mask.safetensors")
        assert not (tmp_path / "runs").exists()


class TestFullDisk:
    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, "No space left on device"),
            SafetensorError('Error while serializing: IoError(Os { code: 28, message: "No space left on device" })'),
        ],
    )
    def test_while_saving_the_pipeline(self, stopped, monkeypatch, tmp_path, error):
        from diffusers import UNet2DConditionModel

        def half(self, folder, **_):
            Path(folder).mkdir()
            (Path(folder) / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
            raise error

        monkeypatch.setattr(UNet2DConditionModel, "save_pretrained", half)
        stopped("The disk is full", "the erased pipeline", output_dir=tmp_path / "run")
        left = {path.name for path in (tmp_path / "run").iterdir()}
        assert left == {"config.json", "run.json", "metrics.jsonl", "mask.safetensors", "work"}

    def test_while_saving_a_checkpoint(self, stopped, monkeypatch, tmp_path):
        def half(tensors, path, **_):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("salun_diffusers.checkpoint.save_file", half)
        stopped("The disk is full", "checkpoint-2", output_dir=tmp_path / "run", checkpointing_steps=2)
        assert not [*(tmp_path / "run").glob("*checkpoint*")]

    def test_at_any_other_file(self, stopped, monkeypatch, tmp_path):
        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("salun_diffusers.diffusion.stages.generate_latents", full)
        stopped("The disk is full", "--resume_from_checkpoint latest", output_dir=tmp_path / "run")

    def test_other_errors_are_not_taken_for_it(self, small_run, monkeypatch, tmp_path):
        def broken(*_, **__):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr("salun_diffusers.diffusion.stages.generate_latents", broken)
        with pytest.raises(OSError, match="Input/output error"):
            main(small_run())


class TestInterrupted:
    def test_tells_what_is_kept_and_how_to_go_on(self, small_run, stopped, monkeypatch, tmp_path, capsys):
        from salun_diffusers.diffusion import trainer

        steps = iter([trainer._step, trainer._step, trainer._step])

        def step(*arguments, **keywords):
            try:
                return next(steps)(*arguments, **keywords)
            except StopIteration:
                raise KeyboardInterrupt from None

        with monkeypatch.context() as patch:
            patch.setattr(trainer, "_step", step)
            line = stopped("forget, retain, mask, checkpoint-2;", code=130, kind="interrupted", checkpointing_steps=2)
        folder = Path("runs") / "0000-disc-frozen-teacher-saliency-0-5"
        assert folder.is_dir()
        advice = f"--output_dir {folder} --resume_from_checkpoint latest"
        assert advice in line
        assert main([*small_run(checkpointing_steps=2), *advice.split()]) == 0
        assert (folder / "report.json").exists()
        assert [path.name for path in Path("runs").iterdir()] == [folder.name]
        assert "latents, forget" not in capsys.readouterr().err

    def test_before_a_run_began(self, small_run, monkeypatch, capsys, tmp_path):
        def stop(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("salun_diffusers.erase.accept", stop)
        assert main(small_run()) == 130
        assert capsys.readouterr().err == "interrupted: no run had begun, nothing was written.\n"
        assert [*tmp_path.iterdir()] == []

    def test_before_a_stage_ended(self, stopped, monkeypatch, tmp_path):
        def stop(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("salun_diffusers.diffusion.stages.generate_latents", stop)
        stopped(f"{tmp_path / 'run'} keeps the settings", code=130, kind="interrupted", output_dir=tmp_path / "run")


class TestDivergence:
    def test_loss_becomes_nan(self, stopped, monkeypatch, tmp_path):
        from salun_diffusers.diffusion.objectives import PromptSwap

        calls, right = iter(range(100)), PromptSwap.__call__

        def wrong(self, prediction, target):
            return right(self, prediction * (float("nan") if next(calls) == 2 else 1), target)

        monkeypatch.setattr(PromptSwap, "__call__", wrong)
        run = tmp_path / "run"
        stopped("became nan at step 3", f"last good state is {run / 'checkpoint-2'}", "--learning_rate",
                output_dir=run, checkpointing_steps=1)  # fmt: skip
        assert {path.name for path in run.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
        assert all(tensor.isfinite().all() for tensor in load_file(run / "checkpoint-2" / "state.safetensors").values())
        assert not (run / "pipeline").exists()

    def test_base_holds_a_nan(self, stopped, copied):
        file = next((copied / "unet").glob("*.safetensors"))
        tensors = load_file(file)
        tensors["conv_in.bias"][0] = float("nan")
        save_file(tensors, file)
        stopped("base model draws NaN", pretrained_model_name_or_path=copied)


class TestLongPrompt:
    def test_names_the_words_that_are_cut_and_goes_on(self, small_run, capsys, tmp_path):
        prompt = "a photo of a circle " + "a red heart on a blue background " * 3 + "star"
        assert main(small_run(forget_prompt=prompt, output_dir=tmp_path / "run")) == 0
        [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
        assert prompt in line
        _, cut = line.split("will not see: ")
        assert cut.strip("'").endswith("background star")
        assert len(prompt.split()) == 14 + len(cut.split())  # 16 tokens hold 14 words between start and end.


class TestReceipt:
    def test_a_weight_that_moved_outside_the_mask_fails_the_run(self, stopped, monkeypatch, tmp_path):
        from salun_diffusers.diffusion import trainer

        def careless(accelerator, family, *arguments, **settings):
            with torch.no_grad():
                for parameter in family.denoiser.parameters():
                    parameter.add_(1)
            return []

        monkeypatch.setattr("salun_diffusers.diffusion.trainer.fine_tune", careless)
        assert trainer.fine_tune is careless
        stopped("mask receipt failed", "outside the mask", code=1, output_dir=tmp_path / "run")
        assert not (tmp_path / "run" / "report.json").exists()
