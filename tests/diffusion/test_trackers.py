"""Trackers get losses, settings and validation pictures; which ones, accelerate says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import numpy as np
import pytest
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from PIL import Image

from salun_diffusers.diffusion import validation_pictures
from salun_diffusers.diffusion.validation_pictures import log_pictures
from salun_diffusers.evaluation.image_folder import blurred
from salun_diffusers.programs.erase import main

# What a tracker is told, one JSON a line, in the manner of the wandb package.
WANDB = """
import json
from pathlib import Path

class Image:
    def __init__(self, picture, caption):
        self.size, self.caption, self.pixels = picture.size, caption, list(picture.tobytes())

class Run:
    def __init__(self, project):
        self.project, self.config = project, self
        self.told("project", project)
    def told(self, kind, value, step=None):
        with Path(__file__).with_suffix(".jsonl").open("a") as file:
            file.write(json.dumps([kind, value, step], default=vars) + chr(10))
    def update(self, values, **_):
        self.told("config", values)
    def log(self, values, step=None, **_):
        self.told("log", values, step)
    def finish(self):
        self.told("finish", None)

def init(project, **_):
    global run, config
    run = config = Run(project)
    return run
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """A package that keeps what it is told; returns that."""
    home = tmp_path / "packages"
    home.mkdir()
    (home / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(str(home))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [LoggerType.WANDB])

    def told() -> list[list[Any]]:
        return [json.loads(line) for line in (home / "wandb.jsonl").read_text().splitlines()]

    yield told
    sys.modules.pop("wandb", None)


def pictures_in(told: list[list[Any]], tag: str) -> dict[int, list[dict[str, Any]]]:
    return {step: values[tag] for kind, values, step in told if kind == "log" and tag in values}


PROMPTS = ["a photo of a circle", "a star"]


def erased(small_run, folder: Path, **flags: object) -> None:
    words = small_run(output_dir=folder, report_to="wandb", **flags)
    assert main([*words, "--validation_prompts", *PROMPTS, "--validation_steps", "3"]) == 0


class TestWandb:
    def test_is_told_settings_losses_and_pictures(self, small_run, tmp_path, wandb):
        """Four steps and a round every third: after 3 and at the end; the base's pictures once."""
        erased(small_run, tmp_path / "run", tracker_project_name="forgetting", max_train_steps=4)
        told = wandb()
        assert told[0] == ["project", "forgetting", None]
        config = next(value for kind, value, _ in told if kind == "config")
        assert (config["learning_rate"], config["train_batch_size"], config["recipe"]) == (1e-3, 2, "frozen_teacher")
        assert config["validation_prompts"] == json.dumps(PROMPTS)
        losses = [(values["loss"], step) for kind, values, step in told if kind == "log" and "loss" in values]
        rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        assert losses == [(row["loss"], row["step"]) for row in rows]
        assert [*pictures_in(told, "validation, base")] == [3]
        rounds = pictures_in(told, "validation")
        assert [*rounds] == [3, 4]
        assert all([one["caption"] for one in found] == PROMPTS for found in rounds.values())
        assert told[-1][0] == "finish"

    def test_base_and_present_pictures_have_one_seed(self, small_run, tmp_path, wandb):
        """A rate that moves nothing: the pictures are the base's to the bit. A real one: they are not."""
        erased(small_run, tmp_path / "run", learning_rate=1e-30)
        erased(small_run, tmp_path / "other", learning_rate=1e-2)
        told = wandb()
        (second,) = (number for number, line in enumerate(told) if line[0] == "project" and number)
        for part, same in ((told[:second], True), (told[second:], False)):
            (base,), rounds = pictures_in(part, "validation, base").values(), pictures_in(part, "validation")
            assert (rounds[4] == base) is same

    def test_explicit_ones_are_blurred(self, small_run, tmp_path, wandb):
        """A concept that is explicit hides all; of another one, a prompt that is."""
        erased(small_run, tmp_path / "run", forget_prompt="a photo of a nude woman")
        told = wandb()
        for found in (*pictures_in(told, "validation").values(), *pictures_in(told, "validation, base").values()):
            for one in found:
                picture = Image.frombytes("RGB", tuple(one["size"]), bytes(one["pixels"]))
                assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 1
                again = np.asarray(blurred(picture), dtype=int)
                assert np.abs(again - np.asarray(picture, dtype=int)).max() < 40

    def test_averages_are_what_is_looked_at(self, small_run, tmp_path, wandb):
        """The last round shows what the pipeline holds that is saved: the same prompts drawn from it are the same."""
        from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
        from salun_diffusers.seeds import stream_seed

        erased(small_run, tmp_path / "run", use_ema=True, learning_rate=1e-2)
        (shown,) = [found for step, found in pictures_in(wandb(), "validation").items() if step == 4]
        family = StableDiffusion(tmp_path / "run" / "pipeline", device=validation_pictures._CPU)
        seeds = [stream_seed(0, "validation", prompt, number) for number, prompt in enumerate(PROMPTS)]
        drawn = family.decode(family.generate(PROMPTS, seeds, num_inference_steps=2, guidance_scale=2.0))
        assert [one["pixels"] for one in shown] == [list(picture.tobytes()) for picture in drawn]


