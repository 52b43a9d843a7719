"""A step is the same however it is cut up: by processes, by micro-batches, evenly or not."""

from __future__ import annotations

import os

import pytest
import torch
from tiny_runs import tiny_settings

from salun_diffusers.diffusion import trainer
from salun_diffusers.diffusion.batches import Draws
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.diffusion.global_batch import GlobalBatch, Share
from salun_diffusers.diffusion.latent_sets import EraseData, LatentSet
from salun_diffusers.diffusion.objectives import PromptSwap
from salun_diffusers.diffusion.presets.stable_diffusion import STABLE_DIFFUSION
from salun_diffusers.diffusion.settings import Settings, resolve
from salun_diffusers.errors import UserError
from salun_diffusers.programs.erase import main
from salun_diffusers.seeds import stream

WORDS = ["a photo of a circle"], ["a photo of a square"], ["a star", "a heart"], [""]


def settings_of(**flags: object) -> Settings:
    return resolve(EraseConfig(concept="disc", **flags), STABLE_DIFFUSION["paper"])


class TestWhatTheFlagsMean:
    def test_a_presets_batch_is_that_of_a_step(self):
        for processes, accumulation in ((1, 1), (2, 1), (8, 4)):
            batch = GlobalBatch.of(settings_of(gradient_accumulation_steps=accumulation), processes)
            assert (batch.size, batch.parts) == (8, processes * accumulation)

    def test_the_flags_batch_is_that_of_a_process_and_micro_batch(self):
        """As in diffusers' scripts: total_batch_size = train_batch_size · num_processes · accumulation."""
        batch = GlobalBatch.of(settings_of(train_batch_size=3, gradient_accumulation_steps=4), 2)
        assert (batch.size, batch.largest) == (24, 3)

    def test_a_scaled_rate_needs_the_users(self):
        with pytest.raises(UserError, match=r"--scale_lr multiplies --learning_rate.*1e-05"):
            settings_of(scale_lr=True)
        assert settings_of(scale_lr=True, learning_rate=1e-6).scale_lr

    @pytest.mark.parametrize(
        ("size", "parts", "words"),
        [(8, 4, ""), (8, 3, "--train_batch_size 3 is 9 in all"), (2, 8, "--train_batch_size 1 is 8 in all")],
    )
    def test_an_uneven_cut_is_warned_of(self, size, parts, words):
        warning = GlobalBatch(size, parts, 1).warning
        assert bool(warning) == bool(words) and words in warning


class TestShares:
    @pytest.mark.parametrize(("size", "processes", "accumulation"), [(8, 1, 1), (8, 2, 2), (8, 3, 1), (7, 2, 3)])
    def test_every_row_once_and_weights_of_mean_one(self, size, processes, accumulation):
        batch = GlobalBatch(size, processes, accumulation)
        shares = [share for rank in range(processes) for share in batch.shares([5], rank)]
        assert sorted(row for share in shares for row in share.rows) == list(range(size))
        assert {(share.step, share.size) for share in shares} == {(5, size)}
        assert sum(share.weight for share in shares) / len(shares) == pytest.approx(1)
        assert max(len(share.rows) for share in shares) == batch.largest

    def test_what_is_left_without_rows_takes_one_that_does_not_count(self):
        shares = [share for rank in range(3) for share in GlobalBatch(2, 3, 1).shares([0], rank)]
        assert [(share.rows, share.weight) for share in shares] == [
            (range(1), 0), (range(0, 1), 1.5), (range(1, 2), 1.5),
        ]  # fmt: skip

    def test_cuts_hold_what_the_whole_step_holds(self, tiny_pipeline):
        """Forget rows in order, then retain rows, of every tensor."""
        family = StableDiffusion(tiny_pipeline, device=torch.device("cpu"))
        latents = [torch.randn(count, 4, 4, 4, generator=stream(0, str(count))) for count in (5, 3)]
        sets = [LatentSet(x, torch.arange(len(x)) % len(w), tuple(w)) for x, w in zip(latents, WORDS[::2], strict=True)]
        data = EraseData(*sets, LatentSet.empty(WORDS[1]), *map(family.encode, WORDS))
        objective = PromptSwap(0.5, teacher="current", retain_target="noise")
        draws = Draws(family, data, objective, tiny_settings(empty_prompt_share=0.5), ())
        (whole,) = (draws.batch(share) for share in GlobalBatch(7, 1, 1).shares([2], 0))
        cuts = [draws.batch(share) for rank in range(3) for share in GlobalBatch(7, 3, 1).shares([2], rank)]
        assert [len(cut.noised) for cut in cuts] == [4, 4, 6]
        for name in ("noised", "timesteps", "truth"):
            halves = zip(*(getattr(cut, name).chunk(2) for cut in cuts), strict=True)
            assert torch.equal(torch.cat([torch.cat(half) for half in halves]), getattr(whole, name))
        for name in ("conditions", "anchor_conditions"):
            halves = zip(*(getattr(cut, name)["encoder_hidden_states"].chunk(2) for cut in cuts), strict=True)
            expected = getattr(whole, name)["encoder_hidden_states"]
            assert torch.equal(torch.cat([torch.cat(half) for half in halves]), expected)


