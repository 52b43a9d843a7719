"""The training programs of the digits model, for a few steps."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from salun_diffusers import ClassConditionalDDPMPipeline
from salun_diffusers.errors import UserError
from salun_diffusers.pictures.picture_sources import load_pictures

ROOT = Path(__file__).parents[2]
SMALL = [
    "--resolution",
    "8",
    "--block_out_channels",
    "8",
    "16",
    "--norm_num_groups",
    "4",
    "--train_batch_size",
    "4",
    "--max_train_steps",
    "6",
    "--checkpointing_steps",
    "3",
    "--save_dtype",
    "float32",
]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The program in this process."""
    spec = importlib.util.spec_from_file_location("train_ddpm", ROOT / "scripts" / "train_ddpm.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_ddpm", module)
    spec.loader.exec_module(module)

    def run(*words: str) -> int:
        return module.main(words)

    return run


def test_digits_are_the_real_ones():
    images = load_pictures("digits")[0].resized(32)
    assert images.pixels.shape == (1797, 1, 32, 32)
    assert images.class_names == tuple("0123456789")
    assert torch.bincount(images.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert images.with_channels(3).pixels.shape == (1797, 3, 32, 32)


def test_a_missing_source_is_told():
    with pytest.raises(UserError, match="must be one of digits, shapes"):
        load_pictures("no/such/data")


def test_same_seed_same_bits_and_the_folder_loads(train, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        assert train(*SMALL, "--output_dir", str(folder)) == 0
    weights = "pipeline/unet/diffusion_pytorch_model.safetensors"
    assert (one / weights).read_bytes() == (two / weights).read_bytes()
    pipe = ClassConditionalDDPMPipeline.from_pretrained(one / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe(["3"], num_inference_steps=2).images[0].size == (8, 8)
    assert json.loads((one / "config.json").read_text())["max_train_steps"] == 6


def test_another_training_does_not_go_on_from_a_checkpoint(train, tmp_path, capsys):
    """Above all a Retrain that saw the class: its record would say that it had not."""
    folder = tmp_path / "run"
    assert train(*SMALL, "--output_dir", str(folder)) == 0
    record = (folder / "config.json").read_text()
    for words, content in (
        (["--exclude_class", "7"], "--exclude_class was None and is 7"),
        (["--learning_rate", "0.05"], "--learning_rate was 0.001 and is 0.05"),
        (["--seed", "4"], "--seed was 0 and is 4"),
        (["--train_batch_size", "5"], "--train_batch_size was 4 and is 5"),
        (["--max_train_steps", "9"], "has 6 steps of a course of 6"),
        (["--resolution", "16"], "--resolution was 8 and is 16"),
        (["--train_data", "shapes"], "was ['0', '1',"),
    ):
        capsys.readouterr()
        assert train(*SMALL, *words, "--output_dir", str(folder)) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and content in error
        assert (folder / "config.json").read_text() == record
    # What does not touch the weights may differ.
    assert train(*SMALL, "--save_dtype", "float16", "--checkpointing_steps", "2", "--output_dir", str(folder)) == 0


def test_help_waits_for_nothing_heavy():
    code = (
        "import sys\n"
        "from salun_diffusers.programs.train_ddpm import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print('HEAVY', sorted({'torch', 'diffusers', 'numpy'} & set(sys.modules)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("HEAVY []")


def test_bad_input_is_one_line(train, tmp_path, capsys):
    for words, content in (
        (["--exclude_class", "eleven"], "--exclude_class must be one of 0, 1"),
        (["--train_data", str(tmp_path)], "must hold one folder of pictures per class"),
        (["--block_out_channels", "wide"], "must be whole numbers"),
        (["--max_train_steps", "0"], "at least 1"),
        (["--save_dtype", "int8"], "float32, float16 or bfloat16"),
    ):
        assert train(*SMALL, *words, "--output_dir", str(tmp_path / "run")) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ")
        assert line.count("\n") == 1
        assert content in line
        assert not (tmp_path / "run" / "pipeline").exists()
