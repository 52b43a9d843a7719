"""Erasures that stand: inner attacks, projected gradients, simulated relearning, and what they are refused with.

The step is compared with one that is written out here in plain torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from tiny_runs import tiny_settings
from torch import Tensor, nn
from two_processes import run_two

from salun_diffusers.accelerator import engine
from salun_diffusers.diffusion import sharding
from salun_diffusers.diffusion.batches import Draws
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.diffusion.global_batch import GlobalBatch, Share
from salun_diffusers.diffusion.inner_attack import STATES, attacked, moved
from salun_diffusers.diffusion.latent_set import LatentSet
from salun_diffusers.diffusion.latent_sets import EraseData
from salun_diffusers.diffusion.objectives import EraseBatch, PromptSwap
from salun_diffusers.diffusion.presets.known import find_concept
from salun_diffusers.diffusion.robust_step import RobustStep, Rows, alone
from salun_diffusers.diffusion.robustness import Robustness, robust_in_words
from salun_diffusers.diffusion.settings import resolve
from salun_diffusers.diffusion.stage_marks import Sources, stage_marks
from salun_diffusers.diffusion.training_back import TrainingBack
from salun_diffusers.errors import UserError
from salun_diffusers.masks.conflict import without_conflict
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.selected_weights import SelectedWeights
from salun_diffusers.programs.erase import main
from salun_diffusers.seeds import stream

Trained = Callable[..., tuple[list[dict[str, Any]], dict[str, Tensor]]]
KINDS = ("embedding", "relearning", "both")


class TestProjection:
    def test_by_hand(self) -> None:
        """⟨g_f, g_r⟩ = 3 - 8 - 10 = -15 and ‖g_r‖² = 9 + 16 + 25 = 50: 0.3 g_r are added, over both tensors."""
        forget, retain = (
            [torch.tensor([1.0, -2.0]), torch.tensor([[-2.0]])],
            [torch.tensor([3.0, 4.0]), torch.tensor([[5.0]])],
        )
        found = without_conflict(forget, retain)
        torch.testing.assert_close(found[0], torch.tensor([1.9, -0.8]))
        torch.testing.assert_close(found[1], torch.tensor([[-0.5]]))
        assert float(sum((one * other).sum() for one, other in zip(found, retain, strict=True))) == pytest.approx(
            0, abs=1e-6
        )

    @pytest.mark.parametrize("retain", [[3.0, 1.0], [2.0, 1.0], [0.0, 0.0]], ids=["together", "across", "nothing"])
    def test_without_conflict_nothing_changes(self, retain: list[float]) -> None:
        forget = [torch.tensor([1.0, -2.0])]
        assert torch.equal(without_conflict(forget, [torch.tensor(retain)])[0], forget[0])


class TestInnerAttack:
    def test_a_sign_step_by_hand(self) -> None:
        """Two rows with rates of their own; the third value has no gradient, the last is at its limit already."""
        start = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
        values = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 3.0]])
        gradient = torch.tensor([[0.2, -9.0, 0.0], [1.0, -1.0, 5.0]])
        rate, budget = torch.tensor([[0.5], [2.0]]), torch.tensor([[1.0], [3.0]])
        found = moved(values, gradient, start, rate, budget)
        assert found.tolist() == [[1.5, 0.5, 1.0], [2.0, -2.0, 3.0]]
        assert moved(found, gradient, start, rate, budget).tolist() == [[2.0, 0.0, 1.0], [3.0, -3.0, 3.0]]

    def test_goes_up_within_its_budget_each_row_by_itself(self) -> None:
        states = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 4.0]).view(
            3, 1, 1
        )
        aim = torch.full_like(states, 9.0)

        def loss(of: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
            return lambda conditions: -F.mse_loss(conditions[STATES], of)

        given = {STATES: states, "time_ids": torch.ones(3, 6)}
        found = attacked(given, loss(aim), steps=4, budget=0.5)
        change = found[STATES] - states
        limit = 0.5 * states.flatten(1).std(dim=1).view(3, 1, 1)
        assert (change.abs() <= limit + 1e-6).all() and torch.allclose(change, limit.expand_as(change), atol=1e-6)
        assert found["time_ids"] is given["time_ids"] and not found[STATES].requires_grad
        one = attacked({STATES: states[1:2]}, loss(aim[1:2]), steps=4, budget=0.5)[STATES]
        assert torch.equal(one, found[STATES][1:2])
        half = attacked(given, loss(aim), steps=4, budget=0.5, reach=0.5)[STATES] - states
        torch.testing.assert_close(half, limit.expand_as(half) / 2)

    def test_under_fp16_slopes_do_not_vanish(self) -> None:
        """Of a mean over so many values they are below fp16's 6e-8; the loss scale lifts them, signs stay."""
        states = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
        network: Any = lambda states: states.mean(dim=1).half().float()  # noqa: E731  # slopes pass through fp16
        family = SimpleNamespace(denoiser=network, predict=lambda net, *given: net(given[-1][STATES]))
        draws = SimpleNamespace(family=family, objective=PromptSwap(1.0, "base", "base"))
        # As of a network that averages over a large picture.
        batch = EraseBatch(*[torch.zeros(1, 4)] * 3, {STATES: states})
        rows = Rows(batch, torch.full((1, 4), -1.0), torch.full((1, 1), 1e-4), "forget")
        moves = []
        for scaler in (None, SimpleNamespace(get_scale=lambda: 2.0**16)):
            accelerator = SimpleNamespace(autocast=nullcontext, scaler=scaler)
            attacker = SimpleNamespace(robustness=Robustness(condition_steps=2))
            step: Any = RobustStep(accelerator, network, attacker, draws, 1, lambda *_: torch.ones(1))  # type: ignore[arg-type]
            moves.append(step._attacked(rows)[STATES] - states)
        assert moves[0].abs().max() == 0 < moves[1].abs().min()
        assert (moves[1] > 0).all()

    def test_classes_have_no_states(self) -> None:
        with pytest.raises(
            UserError, match=r"States of a text encoder are required.*class_labels; use --robust relear"
        ):
            attacked({"class_labels": torch.zeros(1)}, lambda _: torch.zeros(()), steps=1, budget=1.0)


