"""Killed at any moment, the same command resumed ends with the bits of an uninterrupted run.

One process imports the program; each kill point is a fork of it that replaces a function by one that dies, by SIGKILL,
at its n-th call. Where the function writes a file, half of it is left behind.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.programs.erase import main

KILL_POINTS = {
    "while writing the run's record": [("files.whole_files:Path.replace", 1)],
    "set generation": [("diffusion.families.stable_diffusion:StableDiffusion.generate", 2)],
    "while saving generated latents": [("files.stored_weights:save_file", 2)],
    "while saving the latent set": [("files.stored_weights:save_file/work/.retain", 1)],
    "saliency": [("diffusion.saliency_pass:guided_noise_loss", 2)],
    "while saving the mask": [("files.stored_weights:save_file/mask", 1)],
    "fine-tuning before a checkpoint": [("diffusion.trainer:_step", 2)],
    "while saving the first checkpoint": [("files.stored_weights:save_file/checkpoint-2", 1)],
    "while saving the second checkpoint": [("files.stored_weights:save_file/checkpoint-4", 1)],
    "while removing the old checkpoint": [("diffusion.training_checkpoints:shutil.rmtree//checkpoint-2", 1)],
    "fine-tuning after a checkpoint, twice": [
        ("diffusion.trainer:_step", 4),
        ("diffusion.trainer:_step", 2),
    ],
    "while saving the pipeline": [("files.pipeline_copy:shutil.copyfile", 1)],
    "while drawing after": [("diffusion.run_report:measure", 1)],
}

DRIVER = """
import importlib, json, os, signal, sys
from pathlib import Path
import salun_diffusers.programs.erase as program

def die_at(target, call):
    module, _, path = target.partition(":")
    path, _, only = path.partition("/")  # Calls whose arguments do not name this are none.
    *parents, name = path.split(".")
    owner = importlib.import_module("salun_diffusers." + module)
    for parent in parents:
        owner = getattr(owner, parent)
    original, calls = getattr(owner, name), 0
    def dying(*arguments, **keywords):
        nonlocal calls
        calls += only in " ".join(map(str, arguments))
        if calls == call and only in " ".join(map(str, arguments)):
            if name == "save_file":
                Path(arguments[1]).write_bytes(b"half of a file")
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)
    setattr(owner, name, dying)

importlib.import_module("salun_diffusers.diffusion.run")
statuses = {}
for title, (command, deaths) in json.load(sys.stdin).items():
    for number, death in enumerate(deaths):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            die_at(*death)
            os._exit(program.main(command + ["--resume_from_checkpoint", "latest"] * (number > 0)))
        statuses.setdefault(title, []).append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(statuses))
"""


@pytest.fixture(scope="module")
def command(small_run):
    def words(folder: Path, **flags: object) -> list[str]:
        return small_run(
            output_dir=folder, max_train_steps=5, checkpointing_steps=2, checkpoints_total_limit=1,
            adam_weight_decay=0.01, **flags,
        )  # fmt: skip

    return words


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(command(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def killed(command, tmp_path_factory) -> Path:
    """A folder of runs that were killed, one for each kill point."""
    parent = tmp_path_factory.mktemp("killed")
    plan = {title: (command(parent / title), deaths) for title, deaths in KILL_POINTS.items()}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(plan), capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    statuses = json.loads(done.stdout.splitlines()[-1])
    assert statuses == {title: [-9] * len(deaths) for title, deaths in KILL_POINTS.items()}
    return parent


def assert_alike(run: Path, whole: Path) -> None:
    for file in ("pipeline/unet/diffusion_pytorch_model.safetensors", "metrics.jsonl"):
        assert (run / file).read_bytes() == (whole / file).read_bytes(), file
    assert SaliencyMask.load(run / "mask.safetensors") == SaliencyMask.load(whole / "mask.safetensors")
    first, second = (json.loads((folder / "report.json").read_text()) for folder in (run, whole))
    assert first["series"] == second["series"]
    assert [m["value"] for m in first["measurements"]] == [m["value"] for m in second["measurements"]]


@pytest.mark.parametrize("title", KILL_POINTS)
def test_killed_run_ends_as_if_it_had_not_been(title, killed, command, whole):
    assert not (killed / title / "report.json").exists()
    if title == "while saving the pipeline":
        assert not (killed / title / "pipeline").exists()
    if title == "while removing the old checkpoint":
        assert sorted(path.name for path in (killed / title).glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert main(command(killed / title, resume_from_checkpoint="latest")) == 0
    assert_alike(killed / title, whole)
    assert not [path.name for path in (killed / title).iterdir() if path.name.startswith(".")]


def test_finished_run_can_be_resumed(command, whole, tmp_path):
    folder = tmp_path / "run"
    assert main(command(folder)) == 0
    assert main(command(folder, resume_from_checkpoint="latest")) == 0
    assert_alike(folder, whole)


def test_named_checkpoint(command, whole, tmp_path):
    folder = tmp_path / "run"
    assert main([*command(folder), "--checkpoints_total_limit", "5"]) == 0
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    metrics = folder / "metrics.jsonl"
    assert main(command(folder, resume_from_checkpoint="checkpoint-2")) == 0
    assert len(metrics.read_text().splitlines()) == 5
    assert_alike(folder, whole)
