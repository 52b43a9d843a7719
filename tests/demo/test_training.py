"""Training one network: resumed to the bit, averaged as the formula says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from salun_diffusers.accelerator import engine
from salun_diffusers.demo.training import Fit
from salun_diffusers.files.checkpoint import load_state


def loss(network: nn.Module, step: int, generator: torch.Generator) -> torch.Tensor:
    inputs = torch.randn(4, 3, generator=generator)
    return (network(inputs) - inputs.sum(1, keepdim=True)).square().mean()


def fit(
    folder: Path, *, steps: int = 10, decay_steps: int | None = None, stop_at: int | None = None
) -> tuple[nn.Module, list[float]]:
    torch.manual_seed(0)
    seen: list[float] = []

    def counted(network: nn.Module, step: int, generator: torch.Generator) -> torch.Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        value = loss(network, step, generator)
        seen.append(value.item())
        return value

    folder.mkdir(exist_ok=True)
    with engine(mixed_precision="no", gradient_accumulation_steps=1, report_to=None) as accelerator:
        run = Fit("net", nn.Linear(3, 1), counted, steps, 0.1, decay_steps, seed=3, checkpointing_steps=4)
        return run.run(accelerator, folder), seen


def test_resumed_it_ends_with_the_same_bits(tmp_path):
    whole, losses = fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", stop_at=6)
    resumed, rest = fit(tmp_path / "parts")
    assert rest == losses[4:]  # The checkpoint of step 4 goes on with step 5.
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_the_average_by_hand(tmp_path):
    """After the first step the decay is (1 + 0) / (10 + 0) = 0.1: the average is 0.1 old + 0.9 new."""
    torch.manual_seed(0)
    start = nn.Linear(3, 1).weight.detach().clone()
    averaged, _ = fit(tmp_path, steps=1)
    new = load_state(tmp_path / "net-checkpoint")[0]["model.weight"]
    torch.testing.assert_close(averaged.weight, 0.1 * start + 0.9 * new)


def test_a_run_without_decay_is_the_beginning_of_longer_ones(tmp_path):
    """Steps 1 to 6 once, then 7 to 10 from their checkpoint: the same bits as 10 steps of which the last 4 decay."""
    whole, losses = fit(tmp_path / "whole", decay_steps=4)
    _, beginning = fit(tmp_path / "parts", steps=6, decay_steps=0)
    longer, end = fit(tmp_path / "parts", decay_steps=4)
    assert beginning + end == losses
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), longer.parameters(), strict=True))


def test_seconds_are_those_of_all_runs(tmp_path):
    seconds = []
    for steps in (4, 8):
        fit(tmp_path, steps=steps, decay_steps=0)
        seconds.append(load_state(tmp_path / "net-checkpoint")[1]["seconds"])
    assert 0 < seconds[0] < seconds[1]


def test_learning_rate(tmp_path):
    course = Fit("net", nn.Linear(1, 1), loss, 1000, 1.0)
    assert course.schedule(0) == pytest.approx(0.01)
    assert course.schedule(500) == pytest.approx(0.5)
    assert course.schedule(999) < 1e-4


def test_learning_rate_that_falls_in_the_last_steps_only(tmp_path):
    course = Fit("net", nn.Linear(1, 1), loss, 1000, 1.0, decay_steps=200)
    assert course.schedule(0) == pytest.approx(0.01)
    assert course.schedule(500) == course.schedule(800) == 1
    assert course.schedule(900) == pytest.approx(0.5)
    assert Fit("net", nn.Linear(1, 1), loss, 1000, 1.0, decay_steps=0).schedule(999) == 1


def test_the_log_has_a_row_every_fifty_steps(tmp_path):
    fit(tmp_path, steps=100)
    rows = [json.loads(line) for line in (tmp_path / "net.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [50, 100]
    assert rows[1]["loss"] < rows[0]["loss"]