@pytest.mark.parametrize("half", ["forget", "retain"])
def test_one_half_alone(half: str) -> None:
    """ℓ = ‖·‖²_f + α ‖·‖²_r, one of them zero."""
    prediction, target = torch.full((2, 1), 3.0), torch.full((2, 1), 1.0)
    loss = alone(PromptSwap(0.5, "base", "base"), prediction, target, half)  # type: ignore[arg-type]
    assert [float(one) for one in loss] == ([4.0, 4.0, 0.0] if half == "forget" else [2.0, 0.0, 4.0])


class Toy(nn.Module):
    """ε = w ⊙ x + v · mean(states): two tensors, and a condition."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.w = nn.Parameter(torch.randn(4, generator=generator))
        self.v = nn.Parameter(torch.randn(4, generator=generator))

    def forward(self, noised: Tensor, states: Tensor) -> Tensor:
        return self.w.view(1, 4, 1, 1) * noised + (states.mean(dim=1) * self.v).view(-1, 4, 1, 1)


class ToyDraws:
    """Fixed batches, as `Draws` would give them."""

    def __init__(self, network: Toy, micro: int) -> None:
        self.objective = PromptSwap(2.0, "base", "base")
        self.family: Any = SimpleNamespace(
            device=torch.device("cpu"), denoiser=network,
            predict=lambda net, noised, timesteps, conditions: net(noised, conditions[STATES]),
        )  # fmt: skip
        generator = torch.Generator().manual_seed(6)

        def some(rows: int) -> tuple[Tensor, Tensor, Tensor]:
            return tuple(torch.randn(rows, *size, generator=generator) for size in ((4, 2, 2), (3, 4), (4, 2, 2)))  # type: ignore[return-value]

        # Retained is the opposite of what is forgotten, so that the gradients conflict.
        self.given = [
            (noised.repeat(2, 1, 1, 1), states.repeat(2, 1, 1), 5 * torch.cat([target, -target]))
            for noised, states, target in (some(2) for _ in range(micro))
        ]
        self.taught = [[some(2) for _ in range(micro)] for _ in range(3)]
        self.step, self._micro, self._taken = 0, micro, 0

    def upcoming(self, count: int) -> list[Share]:
        return [Share(self.step, 2, range(2), number) for number in range(count)]

    def next(self, network: nn.Module) -> tuple[EraseBatch, Tensor]:
        noised, states, target = self.given[self._taken % self._micro]
        self._taken += 1
        return EraseBatch(noised, torch.arange(4), target, {STATES: states}), target

    def relearning(self, share: Share) -> EraseBatch:
        noised, states, truth = self.taught[share.step][int(share.weight)]
        return EraseBatch(noised, torch.arange(2), truth, {STATES: states})


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize(
    "wanted",
    [
        Robustness(),
        Robustness(condition_steps=2, condition_budget=0.5),
        Robustness(weight_steps=2, weight_rate=0.05, weight_share=0.7),
        Robustness(2, 0.5, 2, 0.05, 0.7),
    ],
    ids=["plain", *KINDS],
)
def test_the_gradients_of_three_steps_by_hand(wanted: Robustness, micro: int) -> None:
    """A mask leaves w[0], w[2] and v[1:]; √w_t of row t is 1 + t / 10. The third step has a new attacker.

    No optimizer steps between them; after each the weights are what they were.
    """
    network = Toy()
    mask = {"w": torch.tensor([True, False, True, False]), "v": torch.tensor([False, True, True, True])}
    selected = SelectedWeights(dict(network.named_parameters()), SaliencyMask.from_bools(mask))
    draws, attacker = ToyDraws(network, micro), TrainingBack(selected, wanted)
    taken = []
    with engine(mixed_precision="no", gradient_accumulation_steps=micro, report_to=None) as accelerator:
        step = RobustStep(accelerator, network, attacker, draws, micro, lambda _, timesteps: 1 + timesteps / 10)  # type: ignore[arg-type]
        with selected.in_training(gather_as_they_come=True):
            for draws.step in range(3):
                told = step()
                taken.append((told, torch.cat([leaf.grad for leaf in selected.weights])))
                for leaf in selected.weights:
                    leaf.grad = None
    scale = (1 + torch.arange(4) / 10).view(4, 1, 1, 1)
    w, v = network.w.detach().clone(), network.v.detach().clone()

    def answer(w: Tensor, v: Tensor, noised: Tensor, states: Tensor) -> Tensor:
        return w.view(1, 4, 1, 1) * noised + (states.mean(dim=1) * v).view(-1, 4, 1, 1)

    def error(w: Tensor, v: Tensor, rows: slice, moves: list[Tensor] | None = None) -> Tensor:
        found = []
        for number, (noised, states, target) in enumerate(draws.given):
            c = states[rows] if moves is None else moves[number]
            found.append(((answer(w, v, noised[rows], c) - target[rows]) * scale[rows]).square().mean())
        return torch.stack(found).mean()

    def gradient(of: Callable[[Tensor, Tensor], Tensor], w: Tensor, v: Tensor) -> Tensor:
        leaves = [one.clone().requires_grad_() for one in (w, v)]
        both = torch.autograd.grad(of(*leaves), leaves)
        return torch.cat([one[mask[name]] for name, one in zip(("w", "v"), both, strict=True)])

    forget, retain = slice(0, 2), slice(2, 4)
    g_r = 2 * gradient(lambda w, v: error(w, v, retain), w, v)
    g_f = gradient(lambda w, v: error(w, v, forget), w, v)
    if wanted.condition_steps:
        moves = []
        for noised, states, target in draws.given:
            start = states[forget]
            limit = 0.5 * start.flatten(1).std(dim=1).view(2, 1, 1)
            at = start
            for _ in range(2):
                at = at.detach().requires_grad_()
                loss = ((answer(w, v, noised[forget], at) - target[forget]) * scale[forget]).square().mean()
                (g,) = torch.autograd.grad(loss, at)
                at = torch.minimum(torch.maximum(at.detach() + limit * g.sign(), start - limit), start + limit)
            moves.append(at)
        assert float(error(w, v, forget, moves)) > float(error(w, v, forget))
        g_f = g_f + gradient(lambda w, v: error(w, v, forget, moves), w, v)
    assert torch.equal(network.w, w) and torch.equal(network.v, v)
    assert torch.equal(selected.weights[0], w[mask["w"]]) and torch.equal(selected.weights[1], v[mask["v"]])
    there = [w, v]
    for number, (told, found) in enumerate(taken):
        total = g_f
        if wanted.weight_steps:

            def taught(w: Tensor, v: Tensor, number: int = number) -> Tensor:
                return torch.stack([F.mse_loss(answer(w, v, x, c), y) for x, c, y in draws.taught[number]]).mean()

            there = [one.clone() for one in ([w, v] if number == 2 else there)]
            sign = gradient(taught, *there).sign()
            there[0][mask["w"]] -= 0.05 * sign[:2]
            there[1][mask["v"]] -= 0.05 * sign[2:]
            assert float(told["relearning_loss"]) == pytest.approx(float(error(*there, forget)))
            total = g_f + 0.7 * gradient(lambda w, v: error(w, v, forget), *there)
        if wanted.condition_steps:
            assert float(told["attacked_loss"]) == pytest.approx(float(error(w, v, forget, moves)))
        conflict = min(0.0, float(total @ g_r)) / float(g_r @ g_r)
        assert conflict < 0
        torch.testing.assert_close(found, total - conflict * g_r + g_r)
        assert float(told["forget_loss"]) == pytest.approx(float(error(w, v, forget)))
        assert float(told["loss"]) == pytest.approx(float(error(w, v, forget) + 2 * error(w, v, retain)))
        assert len(told) == 3 + bool(wanted.condition_steps) + bool(wanted.weight_steps)


class TestTraining:
    @pytest.mark.parametrize(
        ("kind", "recipe"),
        [("both", "paper"), ("relearning", "frozen_teacher"),
         pytest.param("embedding", "frozen_teacher", marks=pytest.mark.slow)],
    )  # fmt: skip
    def test_resumed_it_ends_with_the_same_bits(self, kind: str, recipe: str, trained: Trained, tmp_path: Path) -> None:
        """So the same seed gives the same result; one without --robust is another."""
        folder = tmp_path / "run"
        common = {"learning_rate": 1e-3, "max_train_steps": 3, "checkpointing_steps": 2, "recipe": recipe}
        history, whole = trained(folder, **common, robust=kind)
        again, resumed = trained(folder, folder / "checkpoint-2", **common, robust=kind)
        assert again == history and all(torch.equal(resumed[name], whole[name]) for name in whole)
        wanted = {"both": {"attacked_loss", "relearning_loss"}, "embedding": {"attacked_loss"}, "relearning": set()}
        assert {"attacked_loss", "relearning_loss"} & set(history[0]) == wanted[kind]

    def test_frozen_weights_stay_to_the_bit(self, trained: Trained, tiny_pipeline: Path) -> None:
        """Also where the attacker moves weights, under weight decay and over two micro-batches, one of them empty."""
        base = dict(StableDiffusionPipeline.from_pretrained(tiny_pipeline).unet.named_parameters())
        _, after = trained(
            robust="both", max_train_steps=1, learning_rate=1e-3, adam_weight_decay=0.1, train_batch_size=1,
            gradient_accumulation_steps=2,
        )  # fmt: skip
        mask = SaliencyMask.random(base, 0.5, torch.Generator().manual_seed(1))
        moved = 0
        for name, weights in base.items():
            changed = weights.detach() != after[name]
            assert not (changed & ~mask[name]).any()
            moved += int(changed.sum())
        assert moved > 0.9 * mask.number_selected

    def test_two_micro_batches_are_one(self, trained: Trained) -> None:
        """The attacker's rows are cut up like the others; the signs of few sums depend on their order."""
        one, two = (
            trained(robust="both", max_train_steps=1, learning_rate=1e-3, gradient_accumulation_steps=micro,
                    batch_of="step")[1]
            for micro in (1, 2)
        )  # fmt: skip
        far = sum(int(((one[name] - two[name]).abs() > 1e-4).sum()) for name in one)
        assert far < 1e-2 * sum(tensor.numel() for tensor in one.values())


