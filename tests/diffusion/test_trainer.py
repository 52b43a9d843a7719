"""The fine-tuning loop: its draws, its arithmetic, its record and its checkpoints."""

from __future__ import annotations

import errno
import json
import math
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
import torch
from tiny_runs import run_in, tiny_settings
from torch import Tensor

from salun_diffusers.accelerator import engine
from salun_diffusers.diffusion import trainer
from salun_diffusers.diffusion.batches import Draws, shuffled
from salun_diffusers.diffusion.config import LearningRateCourse
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.diffusion.global_batch import GlobalBatch
from salun_diffusers.diffusion.latent_sets import EraseData, LatentSet
from salun_diffusers.diffusion.objectives import EraseBatch, PromptSwap
from salun_diffusers.diffusion.settings import Length
from salun_diffusers.diffusion.trainer import error_scale, fine_tune, learning_rates, not_watched
from salun_diffusers.errors import UserError
from salun_diffusers.files.kept_checkpoints import checkpoints
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.selected_weights import SelectedWeights
from salun_diffusers.seeds import stream

SETTINGS = tiny_settings(learning_rate=1e-5)
FORGET, ANCHOR, RETAIN = ["a photo of a circle", "a circle"], ["a photo of a square", "a square"], ["a star", "a heart"]


@pytest.fixture
def family(tiny_pipeline: Path) -> StableDiffusion:
    return StableDiffusion(tiny_pipeline, device=torch.device("cpu"))


@pytest.fixture
def data(family) -> EraseData:
    def latents(name: str, count: int, prompts: list[str]) -> LatentSet:
        drawn = torch.randn(count, 4, 4, 4, generator=stream(0, name))
        return LatentSet(drawn, torch.arange(count) % len(prompts), tuple(prompts))

    return EraseData(
        latents("forget", 5, FORGET), latents("retain", 3, RETAIN), LatentSet.empty(ANCHOR),
        *map(family.encode, (FORGET, ANCHOR, RETAIN, [""])),
    )  # fmt: skip


def parameters_of(family: StableDiffusion) -> dict[str, torch.nn.Parameter]:
    return dict(family.denoiser.named_parameters())


def values_of(family: StableDiffusion) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters_of(family).items()}


def half(family: StableDiffusion) -> SaliencyMask:
    return SaliencyMask.random(parameters_of(family), 0.5, torch.Generator().manual_seed(1))


def train(
    family, data, folder, mask=None, recipe="paper", resume_from=None, scaler=None, watch=not_watched, **changes
) -> list[dict]:
    settings = tiny_settings(**{"learning_rate": 1e-5, **changes, "recipe": recipe})
    selected = SelectedWeights(parameters_of(family), mask or half(family))
    with engine(
        mixed_precision="no", gradient_accumulation_steps=settings.gradient_accumulation_steps, report_to=None
    ) as accelerator:
        accelerator.scaler = scaler  # accelerate makes one for fp16, which needs a GPU
        run = run_in(folder, accelerator)
        return fine_tune(run, family, selected, data, settings, resume_from, watch)


def drawn(family, data, step: int, part: int = 0, **changes: object) -> EraseBatch:
    """The draws of one micro-batch."""
    objective, settings = PromptSwap(0.5, teacher="current", retain_target="noise"), tiny_settings(**changes)
    share = GlobalBatch.of(settings, 1).shares([step], 0)[part]
    return Draws(family, data, objective, settings, ()).batch(share)


