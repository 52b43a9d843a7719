"""Relearning: what the curve says, what moves, and that the model is afterwards what it was."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from probed import evidence, same, state, subject

from salun_diffusers.adapters.lora_weights import attach
from salun_diffusers.diffusion.batches import shuffled
from salun_diffusers.diffusion.families.family import rows
from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.red_team import relearning
from salun_diffusers.red_team.lessons import BenignPictures, ConceptPictures, GivenPictures, Lesson
from salun_diffusers.red_team.practice import ByLora, ByWeights, practising
from salun_diffusers.red_team.probe import Curve, Evidence, Point
from salun_diffusers.red_team.relearning import Relearning
from salun_diffusers.seeds import stream, stream_seed


def curve(*points: tuple[float, int]) -> Curve:
    return Curve("relearning", "erased", "steps", tuple(Point(at, hits, 10) for at, hits in points))


class TestCurve:
    def test_steps_to_a_rate_by_hand(self):
        """From 2 of 10 at step 10 to 8 of 10 at step 25: half is reached at 10 + 15 · .3/.6."""
        found = curve((0, 0), (10, 2), (25, 8), (50, 4))
        assert found.steps_to(0.5) == pytest.approx(17.5)
        assert found.steps_to(0.8) == 25
        assert found.steps_to(0.0) == 0
        assert found.steps_to(0.81) is None

    def test_area_by_hand(self):
        """Trapezoids of 10 · .1, 15 · .5 and 25 · .6 over 50 steps."""
        found = curve((0, 0), (10, 2), (25, 8), (50, 4))
        assert found.area == pytest.approx((1 + 7.5 + 15) / 50)
        assert curve((0, 10), (500, 10)).area == 1
        assert curve((0, 3)).area == pytest.approx(0.3)

    def test_rates_have_wilsons_interval(self):
        (_, second) = curve((0, 0), (10, 2)).measurements("protocol", "command")
        assert (second.value, second.n, second.name) == (0.2, 10, "relearning, erased: steps 10")
        assert second.interval == pytest.approx((0.0567, 0.5098), abs=1e-4)

    @pytest.mark.parametrize("points", [(), ((10, 1), (0, 1)), ((0, 1), (0, 2))])
    def test_points_must_ascend(self, points):
        with pytest.raises(UserError, match="must ascend"):
            curve(*points)


FAST = Relearning(lessons=ConceptPictures(3), steps=(0, 1, 3), learning_rate=1e-2)
WAYS = {"lora": ByLora(2), "full": ByWeights()}


@pytest.mark.parametrize(
    ("way", "kind"),
    [("lora", "tiny_pipeline"), ("full", "tiny_pipeline"), ("full", "sd14"), ("lora", "sdxl"), ("lora", "tiny_ddpm"),
     ("full", "tiny_ddpm")],
)  # fmt: skip
def test_the_model_is_afterwards_what_it_was(request, kind, way):
    """Every tensor to the bit, what requires a gradient, no trace of PEFT, and everybody's random numbers."""
    one = subject(request.getfixturevalue(kind), kind)
    shown = evidence(one, subject(request.getfixturevalue(kind), kind, "base"))
    before, network = state(one), one.family.denoiser
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = torch.rand(2), random.random(), np.random.rand()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    said: list[int] = []
    probe = replace(FAST, way=WAYS[way])
    reading = probe(one, shown, said.append)
    assert torch.equal(torch.rand(2), expected[0]) and (random.random(), np.random.rand()) == expected[1:]
    assert one.family.denoiser is network is one.family.pipe.unet
    assert same(state(one), before)
    assert not hasattr(network, "peft_config") and not any("lora" in name for name, _ in network.named_modules())
    assert [point.at for point in reading.curves[0].points] == [0, 1, 3]
    assert sum(said) == probe.amount(3)
    assert reading.curves[0].subject == "erased" and way[:4].lower() in {"lora", "full"}


