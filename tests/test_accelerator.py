"""The accelerate engine: what it refuses to compute with."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from salun_diffusers.accelerator import engine
from salun_diffusers.errors import UserError


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


@pytest.mark.parametrize(
    ("words", "threads"),
    [([], "2"), (["OMP_NUM_THREADS=1"], "1"), (["OTHER=1"], "2"), (["--num_cpu_threads_per_process", "1"], "1")],
    ids=["accelerate's default", "asked for", "something else", "told accelerate"],
)
def test_one_thread_that_was_asked_for_is_kept(words: list[str], threads: str) -> None:
    """A launcher that was itself given OMP_NUM_THREADS, or not, starts a process as accelerate does: with 1."""
    child = (
        "import os; os.sched_getaffinity = lambda _: {0, 1}\n"
        "from salun_diffusers.accelerator import threads_for; print(threads_for('cpu', 1, 1))"
    )
    launcher = (
        "import os, subprocess, sys\n"
        "told = {'OMP_NUM_THREADS': '1', 'ACCELERATE_MIXED_PRECISION': 'no'}\n"
        f"subprocess.run([sys.executable, '-c', {child!r}], env=dict(os.environ, **told), check=True)"
    )
    given = dict(word.split("=") for word in words if "=" in word)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), **given}
    flags = [word for word in words if "=" not in word]
    done = subprocess.run(
        [sys.executable, "-c", launcher, *flags], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == threads
