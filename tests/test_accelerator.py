"""The accelerate engine: what it refuses to compute with, and on how many threads it computes."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import InitProcessGroupKwargs

from salun_diffusers import accelerator as accelerator_module
from salun_diffusers.accelerator import engine
from salun_diffusers.errors import UserError

ROOT = Path(__file__).parent.parent


def test_compiled_bfloat16_on_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It computes wrong gradients; each of the two alone is right."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with (
        pytest.raises(UserError, match="wrong gradients on a CPU") as told,
        engine(mixed_precision="bf16", gradient_accumulation_steps=1, report_to=None),
    ):
        pytest.fail("entered")
    assert "\n" not in str(told.value)
    with engine(mixed_precision="no", gradient_accumulation_steps=1, report_to=None) as accelerator:
        assert accelerator.mixed_precision == "no"
    with engine(mixed_precision="bf16", gradient_accumulation_steps=1, report_to=None, trains=False) as accelerator:
        assert accelerator.mixed_precision == "bf16"  # what only draws takes no gradients
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    with engine(mixed_precision="bf16", gradient_accumulation_steps=1, report_to=None) as accelerator:
        assert accelerator.mixed_precision == "bf16"


def test_processes_wait_longer_than_the_main_one_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default NCCL ends a run whose processes wait for ten minutes, as they do while one looks at pictures."""
    handed: list[object] = []

    class Spy(accelerator_module.Accelerator):
        def __init__(self, **named: Any) -> None:
            handed.extend(named["kwargs_handlers"])
            super().__init__(**named)

    monkeypatch.setattr(accelerator_module, "Accelerator", Spy)
    with engine(mixed_precision="no", gradient_accumulation_steps=1, report_to=None):
        (group,) = (handler for handler in handed if isinstance(handler, InitProcessGroupKwargs))
    assert group.to_kwargs() == {"timeout": datetime.timedelta(days=1)}


# What a process of two on four cores computes with, when torch says one thread.
THREADS = """
from salun_diffusers import accelerator
accelerator.os.sched_getaffinity = lambda process: {0, 1, 2, 3}
print("threads", accelerator.threads_for("cpu", 2, 1))
"""


@pytest.mark.parametrize(
    ("asked", "flags", "expected"),
    [({}, [], 2), ({"OMP_NUM_THREADS": "1"}, [], 1), ({}, ["--num_cpu_threads_per_process", "1"], 1)],
)
def test_one_thread_that_was_asked_for_stays_one(
    tmp_path: Path, asked: dict[str, str], flags: list[str], expected: int
) -> None:
    """accelerate hands its own OMP_NUM_THREADS=1 on in the variable in which users ask for one thread."""
    (tmp_path / "program.py").write_text(THREADS)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path), **asked}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    ended = subprocess.run(
        [*launch, "--mixed_precision", "no", "--dynamo_backend", "no", *flags, str(tmp_path / "program.py")],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert f"threads {expected}\n" in ended.stdout, ended.stderr[-2000:]


def test_a_device_that_was_asked_for_is_taken_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever device an earlier engine of the process took, and for this one only."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    plain: dict[str, Any] = {"mixed_precision": "no", "gradient_accumulation_steps": 1, "report_to": None}
    with engine(**plain) as before:
        assert str(before.device) == "cpu"
    with engine(**plain, device=torch.device("cpu:0")) as accelerator:
        assert str(accelerator.device) == "cpu:0"
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ
    with engine(**plain) as after:
        assert str(after.device) == "cpu"
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cpu:0")
    with engine(**plain, device=torch.device("cpu")) as accelerator:
        assert str(accelerator.device) == "cpu"
    assert os.environ["ACCELERATE_TORCH_DEVICE"] == "cpu:0"