def limit_between(pictures, shown: Evidence) -> Evidence:
    """The same with a judge whose limit lies between the two darkest of some pictures: one is none, the others are."""
    halves = sorted(np.asarray(picture.convert("L"))[:, : picture.width // 2].mean() for picture in pictures)
    detector = replace(shown.contest.judge.detector, limit=float(halves[0] + halves[1]) / 2)
    return replace(shown, contest=replace(shown.contest, judge=replace(shown.contest.judge, detector=detector)))


def test_at_step_0_the_rate_is_the_plain_one(tiny_pipeline):
    one = subject(tiny_pipeline, "tiny_pipeline")
    plain = evidence(one, one)
    shown = limit_between(one.drawn(plain.prompts, plain.seeds), plain)
    seen = shown.contest.judge.hits(one.drawn(shown.prompts, shown.seeds))
    assert 0 < sum(seen) < len(seen)
    (found,) = replace(FAST, steps=(0,))(one, shown, lambda _: None).curves
    assert found.points == (Point(0, sum(seen), len(seen)),)
    assert shown.ceiling == pytest.approx(sum(seen) / len(seen))


@pytest.mark.parametrize("way", WAYS)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny_pipeline, way, monkeypatch):
    def trained(seed: int, steps: tuple[int, ...] = (0, 3)) -> torch.Tensor:
        one = subject(tiny_pipeline, "tiny_pipeline")
        kept = []
        monkeypatch.setattr(
            "salun_diffusers.red_team.relearning.practising", lambda given: kept.append(practising(given)) or kept[0]
        )
        replace(FAST, way=WAYS[way], seed=seed, steps=steps)(one, evidence(one, one), lambda _: None)
        return torch.cat([tensor.flatten() for tensor in kept[0].family.denoiser.state_dict().values()])

    first = trained(1)
    assert torch.equal(first, trained(1))
    assert torch.equal(first, trained(1, (0, 1, 2, 3))), "looking changes nothing"
    assert not torch.equal(first, trained(2))


def test_pictures_are_gone_through(tiny_pipeline, monkeypatch):
    """Of 3 pictures 2 a step: in 3 steps each comes twice."""
    one, picked = subject(tiny_pipeline, "tiny_pipeline"), []
    monkeypatch.setattr(
        relearning, "shuffled", lambda *given, **named: picked.append(shuffled(*given, **named)) or picked[-1]
    )
    replace(FAST, batch_size=2)(one, evidence(one, one), lambda _: None)
    assert sorted(torch.cat(picked).tolist()) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("answer", ["noise", "picture"])
def test_a_step_is_plain_fine_tuning(tiny_pipeline, monkeypatch, answer):
    """One step of gradient descent on all weights, written out; of a network that predicts ε, and of one for x₀."""
    one = subject(tiny_pipeline, "tiny_pipeline")
    if answer == "picture":
        monkeypatch.setattr(type(one.family.schedule), "target", lambda schedule, clean, noise, times: clean)
    student = practising(one)
    lesson = Lesson(torch.randn(1, 4, 4, 4, generator=stream(0, "x")), ("a star",))
    probe = Relearning(way=ByWeights(), optimizer="sgd", learning_rate=0.1, seed=4)
    weights = probe.way.weights(student.family.denoiser, 4)
    with weights.in_training(gather_as_they_come=False):
        probe._stepping(student, weights, lesson.latents, lesson.conditions(student.family))(0)
    expected = practising(one).family.denoiser.requires_grad_(True)
    drawn_by = stream(4, "relearning", 0)
    time = torch.randint(1000, (1,), generator=drawn_by)
    noise = torch.randn(1, 4, 4, 4, generator=drawn_by)
    alpha = one.family.schedule.alphas[time]
    noised = alpha.sqrt() * lesson.latents + (1 - alpha).sqrt() * noise
    states = one.family.encode(["a star"])["encoder_hidden_states"]
    wanted = noise if answer == "noise" else lesson.latents
    loss = F.mse_loss(expected(noised, time, encoder_hidden_states=states).sample, wanted)
    loss.backward()
    for name, parameter in expected.named_parameters():
        moved = parameter.detach() - 0.1 * (0 if parameter.grad is None else parameter.grad)
        torch.testing.assert_close(student.family.denoiser.get_parameter(name).detach(), moved, rtol=1e-4, atol=1e-6)
    assert same(state(one), state(subject(tiny_pipeline, "tiny_pipeline")))


def test_under_a_mask_only_selected_weights_move(tiny_pipeline):
    one = subject(tiny_pipeline, "tiny_pipeline")
    student = practising(one)
    network = student.family.denoiser
    mask = SaliencyMask.random(dict(network.named_parameters()), 0.3, torch.Generator().manual_seed(1))
    probe = replace(FAST, way=ByWeights(mask))
    assert probe.name == "relearning by selected weights from the concept"
    shown = evidence(one, one)
    probe._points(student, probe.lessons.of(shown, 0), shown, lambda _: None)
    moved = 0
    for name, parameter in network.named_parameters():
        differs = parameter.detach() != one.family.denoiser.get_parameter(name)
        assert not bool((differs & ~mask[name]).any()), name
        moved += int(differs.sum())
    assert moved > mask.number_selected // 2


def test_a_lora_moves_attention_alone(tiny_pipeline):
    student = practising(subject(tiny_pipeline, "tiny_pipeline"))
    weights = ByLora(2).weights(student.family.denoiser, 0)
    layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in weights.names}
    assert layers == {"to_q", "to_k", "to_v", "0"}
    assert {min(weight.shape) for weight in weights.weights} == {2}


