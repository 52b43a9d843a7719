"""Settings and runs for tests of single stages."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from accelerate import Accelerator

from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.presets.stable_diffusion import STABLE_DIFFUSION
from salun_diffusers.diffusion.settings import Length, Settings, resolve
from salun_diffusers.diffusion.stage_marks import StageMarks
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.progress import Clock


def tiny_settings(**changes: object) -> Settings:
    """Two pictures a batch, four steps; `max_train_steps` stands for the length."""
    steps = changes.pop("max_train_steps", 4)
    few = {"train_batch_size": 2, "length": Length(steps, "steps"), "lr_scheduler": "constant", "seed": 7,
           "retain_weight": 0.5, "empty_prompt_share": 0.0}  # fmt: skip
    plain = resolve(EraseConfig(concept="disc", recipe="paper"), STABLE_DIFFUSION["paper"])
    return dataclasses.replace(plain, **few | changes)


def run_in(folder: Path, accelerator: Accelerator) -> Run:
    """A run that has been started in a folder."""
    sets = dict.fromkeys(("forget", "anchor", "retain"), "set")
    marks = StageMarks("run", sets, "mask", "training", "pipeline")
    return Run(accelerator, RunFolder(folder), Clock({}), base="base", marks=marks, command="by hand")
