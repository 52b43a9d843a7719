"""Runs that stop late: a full disk, Ctrl-C, a loss that diverges, a receipt that fails; each told in one line."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from salun_diffusers.programs.erase import main

pytestmark = pytest.mark.usefixtures("empty_folder")


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
            Path(folder).mkdir(exist_ok=True)
            (Path(folder) / "diffusion_pytorch_model.safetensors").write_bytes(b"half")
            raise error

        monkeypatch.setattr(UNet2DConditionModel, "save_pretrained", half)
        stopped("The disk is full", "the erased pipeline", output_dir=tmp_path / "run")
        left = {path.name for path in (tmp_path / "run").iterdir()}
        assert left == {"config.json", "run.json", "metrics.jsonl", "mask.safetensors", "work", "checkpoint-4"}

    def test_while_saving_a_checkpoint(self, stopped, monkeypatch, tmp_path):
        def half(tensors, path, **_):
            if "state" not in path.name:
                return save_file(tensors, path, **_)
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("salun_diffusers.files.stored_weights.save_file", half)
        stopped("The disk is full", "checkpoint-2", output_dir=tmp_path / "run", checkpointing_steps=2)
        assert not [*(tmp_path / "run").glob("*checkpoint*")]

    def test_while_copying_a_component(self, stopped, monkeypatch, tmp_path):
        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("salun_diffusers.files.pipeline_copy.shutil.copyfile", full)
        stopped("The disk is full", "the erased pipeline", output_dir=tmp_path / "run")
        assert not (tmp_path / "run" / "pipeline").exists() and (tmp_path / "run" / "work" / "mask.json").exists()

    @pytest.mark.parametrize(
        "place", ["latent_sets.generate_latents", "base_model.copy_with_denoiser", "run.write_report"]
    )
    def test_what_may_not_be_written(self, stopped, monkeypatch, tmp_path, place):
        def refused(*_, **__):
            raise PermissionError(errno.EACCES, "Permission denied", "some/file")

        monkeypatch.setattr(f"salun_diffusers.diffusion.{place}", refused)
        stopped("some/file: Permission denied", output_dir=tmp_path / "run")

    def test_at_any_other_file(self, stopped, monkeypatch, tmp_path):
        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("salun_diffusers.diffusion.latent_sets.generate_latents", full)
        stopped("The disk is full", "--resume_from_checkpoint latest", output_dir=tmp_path / "run")

    def test_other_errors_are_not_taken_for_it(self, stopped, monkeypatch, tmp_path):
        def broken(*_, **__):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr("salun_diffusers.diffusion.latent_sets.generate_latents", broken)
        stopped("Input/output error", output_dir=tmp_path / "run")


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

        monkeypatch.setattr("salun_diffusers.programs.erase.accept", stop)
        assert main(small_run()) == 130
        assert capsys.readouterr().err == "interrupted: no run had begun, nothing was written.\n"
        assert [*tmp_path.iterdir()] == []

    def test_before_a_stage_ended(self, stopped, monkeypatch, tmp_path):
        def stop(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("salun_diffusers.diffusion.latent_sets.generate_latents", stop)
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
        stopped("model draws NaN", pretrained_model_name_or_path=copied)


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
        def careless(run, family, *arguments):
            with torch.no_grad():
                for parameter in family.denoiser.parameters():
                    parameter.add_(1)
            return []

        monkeypatch.setattr("salun_diffusers.diffusion.run.fine_tune", careless)
        stopped("mask receipt failed", "outside the mask", code=1, output_dir=tmp_path / "run")
        assert not (tmp_path / "run" / "report.json").exists()