class TestDraws:
    @pytest.mark.parametrize(("count", "batch"), [(10, 3), (8, 8), (5, 2), (3, 7)])
    def test_every_item_once_per_pass(self, count, batch):
        """Consecutive batches are a stream of whole passes; the official loop once drew its first batch for ever."""
        batches = [shuffled(count, batch, step * batch, seed=0, name="forget") for step in range(3 * count)]
        assert all(len(one) == batch for one in batches)
        passes = torch.cat(batches).view(-1, count)
        assert len(passes) == 3 * batch
        assert all(sorted(one.tolist()) == list(range(count)) for one in passes)
        assert len({tuple(one.tolist()) for one in passes}) > 1
        assert len({tuple(one.tolist()) for one in batches}) > 1

    def test_depend_on_position_seed_and_name_only(self):
        def picked(**changes):
            return shuffled(50, 8, **{"position": 40, "seed": 0, "name": "forget", **changes}).tolist()

        assert picked() == picked()
        assert len({tuple(picked(**c)) for c in ({}, {"position": 48}, {"seed": 1}, {"name": "retain"})}) == 4

    def test_prompts_go_with_their_latents(self, family, data):
        """x_t = √ᾱ x_0 + √(1-ᾱ) ε is solved for x_0, which tells the item and hence its prompts."""
        batch = drawn(family, data, 3)
        alpha = family.schedule.alphas[batch.timesteps].view(-1, 1, 1, 1)
        clean = (batch.noised - (1 - alpha).sqrt() * batch.truth) / alpha.sqrt()
        for row, (kind, states, anchors) in enumerate(
            [(data.forget, data.forget_conditions, data.anchor_conditions)] * 2
            + [(data.retain, data.retain_conditions, data.retain_conditions)] * 2
        ):
            item = int((kind.latents - clean[row]).flatten(1).norm(dim=1).argmin())
            prompt = int(kind.prompt_index[item])
            key = "encoder_hidden_states"
            assert torch.equal(batch.conditions[key][row], states[key][prompt])
            assert torch.equal(batch.anchor_conditions[key][row], anchors[key][prompt])

    def test_both_sets_are_gone_through_step_by_step(self, family, data):
        """15 steps of 2: each of 5 forget items comes 6 times, each of 3 retain items 10 times."""
        found = {"forget": [], "retain": []}
        for step in range(15):
            batch = drawn(family, data, step)
            alpha = family.schedule.alphas[batch.timesteps].view(-1, 1, 1, 1)
            clean = (batch.noised - (1 - alpha).sqrt() * batch.truth) / alpha.sqrt()
            for kind, rows in zip(found, clean.chunk(2), strict=True):
                known = getattr(data, kind).latents.flatten(1)
                found[kind] += torch.cdist(rows.flatten(1), known).argmin(dim=1).tolist()
        assert Counter(found["forget"]) == dict.fromkeys(range(5), 6)
        assert Counter(found["retain"]) == dict.fromkeys(range(3), 10)

    @pytest.mark.parametrize("taught", [False, True], ids=["training", "training back"])
    def test_what_is_true_is_what_the_network_speaks(self, family, data, taught):
        """v = √ᾱ ε - √(1-ᾱ) x_0, so that x_0 = √ᾱ x_t - √(1-ᾱ) v is an item of the sets."""
        family.schedule.prediction = "v_prediction"
        share = GlobalBatch(4, 1, 1).shares([3], 0)[0]
        draws = Draws(family, data, PromptSwap(0.5, "current", "noise"), SETTINGS, ())
        batch = draws.relearning(share) if taught else draws.batch(share)
        alpha = family.schedule.alphas[batch.timesteps].view(-1, 1, 1, 1)
        clean = (alpha.sqrt() * batch.noised - (1 - alpha).sqrt() * batch.truth).flatten(1)
        for rows, known in zip(clean.split(4), (data.forget, data.retain), strict=not taught):
            assert float(torch.cdist(rows, known.latents.flatten(1)).amin(dim=1).max()) < 1e-5

    def test_share_of_empty_prompts(self, family, data):
        def blanks(share: float) -> int:
            total = 0
            for position in range(20):
                batch = drawn(family, data, position, train_batch_size=10, empty_prompt_share=share)
                states, empty = batch.conditions["encoder_hidden_states"], data.empty["encoder_hidden_states"]
                same = [torch.equal(state, empty[0]) for state in states]
                assert not any(same[:10])
                assert torch.equal(batch.anchor_conditions["encoder_hidden_states"][10:], states[10:])
                total += sum(same[10:])
            return total

        assert [blanks(0.0), blanks(1.0)] == [0, 200]
        assert 20 <= blanks(0.2) <= 60  # 40 expected, standard deviation 5.7.


def official_training(family, data, mask, *, accumulation=1) -> list[float]:
    """The official step in plain torch, after OPTML-Group/Unlearn-Saliency@a6e89fd, SD/train-scripts/nsfw_removal.py.

    L = mean (ε(z_f, c) - sg ε(z_f, c'))² + α mean (ε_r - ε(z_r, c_r))², three forwards, the teacher being the present
    network; then grad *= mask for every parameter, then Adam without weight decay. With accumulation the gradient is
    the mean over the micro-batches.
    """
    network, parameters = family.denoiser, parameters_of(family)
    adam = torch.optim.Adam(parameters.values(), lr=SETTINGS.learning_rate)
    losses = []
    for step in range(SETTINGS.length.amount):
        adam.zero_grad()
        losses.append(0.0)
        for micro in range(accumulation):
            batch = drawn(family, data, step, micro, gradient_accumulation_steps=accumulation, batch_of="process")
            (z_f, z_r), (t_f, t_r) = batch.noised.chunk(2), batch.timesteps.chunk(2)
            c, c_r = batch.conditions["encoder_hidden_states"].chunk(2)
            c_anchor, _ = batch.anchor_conditions["encoder_hidden_states"].chunk(2)
            remain = (batch.truth.chunk(2)[1] - network(z_r, t_r, c_r).sample).square().mean()
            forget = network(z_f, t_f, c).sample
            pseudo = network(z_f, t_f, c_anchor).sample.detach()
            loss = ((forget - pseudo).square().mean() + SETTINGS.retain_weight * remain) / accumulation
            loss.backward()
            losses[-1] += loss.item()
        for name, parameter in parameters.items():
            parameter.grad *= mask[name]
        adam.step()
    return losses