def test_weights_come_back_from_an_attack_that_fails() -> None:
    """To the bit, also where adding and taking away would round; what was begun is kept and taken up again."""
    network = Toy()
    before = [network.w.detach().clone(), network.v.detach().clone()]
    selected = SelectedWeights(dict(network.named_parameters()), SaliencyMask.full({"w": (4,), "v": (4,)}))
    attacker = TrainingBack(selected, Robustness(weight_steps=5, weight_rate=1 / 3))
    gradients = [torch.tensor([1.0, -2.0, 0.0, float("nan")]), torch.ones(4)]
    with pytest.raises(KeyboardInterrupt), attacker.in_place(0):
        attacker.go_on([one.clone() for one in gradients])
        torch.testing.assert_close(network.w - before[0], torch.tensor([-1 / 3, 1 / 3, 0.0, 0.0]))
        raise KeyboardInterrupt
    assert all(torch.equal(one, other) for one, other in zip(before, network.parameters(), strict=True))
    again = TrainingBack(selected, attacker.robustness)
    again.load({name: way.clone() for name, way in attacker.state().items()})
    with again.in_place(1):
        torch.testing.assert_close(network.v - before[1], torch.full((4,), -1 / 3))
    with again.in_place(5):
        assert torch.equal(network.v, before[1])
    assert TrainingBack(selected, Robustness()).state() == {}