@pytest.mark.parametrize("recipe", ["paper", "frozen_teacher"])
def test_training_does_not_depend_on_the_cut(trained, recipe):
    """Global batch 4, whole, in halves, in 1 + 1 + 2 and in six parts of which two hold nothing."""
    (rows, whole), *others = (
        trained(train_batch_size=4, gradient_accumulation_steps=cuts, recipe=recipe, retain_weight=0.5)
        for cuts in (1, 2, 3, 6)
    )
    for history, weights in others:
        for name in ("loss", "forget_loss", "retain_loss"):
            assert [row[name] for row in history] == pytest.approx([row[name] for row in rows], rel=1e-4, abs=1e-7)
        for name, value in weights.items():
            torch.testing.assert_close(value, whole[name], atol=2e-6, rtol=0)


def test_the_decaying_penalty_of_l1_sparse_is_not_cut(trained):
    whole, cut = (
        trained(train_batch_size=4, gradient_accumulation_steps=cuts, objective="l1_sparse", l1_weight=1.0)[0][0]
        for cuts in (1, 3)
    )
    assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    assert whole["loss"] > 10 * whole["retain_loss"]


def test_a_scaled_rate(trained):
    """4 rows of 2 micro-batches in 1 process: 8 times the rate, as lr · accumulation · batch · processes."""
    history, _ = trained(
        train_batch_size=4, gradient_accumulation_steps=2, batch_of="process", scale_lr=True, learning_rate=1e-7
    )
    assert [row["learning_rate"] for row in history] == pytest.approx([8e-7] * 4)


def test_who_trains_back_steps_by_the_scaled_rate(trained, monkeypatch):
    """Twice the run's own rate, which is 8 · 1e-7."""
    flags = {"train_batch_size": 4, "gradient_accumulation_steps": 2, "scale_lr": True, "learning_rate": 1e-7}
    flags |= {"robust": "relearning", "recipe": "paper"}

    def stopped(selected, robustness):
        raise InterruptedError(f"{robustness.weight_rate:.4g}")

    monkeypatch.setattr(trainer, "TrainingBack", stopped)
    with pytest.raises(InterruptedError, match=r"^1\.6e-06$"):
        trained(**flags, batch_of="process")


class TestWhatIsSaid:
    def test_of_the_batch(self, small_run, tmp_path, capsys):
        words = small_run(
            output_dir=tmp_path / "run", train_batch_size=None, gradient_accumulation_steps=3, max_train_steps=1
        )
        assert main(words) == 0
        err = capsys.readouterr().err
        assert "note: fine-tuning takes 1 steps; global batch 8 + 8 (2 or 3 + as many per process and" in err
        assert "warning: a global batch of 8 cannot be cut evenly for 1 processes × 3 accumulated" in err

    def test_in_a_plan(self, small_run, capsys, monkeypatch):
        monkeypatch.setitem(os.environ, "WORLD_SIZE", "4")
        assert main(small_run(dry_run=True, train_batch_size=None)) == 0
        assert "global batch 8 + 8 (2 + as many per process and micro-batch, processes 4" in capsys.readouterr().out


def test_equal_rows_are_equal_shares():
    assert Share(0, 4, range(2), 1.0) == Share(0, 4, range(0, 2), 1.0)
