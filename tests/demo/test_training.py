"""Training one network: resumed to the bit, averaged as the formula says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from salun_diffusers.accelerator import engine
from salun_diffusers.demo.training import Fit, load_kept, tensors_sha256
from salun_diffusers.errors import UserError
from salun_diffusers.files.checkpoint import load_state, save_state


def loss(network: nn.Module, step: int, generator: torch.Generator) -> torch.Tensor:
    inputs = torch.randn(4, 3, generator=generator)
    return (network(inputs) - inputs.sum(1, keepdim=True)).square().mean()


def fit(
    folder: Path,
    *,
    steps: int = 10,
    decay_steps: int | None = None,
    stop_at: int | None = None,
    width: int = 1,
    scaler: torch.amp.GradScaler | None = None,
    dropout: float = 0.0,
    **settings: object,
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
        if scaler:  # As fp16 has it; only its hardware is missing here.
            accelerator.scaler = scaler
        course = {"steps": steps, "learning_rate": 0.1, "decay_steps": decay_steps, "seed": 3, "checkpointing_steps": 4}
        layer = nn.Linear(3, width)
        network = nn.Sequential(layer, nn.Dropout(dropout)) if dropout else layer
        run = Fit("net", network, counted, **{**course, **settings})
        return run.run(accelerator, folder), seen


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_resumed_it_ends_with_the_same_bits(tmp_path, dropout):
    whole, losses = fit(tmp_path / "whole", dropout=dropout)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", stop_at=6, dropout=dropout)
    resumed, rest = fit(tmp_path / "parts", dropout=dropout)
    assert rest == losses[4:]  # The checkpoint of step 4 goes on with step 5.
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_a_damaged_checkpoint_is_told_and_left(tmp_path):
    """There is one only, so nothing older to go on from; it is for the user to throw it away."""
    fit(tmp_path, steps=4)
    file = tmp_path / "net-checkpoint" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"net-checkpoint is damaged .* delete it to start over"):
        fit(tmp_path, steps=4)
    assert file.exists()


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


def refusal(folder: Path, **changes: object) -> str:
    """What a second run with other settings is told, in the folder of a first one."""
    fit(folder, steps=4)
    with pytest.raises(UserError) as refused:
        fit(folder, **{"steps": 4, **changes})
    assert "\n" not in str(refused.value)
    return str(refused.value)


class TestAnotherTraining:
    def test_other_settings_are_refused_by_name(self, tmp_path):
        known = {"--exclude_class": None}
        fit(tmp_path / "a", decided_by=known)
        with pytest.raises(UserError, match=r"--exclude_class was None and is 7; use the same settings, another"):
            fit(tmp_path / "a", decided_by={"--exclude_class": "7"})
        fit(tmp_path / "a", decided_by=known)

    def test_other_settings_of_the_loop_are_refused(self, tmp_path):
        assert "learning_rate was 0.1 and is 0.2" in refusal(tmp_path / "a", learning_rate=0.2)
        assert "seed was 3 and is 4" in refusal(tmp_path / "b", seed=4)
        assert "ema_decay was 0.999 and is 0.9" in refusal(tmp_path / "c", ema_decay=0.9)
        assert "network was" in refusal(tmp_path / "d", width=2)

    def test_more_or_fewer_steps_of_a_falling_rate_are_another_course(self, tmp_path):
        """Half a cosine over 4 steps is not the beginning of one over 8; over none of the last steps it is."""
        assert "has 4 steps of a course of 4" in refusal(tmp_path / "a", steps=8)
        assert "has 4 steps of a course of 4" in refusal(tmp_path / "b", steps=3)
        fit(tmp_path / "c", steps=4, decay_steps=0)
        fit(tmp_path / "c", steps=8, decay_steps=4)
        with pytest.raises(UserError, match="has 8 steps of a course of 8, whose learning rate falls from step 4 on"):
            fit(tmp_path / "c", steps=9, decay_steps=0)

    def test_going_on_from_another_training_is_said_and_recorded(self, tmp_path):
        """The first four steps of other data, then six: the bits of a copied checkpoint, and a record of both."""
        first = {"decay_steps": 0, "decided_by": {"--exclude": "all"}}
        fit(tmp_path / "shared", steps=4, **first)
        earlier = tmp_path / "shared" / "net-checkpoint"
        rest = {"decay_steps": 4, "decided_by": {"--exclude": "one"}, "goes_on_from": earlier}
        _, losses = fit(tmp_path / "own", **rest)
        assert len(losses) == 6
        record = load_state(tmp_path / "own" / "net-checkpoint")[1]["decided_by"]
        assert record["--exclude"] == "one"
        assert (record["first steps"]["step"], record["first steps"]["--exclude"]) == (4, "all")
        assert fit(tmp_path / "own", **rest)[1] == []
        with pytest.raises(UserError, match="first steps was"):
            fit(tmp_path / "own", **{**rest, "goes_on_from": None})
        with pytest.raises(UserError, match="network was"):
            fit(tmp_path / "wide", **rest, width=2)
        with pytest.raises(UserError, match="has 4 steps of a course of 4"):
            fit(tmp_path / "long", **{**rest, "decay_steps": None})

    def test_a_checkpoint_that_does_not_say_is_refused(self, tmp_path):
        fit(tmp_path)
        tensors, state = load_state(tmp_path / "net-checkpoint")
        del state["decided_by"]
        save_state(tmp_path / "net-checkpoint", tensors, state)
        with pytest.raises(UserError, match="does not say what it was trained with"):
            fit(tmp_path)


def test_the_loss_scale_is_gone_on_with(tmp_path):
    """A scale that doubles every second step: a new one would start at 4 again."""
    scales = {}
    for name, stop in (("whole", None), ("parts", 6), ("parts", None)):
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        if stop is None:
            fit(tmp_path / name, scaler=scaler)
            scales[name] = scaler.get_scale()
        else:
            with pytest.raises(KeyboardInterrupt):
                fit(tmp_path / name, scaler=scaler, stop_at=stop)
    assert scales == {"whole": 4.0 * 2**5, "parts": 4.0 * 2**5}


def test_divergence_is_told_and_not_kept(tmp_path):
    with pytest.raises(
        UserError, match=r"The training of net diverged: .* after 4 steps, .* use a lower learning rate"
    ):
        fit(tmp_path, steps=4, learning_rate=1e38)
    assert not (tmp_path / "net-checkpoint").exists()


def test_kept_tensors_of_something_else_are_refused(tmp_path):
    save_file({"latents": torch.ones(2)}, tmp_path / "latents", {"decided_by": "seed 0"})
    assert load_kept(tmp_path / "latents", "seed 0")["latents"].tolist() == [1, 1]
    with pytest.raises(UserError, match="was made of seed 0, asked for is seed 1; delete it, or use another"):
        load_kept(tmp_path / "latents", "seed 1")
    save_file({"latents": torch.ones(2)}, tmp_path / "old")
    with pytest.raises(UserError, match="was made of something unknown"):
        load_kept(tmp_path / "old", "seed 1")


def test_identity_of_tensors():
    """Names, shapes, types and values all count."""
    one = tensors_sha256({"x": torch.zeros(4)})
    others = [{"y": torch.zeros(4)}, {"x": torch.zeros(2, 2)}, {"x": torch.zeros(4, dtype=torch.int32)}]
    others.append({"x": torch.tensor([0.0, 0, 0, 1e-40])})
    assert len({one, *map(tensors_sha256, others)}) == 5
    assert tensors_sha256({"x": torch.zeros(8)[::2]}) == one