class TestRelearning:
    """What the simulated attacker trains on."""

    @pytest.fixture
    def draws(self, tiny_pipeline: Path) -> Draws:
        family = StableDiffusion(tiny_pipeline, device=torch.device("cpu"))
        words = ["a circle", "a disc"]
        latents = torch.stack([torch.full((4, 4, 4), float(number)) for number in range(6)])
        forget = LatentSet(latents, torch.arange(6) % 2, tuple(words))
        anchor = LatentSet(latents[:2] + 100, torch.arange(2) % 2, tuple(words))
        data = EraseData(forget, forget, anchor, *map(family.encode, (words, words, words, [""])))
        return Draws(family, data, PromptSwap(1.0, "base", "base"), tiny_settings(), ())

    def test_is_the_concept_and_nothing_else(self, draws: Draws) -> None:
        """x_t is solved for x_0: whole numbers up to 5, never the anchor's; prompts alternate as the latents do."""
        share = GlobalBatch(8, 1, 1).shares([3], 0)[0]
        batch = draws.relearning(share)
        alpha = draws.family.schedule.alphas[batch.timesteps].view(-1, 1, 1, 1)  # type: ignore[attr-defined]
        trusted = batch.timesteps < 800  # Beyond that little is left of x_0.
        clean = ((batch.noised - (1 - alpha).sqrt() * batch.truth) / alpha.sqrt()).flatten(1).mean(dim=1)
        items = clean.round().long()
        assert ((clean - items).abs() < 0.05)[trusted].all() and set(items[trusted].tolist()) <= set(range(6))
        states = draws.family.encode(["a circle", "a disc"])[STATES]
        for row in trusted.nonzero().flatten().tolist():
            assert torch.equal(batch.conditions[STATES][row], states[items[row] % 2])
        assert len(set(items[trusted].tolist())) > 1

    def test_its_noise_is_not_that_of_the_probe(self, draws: Draws) -> None:
        """At the run's seed, in which both are 0 by default: hardened against one's own exam, a model passes it."""
        seed = tiny_settings().seed
        noised = draws.relearning(GlobalBatch(4, 1, 1).shares([3], 0)[0]).truth
        generator = stream(seed, "relearning", 3)
        draws.family.schedule.sample(4, generator)
        assert not torch.equal(noised, torch.randn(noised.shape, generator=generator))

    def test_depends_on_the_step_and_is_cut_like_a_batch(self, draws: Draws) -> None:
        whole = GlobalBatch(4, 1, 1).shares([3], 0)[0]
        first = draws.relearning(whole).noised
        assert torch.equal(draws.relearning(whole).noised, first)
        assert not torch.equal(draws.relearning(whole._replace(step=4)).noised, first)
        parts = [draws.relearning(share).noised for share in GlobalBatch(4, 2, 1).shares([3], 0)]
        parts += [draws.relearning(share).noised for share in GlobalBatch(4, 2, 1).shares([3], 1)]
        assert torch.equal(torch.cat(parts), first)