class TestParity:
    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_paper_recipe_equals_plain_torch_with_masked_gradients(self, tiny_pipeline, data, tmp_path, accumulation):
        """Weights to 1e-6 after four Adam steps of 1e-5, frozen ones to the bit."""
        ours, plain = (StableDiffusion(tiny_pipeline, device=torch.device("cpu")) for _ in range(2))
        before, mask = values_of(ours), half(ours)
        history = train(ours, data, tmp_path, mask, gradient_accumulation_steps=accumulation, batch_of="process")
        losses = official_training(plain, data, mask, accumulation=accumulation)
        assert [row["loss"] for row in history] == pytest.approx(losses, rel=1e-5)
        moved = 0
        for name, value in values_of(ours).items():
            torch.testing.assert_close(value, parameters_of(plain)[name].detach(), atol=1e-6, rtol=0)
            assert torch.equal(value[~mask[name]], before[name][~mask[name]])
            moved += int((value != before[name]).sum())
        assert moved > 0.9 * mask.number_selected


class TestErrorScale:
    def test_weights_by_hand(self, family, monkeypatch):
        """p = 1/2: SNR 4, 1, 1/16 and 1/10,000 weigh 1/2, 1, 4 and, as 100 is above the limit, 10."""
        ratios = torch.tensor([4.0, 1.0, 1 / 16, 1e-4])
        monkeypatch.setattr(family.schedule, "signal_to_noise", lambda timesteps: ratios[timesteps])
        weights = error_scale(family, torch.arange(4), 0.5).square()
        torch.testing.assert_close(weights, torch.tensor([0.5, 1.0, 4.0, 10.0]))
        assert error_scale(family, torch.arange(4), 0.0).tolist() == [1, 1, 1, 1]

    def test_the_ratio_is_the_schedules(self, family):
        """Linear betas from 0.0001 to 0.02: ᾱ_0 = 0.9999, so SNR_0 = 9999; at the end next to nothing is left."""
        found = family.schedule.signal_to_noise(torch.tensor([0, 999]))
        assert float(found[0]) == pytest.approx(9999, rel=1e-3)
        assert 0 < float(found[1]) < 1e-4

    def test_the_loss_is_weighted(self, family, data, tmp_path, monkeypatch):
        """With SNR 1/16 everywhere, p = 1/2 makes every squared error 4 times as large."""
        monkeypatch.setattr(family.schedule, "signal_to_noise", lambda timesteps: torch.full((len(timesteps),), 1 / 16))
        rows = []
        for power in (0.0, 0.5):
            (tmp_path / str(power)).mkdir()
            rows.append(train(family, data, tmp_path / str(power), max_train_steps=1, snr_power=power,
                              learning_rate=1e-12)[0])  # fmt: skip
        for term in ("loss", "forget_loss", "retain_loss"):
            assert rows[1][term] == pytest.approx(4 * rows[0][term], rel=1e-4)