class TestMemory:
    def test_what_draws_waits_on_the_cpu_and_is_released_by_the_run(self, small_run, tmp_path, wandb, monkeypatch):
        """Between two rounds nothing but the denoiser is on the device; fine-tuning itself holds no encoder."""
        moved: list[tuple[str, bool]] = []
        move = validation_pictures._move

        def spied(family: Any, device: Any) -> None:
            moved.append((str(device), "vae" in {n for n, part in family.pipe.components.items() if part is not None}))
            move(family, device)

        released = []
        from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion

        release = StableDiffusion.release_encoders
        monkeypatch.setattr(
            StableDiffusion, "release_encoders", lambda family: (release(family), released.append(family))
        )
        monkeypatch.setattr(validation_pictures, "_move", spied)
        erased(small_run, tmp_path / "run")
        assert moved == [("cpu", True)] * 5  # After the base's pictures; to the device and back, twice.
        assert released[0].pipe.vae is None and released[0].pipe.text_encoder is None


class Tracker(GeneralTracker):
    """Keeps what it is told."""

    requires_logging_directory = False
    tracker = None

    def __init__(self, name: str) -> None:
        self.name, self.seen = name, []
        super().__init__()

    def start(self) -> None: ...

    def store_init_configuration(self, values: dict) -> None: ...

    def log(self, values: dict, step: int | None = None, **_: object) -> None: ...

    def log_images(self, values: dict, step: int, **how: object) -> None:
        self.seen.append((values, step, how))


class TestPicturesOfTheOthers:
    pictures = tuple(Image.new("RGB", (4, 2), colour) for colour in ("red", "blue"))

    def test_tensorboard_takes_one_array(self):
        tracker = Tracker("tensorboard")
        log_pictures(tracker, "validation", self.pictures, PROMPTS, 7)
        ((values, step, how),) = tracker.seen
        assert values["validation"].shape == (2, 2, 4, 3) and values["validation"][0, 0, 0].tolist() == [255, 0, 0]
        assert (step, how) == (7, {"dataformats": "NHWC"})

    def test_comet_takes_each(self):
        seen: list[tuple[str, int]] = []
        experiment = SimpleNamespace(log_image=lambda picture, name, step: seen.append((name, step)))
        log_pictures(SimpleNamespace(name="comet_ml", tracker=experiment), "validation", self.pictures, PROMPTS, 7)
        assert seen == [("validation 0: a photo of a circle", 7), ("validation 1: a star", 7)]


class TestFlags:
    def test_pictures_without_a_tracker(self, refused):
        refused("--validation_prompts", "--report_to tensorboard", validation_prompts="a star")

    def test_all_are_those_that_are_installed(self, small_run, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
        assert main(small_run(output_dir=tmp_path / "run", report_to="all", max_train_steps=1)) == 0
        err = capsys.readouterr().err
        assert "--report_to all: no tracker that accelerate knows is installed" in err and "pip install" not in err

    def test_all_with_one(self, small_run, tmp_path, wandb):
        assert main(small_run(output_dir=tmp_path / "run", report_to="all", max_train_steps=1)) == 0
        assert [kind for kind, _, _ in wandb()] == ["project", "config", "log", "finish"]

    @pytest.mark.parametrize(("logging_dir", "expected"), [(None, "run/logs"), ("diary", "run/diary")])
    def test_files_of_trackers_lie_where_the_flag_says(self, small_run, tmp_path, monkeypatch, logging_dir, expected):
        """As a tracker is made that writes files, such as tensorboard's."""
        made: list[tuple[str, str]] = []

        class Files(Tracker):
            requires_logging_directory = True

            def __init__(self, project: str, folder: str) -> None:
                made.append((project, folder))
                super().__init__("files")

        monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [LoggerType.TENSORBOARD])
        monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Files)
        flags = {"output_dir": tmp_path / "run", "max_train_steps": 1, "logging_dir": logging_dir}
        assert main(small_run(report_to="tensorboard", **flags)) == 0
        assert made == [("salun_diffusers", str(tmp_path / expected))]

    def test_xformers_is_a_word(self, small_run, tmp_path, capsys):
        words = small_run(output_dir=tmp_path / "run", max_train_steps=1)
        assert main([*words, "--enable_xformers_memory_efficient_attention"]) == 0
        assert "changes nothing: attention is torch's (SDPA)" in capsys.readouterr().err