@pytest.mark.parametrize(
    ("model", "kind"), [pytest.param("sdxl", "both", marks=pytest.mark.slow), ("tiny_ddpm", "relearning")]
)
def test_other_families(model: str, kind: str, small_run: Callable[..., list[str]], tmp_path: Path,
                        request: pytest.FixtureRequest) -> None:  # fmt: skip
    flags: dict[str, object] = {"pretrained_model_name_or_path": request.getfixturevalue(model), "robust": kind}
    if model == "tiny_ddpm":
        flags |= dict.fromkeys(("forget_prompt", "anchor_prompt", "retain_prompts"))
        flags |= {"concept": 1, "detector": "none", "guidance_scale": 2}
    assert main(small_run(**flags, max_train_steps=1, output_dir=tmp_path / "run")) == 0


@pytest.mark.slow  # 15 to 30 s, most of it two imports of torch and diffusers at once.
def test_two_processes_end_with_the_weights_of_one(small_run: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "erase.py").write_text(
        "import sys\nfrom salun_diffusers.programs.erase import main\nsys.exit(main())\n"
    )
    flags = {"saliency_micro_batch_size": 1, "robust": "both"}
    run_two(tmp_path / "erase.py", *small_run(output_dir=tmp_path / "two", **flags))
    assert main(small_run(output_dir=tmp_path / "one", gradient_accumulation_steps=2, **flags)) == 0
    weights = "pipeline/unet/diffusion_pytorch_model.safetensors"
    two, one = (load_file(tmp_path / run / weights) for run in ("two", "one"))
    far = sum(int(((tensor - one[name]).abs() > 1e-4).sum()) for name, tensor in two.items())
    assert far < 1e-2 * SaliencyMask.load(tmp_path / "one" / "mask.safetensors").number_selected