class TestFineTune:
    def test_record(self, family, data, tmp_path):
        history = train(family, data, tmp_path, recipe="frozen_teacher", lr_scheduler="linear")
        assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == history
        assert [row["step"] for row in history] == [1, 2, 3, 4]
        assert [row["learning_rate"] for row in history] == pytest.approx([1e-5, 7.5e-6, 5e-6, 2.5e-6])
        for row in history:
            assert row["loss"] == pytest.approx(row["forget_loss"] + 0.5 * row["retain_loss"])
        # Before the first step the student is the base, which holds the retained half to itself.
        assert history[0]["retain_loss"] == 0.0 < history[1]["retain_loss"]
        assert history[0]["forget_loss"] > 0

    def test_the_penalty_of_l1_sparse_falls_from_its_whole(self, family, data, tmp_path):
        """γ (1 - i/n) Σ |θ| before step i of 2: all of it, then half; the weights hardly move."""
        size = sum(float(parameter.detach().abs().sum()) for parameter in family.denoiser.parameters())
        history = train(family, data, tmp_path, objective="l1_sparse", l1_weight=0.1, max_train_steps=2,
                        learning_rate=1e-12)  # fmt: skip
        penalties = [row["loss"] - row["retain_loss"] for row in history]
        assert penalties == pytest.approx([0.1 * size, 0.05 * size], rel=1e-4)

    def test_the_network_is_in_evaluation_mode(self, family, data, tmp_path):
        """Student and target have no dropout, whatever mode the network came in."""
        family.denoiser.train()
        modes = []
        train(family, data, tmp_path, max_train_steps=1, watch=lambda *_: modes.append(family.denoiser.training))
        assert modes == [False]

    def test_clipping_bounds_the_update_of_the_selected_weights(self, family, data, tmp_path):
        """At Adam's first step Δ = lr · g / (|g| + ε); with ε = 1e4 that is lr / ε · g, and the norm of g is clipped.

        Only selected weights count: a norm over all gradients would be about √2 larger and the step that much shorter.
        """
        before = values_of(family)
        train(
            family, data, tmp_path, max_train_steps=1, learning_rate=100.0, adam_epsilon=1e4, max_grad_norm=0.01
        )  # fmt: skip
        squares = [(value - before[name]).square().sum() for name, value in values_of(family).items()]
        assert float(torch.stack(squares).sum().sqrt()) == pytest.approx(100 / 1e4 * 0.01, rel=2e-2)

    def test_weight_decay_cannot_move_frozen_weights(self, family, data, tmp_path):
        before, mask = values_of(family), half(family)
        train(family, data, tmp_path, mask, learning_rate=1e-2, adam_weight_decay=0.5, max_grad_norm=1.0)
        after = values_of(family)
        assert all(torch.equal(after[name][~mask[name]], before[name][~mask[name]]) for name in mask)
        assert sum(int((after[name] != before[name]).sum()) for name in mask) > 0.9 * mask.number_selected

    def test_gradient_checkpointing_changes_nothing_but_memory(self, tiny_pipeline, data, tmp_path):
        results = []
        for number, wanted in enumerate((False, True)):
            family = StableDiffusion(tiny_pipeline, device=torch.device("cpu"))
            (tmp_path / str(number)).mkdir()
            train(family, data, tmp_path / str(number), gradient_checkpointing=wanted)
            assert family.denoiser.is_gradient_checkpointing is wanted
            results.append(values_of(family))
        for name, value in results[0].items():
            torch.testing.assert_close(results[1][name], value, atol=1e-6, rtol=0)


class TestCheckpoints:
    def test_limit_keeps_the_newest(self, family, data, tmp_path):
        train(family, data, tmp_path, max_train_steps=6, checkpointing_steps=1, checkpoints_total_limit=2)
        assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-6"]

    def test_are_read_in_order_of_steps(self, tmp_path):
        for name in ("checkpoint-10", "checkpoint-9", "checkpoint-best", ".checkpoint-11.partial"):
            (tmp_path / name).mkdir()
        assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]

    def test_full_disk_leaves_the_last_one(self, family, data, tmp_path, monkeypatch):
        """The old checkpoint goes only when the new one is there, and nothing half-written stays."""
        from salun_diffusers.files import stored_weights

        save = stored_weights.save_file

        def full(tensors, path, **keywords):
            if "checkpoint-2" in str(path):
                Path(path).write_bytes(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
            save(tensors, path, **keywords)

        monkeypatch.setattr(stored_weights, "save_file", full)
        with pytest.raises(UserError, match="disk is full: checkpoint-2 could not be written"):
            train(family, data, tmp_path, checkpointing_steps=1, checkpoints_total_limit=1)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "metrics.jsonl"]

    @pytest.mark.parametrize("recipe", ["paper", "frozen_teacher"])
    def test_resumed_weights_are_bit_identical(self, tiny_pipeline, data, tmp_path, recipe):
        first, second = (StableDiffusion(tiny_pipeline, device=torch.device("cpu")) for _ in range(2))
        common = {"recipe": recipe, "checkpointing_steps": 3, "adam_weight_decay": 0.1, "empty_prompt_share": 0.5}
        history = train(first, data, tmp_path, max_train_steps=5, **common)
        again = train(
            second, data, tmp_path, max_train_steps=5, resume_from=tmp_path / "checkpoint-3", **common
        )  # fmt: skip
        assert again == history
        expected = values_of(first)
        assert all(torch.equal(value, expected[name]) for name, value in values_of(second).items())

    def test_the_loss_scale_of_fp16_goes_on_where_it_was(self, tiny_pipeline, data, tmp_path):
        """It begins at 4 and doubles every second step: 8 after three steps, 16 after five."""

        def after_five(**changes) -> dict:
            scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
            family = StableDiffusion(tiny_pipeline, device=torch.device("cpu"))
            train(family, data, tmp_path, max_train_steps=5, checkpointing_steps=3, scaler=scaler, **changes)
            return scaler.state_dict()

        whole = after_five()
        kept = json.loads((tmp_path / "checkpoint-3" / "state.json").read_text())["scaler"]
        assert (kept["scale"], kept["_growth_tracker"], whole["scale"]) == (8.0, 1, 16.0)
        assert after_five(resume_from=tmp_path / "checkpoint-3") == whole