def test_a_lora_begins_elsewhere_than_an_erasure_by_a_lora_did(tiny_pipeline):
    """At one seed: whoever trains in the rows that the erasure began in finds the way back too easily."""
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    networks = [practising(subject(tiny_pipeline, "tiny_pipeline")).family.denoiser for _ in range(2)]
    attach(networks[0], {layer: 2}, 1.0, name="erasure", seed=3)
    ByLora(2).weights(networks[1], 3)
    mine, its = (next(iter(network.get_submodule(layer).lora_A.values())).weight for network in networks)
    assert mine.shape == its.shape and not torch.equal(mine, its)


def test_a_lora_that_is_there_becomes_part_of_the_copy(tiny_pipeline):
    """An erasure that is a LoRA is practised on as what it draws, and stays what it is."""
    one = subject(tiny_pipeline, "tiny_pipeline")
    one.family.denoiser = one.family.pipe.unet = copy.deepcopy(one.family.denoiser)
    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    attach(one.family.denoiser, {layer: 2}, 1.0, name="erasure", seed=0)
    with torch.no_grad():
        one.family.denoiser.get_submodule(layer).lora_B["erasure"].weight.normal_()
    before, drawn = state(one), one.drawn_latents(["a star"], [1])
    student = practising(one)
    assert not any("lora" in name for name, _ in student.family.denoiser.named_parameters())
    torch.testing.assert_close(student.drawn_latents(["a star"], [1]), drawn, rtol=1e-4, atol=1e-5)
    plain = subject(tiny_pipeline, "tiny_pipeline").drawn_latents(["a star"], [1])
    assert not torch.allclose(plain, drawn, rtol=1e-3, atol=1e-4)
    replace(FAST, steps=(0, 1))(one, evidence(one, one), lambda _: None)
    assert same(state(one), before)


def test_steps_to_half_count_from_the_bases_rate_or_from_1(tiny_pipeline):
    """A judge that sees it everywhere: at once. One that sees it nowhere is refused, unless pictures are given."""
    one = subject(tiny_pipeline, "tiny_pipeline")
    reading = FAST(one, evidence(one, one, limit=0), lambda _: None)
    assert reading.numbers == {"steps to half": 0.0, "area": 1.0}
    with pytest.raises(UserError, match="seen in none of 12"):
        FAST(one, evidence(one, one, limit=255), lambda _: None)
    # 3 of 4 by the base: half of that, which is not half of all, is reached between the first look and the second.
    shown, hits = evidence(one, one, cases=4), iter((1, 2, 4, 3))  # At steps 0, 1 and 3, and by the base.
    judge = SimpleNamespace(hits=lambda pictures: [place < count for count in (next(hits),) for place in range(4)])
    shown = replace(shown, contest=replace(shown.contest, judge=judge))
    lesson = GivenPictures((Image.new("RGB", (20, 16), "white"),), "a star")
    assert replace(FAST, lessons=lesson)(one, shown, lambda _: None).numbers["steps to half"] == pytest.approx(0.5)
    given = GivenPictures((Image.new("RGB", (20, 16), "white"),), "a star")
    control = replace(FAST, lessons=given)(one, evidence(one, one, limit=255), lambda _: None)
    assert control.numbers == {"steps to half": None, "area": 0.0}


def test_the_pace_is_that_of_a_models_size(tiny_pipeline):
    family = subject(tiny_pipeline, "tiny_pipeline").family
    large = SimpleNamespace(denoiser=torch.nn.Linear(5000, 5000, device="meta"))
    mask = SaliencyMask.full({"weight": torch.zeros(2)})
    found = [Relearning.at_pace(one, way, ConceptPictures()) for one in (family, large)
             for way in (ByLora(), ByWeights(), ByWeights(mask))]  # fmt: skip
    assert [one.learning_rate for one in found] == [3e-3, 1e-4, 1e-4, 1e-4, 1e-5, 1e-5]
    assert [one.batch_size for one in found] == [4, 4, 4, 1, 1, 1]
    assert found[0].steps == (0, 10, 25, 50, 100)
    assert (Relearning().steps, Relearning().batch_size) == ((0, 10, 25, 50, 100, 250, 500), 1)


