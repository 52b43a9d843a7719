"""Mistakes that the model's files already show are told before it is loaded, under --dry_run too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from salun_diffusers.arguments import parse
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.diffusion.request import Request, accept
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.programs.erase import main

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture(params=[True, None], ids=["dry", "run"])
def told(request, refused, monkeypatch):
    """Refused, and no model was loaded for it."""

    def load(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(StableDiffusion, "__init__", load)
    return lambda *words, **flags: refused(*words, dry_run=request.param, **flags)


class TestTold:
    @pytest.mark.parametrize("method", ["attn9", "^$", "("])
    def test_a_train_method_that_matches_nothing(self, told, method):
        told("--train_method", train_method=method)

    def test_a_ratio_that_selects_nothing(self, told):
        """Of 64,796 weights 1e-5 is less than one."""
        told("--mask_ratio 1e-05 selects no weight of the 64,796", mask_ratio=1e-5)
        told("--mask_ratio 1e-05 selects no weight", mask_ratio=1e-5, mask="random")

    def test_a_ratio_that_selects_nothing_of_any_tensor(self, told):
        """The largest tensor has 4,608 weights: 2e-4 of it is less than one, of all of them it is twelve."""
        told("selects no weight", mask_ratio=2e-4, mask_scope="per_tensor")

    def test_a_mask_of_another_model(self, told, tmp_path):
        SaliencyMask.full({"another": (3, 4)}).save(tmp_path / "mask.safetensors")
        told("no tensor in common", mask=tmp_path / "mask.safetensors")

    def test_a_file_that_is_no_mask(self, told, tmp_path):
        save_file({"w": torch.ones(2)}, tmp_path / "mask.safetensors")
        told("is no mask file", mask=tmp_path / "mask.safetensors")

    def test_more_steps_than_the_model_has(self, told):
        told("--num_inference_steps must be at most 1000", num_inference_steps=1001)

    @pytest.mark.parametrize("steps", [10**9, 0, -1, 1.5, "many", True])
    def test_a_scheduler_without_end(self, told, copied, steps):
        path = copied / "scheduler" / "scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_train_timesteps": steps}))
        told("must say a number of timesteps", pretrained_model_name_or_path=copied)


class TestDiskSpace:
    """Of a checkpoint: three fp32 numbers for each weight that may move, beside a small header."""

    def asked(self, small_run, **flags: object) -> Request:
        words = small_run(**flags)
        return accept(parse(EraseConfig, words))

    @pytest.mark.parametrize(
        ("flags", "weights"),
        [
            ({"mask_ratio": 0.25}, 16_199),
            ({"mask": "random", "mask_scope": "per_tensor"}, None),
            ({"mask": "full"}, 64_796),
            ({"mask": "file"}, 6_479),
            ({"mask": "file", "train_method": "xattn"}, None),
        ],
    )
    def test_a_checkpoint_is_as_large_as_foreseen(self, small_run, tmp_path, flags, weights):
        if flags.get("mask") == "file":
            sizes = load_file(unet_of(small_run))
            SaliencyMask.random(sizes, 0.1, torch.Generator().manual_seed(0)).save(tmp_path / "mask.safetensors")
            flags = {**flags, "mask": tmp_path / "mask.safetensors"}
        disk = self.asked(small_run, **flags, checkpointing_steps=1).disk
        assert weights is None or disk.checkpoint == 12 * weights
        assert main(small_run(output_dir=tmp_path / "run", **flags, checkpointing_steps=1)) == 0
        written = [path.stat().st_size for path in (tmp_path / "run").glob("checkpoint-*/state.safetensors")]
        assert len(written) == disk.checkpoints == 4
        header = len(load_file(tmp_path / "run" / "checkpoint-1" / "state.safetensors")) * 200
        assert all(disk.checkpoint <= size <= disk.checkpoint + header for size in written)

    @pytest.mark.parametrize(
        ("flags", "kept"),
        [
            ({"max_train_steps": 1000}, 2),
            ({"max_train_steps": 1001}, 2),
            ({"max_train_steps": 500}, 1),
            ({"max_train_steps": 100}, 1),  # At its end.
            ({"max_train_steps": 1001, "checkpointing_steps": 10}, 100),
            ({"max_train_steps": 1001, "checkpointing_steps": 10, "checkpoints_total_limit": 2}, 3),
            # 6 latents in steps of 2 x 2 are two a pass.
            ({"max_train_steps": None, "num_train_epochs": 7, "gradient_accumulation_steps": 2,
              "checkpointing_steps": 1}, 14),
        ],
    )  # fmt: skip
    def test_how_many_lie_there_at_once(self, small_run, flags, kept):
        assert self.asked(small_run, **flags).disk.checkpoints == kept

    def test_the_plan_says_it(self, small_run, capsys):
        assert main(small_run(dry_run=True, max_train_steps=1001)) == 0
        plan = capsys.readouterr().out
        assert "in it 2 checkpoints of 0.000389 GB" in plan  # 12 bytes of 32,398 weights
        assert main(small_run(dry_run=True)) == 0
        assert "in it 1 checkpoint of 0.000389 GB" in capsys.readouterr().out
        assert main(small_run(dry_run=True, use_ema=True)) == 0
        assert "in it 1 checkpoint of 0.000518 GB" in capsys.readouterr().out

    def test_they_are_asked_for_before_anything(self, refused, small_run, monkeypatch):
        """Enough for the pipeline, and one byte too few for its checkpoints."""
        total = self.asked(small_run, max_train_steps=1001).disk.total
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, total - 1))
        assert self.asked(small_run, max_train_steps=500).disk.checkpoints == 1
        refused("work files and checkpoints needs about", "GB are free", max_train_steps=1001)


def unet_of(small_run) -> Path:
    """The weight file of its base."""
    words = small_run()
    return Path(words[words.index("--pretrained_model_name_or_path") + 1]) / "unet/diffusion_pytorch_model.safetensors"


def test_prompts_that_nothing_is_drawn_for_are_not_encoded(small_run, tmp_path, monkeypatch):
    """Ten thousand retain prompts and five pictures: five are encoded."""
    (tmp_path / "many.txt").write_text("".join(f"a star number {number}\n" for number in range(10_000)))
    encode, encoded = StableDiffusion.encode, []
    monkeypatch.setattr(
        StableDiffusion, "encode", lambda self, prompts: encoded.extend(prompts) or encode(self, prompts)
    )
    assert main(small_run(retain_prompts=tmp_path / "many.txt", output_dir=tmp_path / "run", mask="random")) == 0
    # Eight more are drawn for the report.
    assert len({prompt for prompt in encoded if "number" in prompt}) == 8


class TestExplicitLatents:
    @pytest.fixture
    def explicit(self, small_run, monkeypatch, tmp_path):
        """A run of an explicit concept."""
        import dataclasses

        from salun_diffusers.diffusion import request

        find = request.find_concept
        monkeypatch.setattr(request, "find_concept", lambda *given: dataclasses.replace(find(*given), explicit=True))
        return lambda **flags: main(small_run(output_dir=tmp_path / "run", **flags))

    def test_are_private_while_it_runs_and_gone_when_it_is_done(self, explicit, tmp_path, capsys, monkeypatch):
        from salun_diffusers.diffusion import run

        seen = []
        write = run.write_report

        def look(*arguments):
            seen.append(((tmp_path / "run" / "work").stat().st_mode & 0o777, len([*tmp_path.rglob("drawn/*/*")])))
            return write(*arguments)

        monkeypatch.setattr(run, "write_report", look)
        assert explicit() == 0
        [(mode, drawn)] = seen
        assert mode == 0o700 and drawn > 10
        left = {path.name for path in (tmp_path / "run" / "work").rglob("*")}
        assert left == {"mask.json", "pipeline.json"}
        assert "latents of the explicit concept were deleted" in capsys.readouterr().err
        assert "deleted when the run is done" in " ".join((tmp_path / "run" / "report.html").read_text().split())
        # The report can still be made anew.
        assert explicit(resume_from_checkpoint="latest", num_validation_images=1) == 0
        assert "fine-tuning" not in capsys.readouterr().err

    def test_stay_where_that_is_asked_for(self, explicit, tmp_path, capsys):
        assert explicit(keep_explicit_latents=True) == 0
        assert (tmp_path / "run" / "work" / "forget.safetensors").exists()
        page = (tmp_path / "run" / "report.html").read_text()
        assert "can make pictures, are kept in the run folder" in " ".join(page.split())

    def test_in_a_folder_of_the_users_are_named(self, explicit, tmp_path, capsys):
        assert explicit(generated_data_dir=tmp_path / "mine") == 0
        assert f"{tmp_path / 'mine'} still holds latents" in capsys.readouterr().err
        assert [*(tmp_path / "mine").rglob("*.safetensors")]


def test_other_runs_keep_their_latents(small_run, tmp_path):
    assert main(small_run(output_dir=tmp_path / "run")) == 0
    assert (tmp_path / "run" / "work" / "forget.safetensors").exists()
    shutil.rmtree(tmp_path / "run")


def test_the_sizes_that_the_tests_above_name(tiny_pipeline: Path) -> None:
    sizes = [t.numel() for t in load_file(tiny_pipeline / "unet/diffusion_pytorch_model.safetensors").values()]
    assert (sum(sizes), max(sizes)) == (64_796, 4_608)