class TestDivergence:
    def test_nan_loss_stops_and_names_the_last_good_state(self, family, data, tmp_path):
        """Item k of the forget set is bad; the first step that draws it is the one that is named."""
        bad = int(shuffled(5, 2, 2, seed=SETTINGS.seed, name="forget")[0])
        data.forget.latents[bad] = math.nan
        with pytest.raises(UserError, match=r"loss became nan at step 2.*last good state is .*checkpoint-1.*Lower"):
            train(family, data, tmp_path, checkpointing_steps=1)
        assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1"]
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1

    def test_a_ruined_weight_is_not_saved(self, family, data, tmp_path):
        with pytest.raises(UserError, match=r"weight became infinite or NaN at step 1.*no checkpoint had been written"):
            train(family, data, tmp_path, learning_rate=1e39, max_train_steps=1)

    def test_nor_kept_as_a_checkpoint(self, family, data, tmp_path, monkeypatch):
        monkeypatch.setattr(trainer, "learning_rates", lambda settings, steps: lambda step: 1e39 if step == 1 else 1e-5)
        with pytest.raises(UserError, match=r"at step 2.*last good state is .*checkpoint-1"):
            train(family, data, tmp_path, checkpointing_steps=1)
        assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1"]


@pytest.mark.parametrize(
    ("kind", "numbers", "factors"),
    [
        ("constant", {}, [1, 1, 1, 1]),
        ("constant_with_warmup", {"lr_warmup_steps": 2}, [0, 1 / 2, 1, 1]),
        # 1/2 (1 + cos(π k / 4))
        ("cosine", {}, [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
        # Two cycles of two steps: each begins at 1 and is at 1/2 after half of it.
        ("cosine_with_restarts", {"lr_num_cycles": 2}, [1, 0.5, 1, 0.5]),
        ("linear", {}, [1, 3 / 4, 2 / 4, 1 / 4]),
        # Two steps of warm-up at 0 and 1/2, then the line from 1 to 0.
        ("linear", {"lr_warmup_steps": 2}, [0, 1 / 2, 1, 1 / 2]),
        # (1 - k / 4)², down to diffusers' last rate of 1e-7, which is 1e-5 of this one.
        ("polynomial", {"lr_power": 2.0}, [1, 9 / 16 + 7e-5 / 16, 1 / 4 + 3e-5 / 4, 1 / 16 + 15e-5 / 16]),
        ("piecewise_constant", {"lr_step_rules": "1:1,0.5:3,0.1"}, [1, 0.5, 0.5, 0.1]),
    ],
)
def test_rates_by_hand(kind, numbers, factors):
    rates = learning_rates(tiny_settings(learning_rate=0.01, lr_scheduler=kind, **numbers), 4)
    assert [rates(step) for step in range(4)] == pytest.approx([0.01 * factor for factor in factors], abs=1e-9)


def test_every_name_of_diffusers_is_a_course():
    from diffusers.optimization import SchedulerType

    assert set(get_args(LearningRateCourse)) == {kind.value for kind in SchedulerType}


@pytest.mark.parametrize(
    ("count", "processes", "accumulation", "epochs", "steps"),
    [
        (963, 1, 1, 5, 605),  # Imagenette's class 0 in the official script: 5 · ⌈963 / 8⌉.
        (800, 1, 1, 1, 100),
        (800, 2, 1, 1, 50),
        (800, 2, 3, 2, 34),  # 2 · ⌈800 / 48⌉
    ],
)
def test_steps_by_hand(count, processes, accumulation, epochs, steps):
    assert Length(epochs, "epochs").steps(count, 8 * processes * accumulation) == steps
    assert Length(9, "steps").steps(count, 8 * processes * accumulation) == 9
