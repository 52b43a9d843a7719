"""What users of diffusers' training scripts expect of checkpoints (its examples' own tests, in our words)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from salun_diffusers.diffusion.training_checkpoints import is_due
from salun_diffusers.programs.erase import main

UNET = "pipeline/unet/diffusion_pytorch_model.safetensors"


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if "checkpoint" in path.name}


@pytest.fixture
def erase(small_run, tmp_path, capsys):
    """Erase with the constant rate of diffusers' tests, in one folder."""

    def run(folder: str = "run", expected: int = 0, **flags: object) -> str:
        plain = {"lr_scheduler": "constant", "checkpointing_steps": 2, "num_validation_images": 1}
        assert main(small_run(output_dir=tmp_path / folder, **plain | flags)) == expected
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("steps", "every", "due"),
    [(4, 2, [2, 4]), (5, 2, [2, 4]), (9, 2, [2, 4, 6, 8]), (100, 500, [100]), (1, 1, [1]), (500, 500, [500])],
)
def test_when_one_is_due(steps, every, due):
    assert [step for step in range(1, steps + 1) if is_due(step, steps, every)] == due


@pytest.mark.parametrize("steps", [4, pytest.param(5, marks=pytest.mark.slow)])
def test_a_longer_training_goes_on(erase, tmp_path, steps):
    """4 or 5 steps leave checkpoints 2 and 4; 7 from the second leave 4, 6 and the weights of 7 in one go."""
    erase(max_train_steps=steps)
    folder = tmp_path / "run"
    assert left(folder) == {"checkpoint-2", "checkpoint-4"}
    err = erase(max_train_steps=7, resume_from_checkpoint="checkpoint-2")
    assert left(folder) == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    assert "not the uninterrupted" not in err and "begins anew" not in err
    erase("whole", max_train_steps=7)
    for file in (UNET, "metrics.jsonl"):
        assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert json.loads((folder / "report.json").read_text())["config"]["max_train_steps"] == 7


def test_the_latest_one_is_the_default_of_a_longer_training(erase, tmp_path):
    erase(max_train_steps=4)
    first = (tmp_path / "run" / "checkpoint-4" / "state.json").stat().st_mtime_ns
    erase(max_train_steps=6, resume_from_checkpoint="latest")
    assert left(tmp_path / "run") == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    assert (tmp_path / "run" / "checkpoint-4" / "state.json").stat().st_mtime_ns == first


def test_a_short_run_leaves_one_to_go_on_from(erase, tmp_path):
    erase(max_train_steps=3, checkpointing_steps=500)
    assert left(tmp_path / "run") == {"checkpoint-3"}
    erase(max_train_steps=5, checkpointing_steps=500, resume_from_checkpoint="latest")
    assert left(tmp_path / "run") == {"checkpoint-3", "checkpoint-5"}


EVERY_SECOND = {"checkpointing_steps": 2}


def test_a_limit_removes_the_older_ones(trained, tmp_path):
    trained(tmp_path, max_train_steps=7, checkpoints_total_limit=2, **EVERY_SECOND)
    assert left(tmp_path) == {"checkpoint-4", "checkpoint-6"}


def test_a_limit_removes_several_at_once_on_resume(trained, tmp_path):
    trained(tmp_path, max_train_steps=9, **EVERY_SECOND)
    assert left(tmp_path) == {"checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoint-8"}
    checkpoint = tmp_path / "checkpoint-8"
    trained(tmp_path, checkpoint, max_train_steps=11, checkpoints_total_limit=3, **EVERY_SECOND)
    assert left(tmp_path) == {"checkpoint-6", "checkpoint-8", "checkpoint-10"}


def test_a_limit_never_removes_the_one_just_written(trained, tmp_path):
    """From checkpoint-2 of nine steps again: 4 is written anew, although 6 and 8 lie there."""
    trained(tmp_path, max_train_steps=9, **EVERY_SECOND)
    trained(tmp_path, tmp_path / "checkpoint-2", max_train_steps=5, checkpoints_total_limit=1, **EVERY_SECOND)
    assert left(tmp_path) == {"checkpoint-4", "checkpoint-6", "checkpoint-8"}


def test_fewer_steps_go_on_from_the_last_one_before_their_end(erase, tmp_path):
    erase(max_train_steps=4)
    err = erase(max_train_steps=3, resume_from_checkpoint="checkpoint-4", expected=2)
    assert "checkpoint-4 lies beyond the 3 steps of this training" in err
    erase(max_train_steps=3, resume_from_checkpoint="latest")
    erase("whole", max_train_steps=3)
    assert (tmp_path / "run" / UNET).read_bytes() == (tmp_path / "whole" / UNET).read_bytes()


@pytest.mark.parametrize(
    ("flags", "another"),
    [
        ({"lr_scheduler": "cosine"}, True),
        ({"lr_scheduler": "linear", "lr_warmup_steps": 3}, False),  # Two steps of warm-up are the same.
        ({"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 3}, False),
        ({"objective": "l1_sparse", "l1_weight": 1.0}, True),
    ],
    ids=str,
)
def test_another_course_up_to_the_checkpoint_is_said(trained, tmp_path, capsys, flags, another):
    trained(tmp_path, max_train_steps=2, learning_rate=1e-3, **flags)
    capsys.readouterr()
    _, lengthened = trained(tmp_path, tmp_path / "checkpoint-2", max_train_steps=4, learning_rate=1e-3, **flags)
    assert ("this is not the uninterrupted training of 4 steps" in capsys.readouterr().err) is another
    _, whole = trained(max_train_steps=4, learning_rate=1e-3, **flags)
    assert all(torch.equal(value, whole[name]) for name, value in lengthened.items()) is not another


def test_averages_go_on_to_the_bit(erase, tmp_path):
    """--use_ema: 4 steps, then 6 from the checkpoint, and 6 in one go."""
    erase(max_train_steps=4, use_ema=True)
    erase(max_train_steps=6, use_ema=True, resume_from_checkpoint="checkpoint-2")
    erase("whole", max_train_steps=6, use_ema=True)
    erase("plain", max_train_steps=6)
    saved = {name: (tmp_path / name / UNET).read_bytes() for name in ("run", "whole", "plain")}
    assert saved["run"] == saved["whole"] != saved["plain"]
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() == (tmp_path / "plain" / "metrics.jsonl").read_text()