class TestLessons:
    def test_only_pictures_that_show_the_concept_are_taught(self, tiny_pipeline):
        one = subject(tiny_pipeline, "tiny_pipeline")
        plain = evidence(one, one, cases=6)
        first = one.drawn(
            [plain.prompts[number % 2] for number in range(3)],
            [stream_seed(1, "lesson", "the concept", number) for number in range(3)],
        )
        shown = limit_between(first, plain)
        assert sum(shown.contest.judge.hits(first)) == 2
        lesson = ConceptPictures(3).of(shown, 1)
        assert all(shown.contest.judge.hits(one.decode(lesson.latents)))
        assert len(lesson.latents) == len(lesson.prompts) == 3
        seeds = {tuple(row.flatten().tolist()) for row in (*lesson.latents, *shown.latents)}
        assert len(seeds) == 9, "pictures of seeds of their own"

    def test_other_pictures_go_round_the_prompts(self, tiny_pipeline):
        one = subject(tiny_pipeline, "tiny_pipeline")
        words = ("a star", "a photo of a square", "a photo of a circle", "star")
        assert BenignPictures(words, 2).of(evidence(one, one), 0).prompts == ("a star", "a photo of a circle")
        assert BenignPictures(words[:2], 3).of(evidence(one, one), 0).prompts == (*words[:2], "a star")

    @pytest.mark.parametrize(("kind", "shape"), [("tiny_pipeline", (4, 4, 4)), ("tiny_ddpm", (1, 8, 8))])
    def test_given_pictures_are_encoded(self, request, kind, shape):
        one = subject(request.getfixturevalue(kind), kind)
        pictures = tuple(Image.new("RGB", (40, 30), colour) for colour in ("white", "black"))
        shown = evidence(one, one)
        lesson = GivenPictures(pictures, shown.prompts[0]).of(shown, 0)
        assert lesson.latents.shape == (2, *shape) and lesson.prompts == (shown.prompts[0],) * 2
        if kind == "tiny_ddpm":
            assert [float(row.mean()) for row in lesson.latents] == [1, -1]

    def test_conditions_go_with_the_pictures(self, tiny_pipeline):
        family = subject(tiny_pipeline, "tiny_pipeline").family
        lesson = Lesson(torch.zeros(3, 4, 4, 4), ("a star", "star", "a star"))
        expected = rows(family.encode(["a star", "star"]), torch.tensor([0, 1, 0]))
        assert torch.equal(lesson.conditions(family)["encoder_hidden_states"], expected["encoder_hidden_states"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Relearning(steps=(10, 20)), "ascend from 0"),
        (lambda: Relearning(steps=(0, 20, 10)), "ascend from 0"),
        (lambda: Relearning(batch_size=0), "One picture a step"),
        (lambda: Relearning(learning_rate=0), "must be positive"),
        (lambda: Relearning(learning_rate=float("nan")), "must be positive"),
        (lambda: Relearning(optimizer="adamw"), "adam or sgd"),
        (lambda: ByLora(0), "rank of a LoRA"),
        (lambda: ConceptPictures(0), "One picture or more"),
        (lambda: BenignPictures(()), "Prompts of other pictures"),
        (lambda: GivenPictures((), "a star"), "One picture or more"),
    ],
)
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(UserError, match=words) as told:
        make()
    assert "\n" not in str(told.value)


def test_a_mask_of_another_network_and_no_case_are_refused(tiny_pipeline, tiny_ddpm):
    one, other = subject(tiny_pipeline, "tiny_pipeline"), subject(tiny_ddpm, "tiny_ddpm")
    mask = SaliencyMask.full(dict(other.family.denoiser.named_parameters()))
    with pytest.raises(UserError, match="the model"):
        replace(FAST, way=ByWeights(mask))(one, evidence(one, one), lambda _: None)
    with pytest.raises(UserError, match="at least one prompt"):
        evidence(one, one, cases=0)


def test_a_rate_at_which_training_diverges_is_told(tiny_pipeline):
    one = subject(tiny_pipeline, "tiny_pipeline")
    before = state(one)
    wild = replace(FAST, way=ByWeights(), optimizer="sgd", learning_rate=1e30, steps=(0, 8))
    with pytest.raises(UserError, match="diverged at step"):
        wild(one, evidence(one, one), lambda _: None)
    assert same(state(one), before)