def test_its_mark_is_of_the_training_alone_and_of_none_where_it_is_not_asked_for() -> None:
    asked = EraseConfig(concept="circle")
    concept = find_concept(asked)
    settings, sources = resolve(asked, concept.numbers), Sources("base", None, (), {}, 1)
    marks = [stage_marks(concept, dataclasses.replace(settings, robust=kind), sources) for kind in ("none", *KINDS)]  # type: ignore[arg-type]
    assert len({mark.mask for mark in marks}) == 1 and len({mark.training for mark in marks}) == 4


def test_the_plan_says_what_it_costs(small_run: Callable[..., list[str]], capsys: pytest.CaptureFixture) -> None:
    """Alone it means relearning: targets past the anchor where there are any, else who trains back."""
    assert robust_in_words(tiny_settings()) == ""
    asked = {"robust": "relearning", "learning_rate": 1e-4}
    words = robust_in_words(tiny_settings(**asked, recipe="frozen_teacher"))
    assert words == "targets 1 times past the anchor; fine-tuning takes 1 times the passes"
    words = robust_in_words(tiny_settings(**asked, recipe="paper"))
    assert words == "up to 20 steps of 0.0002 of training back; fine-tuning takes 2 times the passes"
    assert main(small_run(robust=True, dry_run=True)) == 0
    told = capsys.readouterr().out
    assert "; fine-tuning takes 1 times the passes\n" in told and '"robust": "relearning"' in told


@pytest.mark.usefixtures("empty_folder")
class TestRefusals:
    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            ({"objective": "finetune"}, "--objective finetune does one of them only; take relabel"),
            ({"objective": "l1_sparse"}, "--objective l1_sparse does one of them only"),
            ({"objective": "esd", "retain_weight": None}, "--objective esd does one of them only"),
            ({"adapter": "lora"}, "--adapter lora leaves them as they are: whoever takes it off has the concept back"),
            ({"soft_threshold": "continuous"}, "--soft_threshold continuous counts each step; leave one of the two"),
            ({"robust": "strong"}, "invalid choice: 'strong'"),
        ],
    )
    def test_flags(self, refused: Callable[..., str], flags: dict[str, object], words: str) -> None:
        refused(words, **{"robust": "both", **flags})

    def test_class_labels_are_no_prompts(self, refused: Callable[..., str], tiny_ddpm: Path) -> None:
        none = dict.fromkeys(("forget_prompt", "anchor_prompt", "retain_prompts"))
        refused(
            "--robust embedding attacks what a text encoder says, and", "use --robust relearning.", robust="embedding",
            pretrained_model_name_or_path=tiny_ddpm, concept=1, **none,
        )  # fmt: skip

    def test_shared_out_tensors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sharding, "sharding_plugin", lambda _: object())
        with pytest.raises(UserError, match="--robust both moves whole leaves and back, FSDP2 shares them out"):
            sharding.refuse_unshardable(SimpleNamespace(), tiny_settings(robust="both"))  # type: ignore[arg-type]
