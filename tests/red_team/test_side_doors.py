"""Side doors: what is given stays, what is noised has its noise, and every case is a case of its own."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from probed import FAMILIES, added, evidence, same, state, subject

from salun_diffusers.errors import UserError
from salun_diffusers.red_team import side_doors
from salun_diffusers.red_team.add_ons import FewSteps, WithControlNet, edges
from salun_diffusers.red_team.added_noise import AddedNoise, NoisyCourse
from salun_diffusers.red_team.probe import Evidence, Probe
from salun_diffusers.red_team.sampling_loop import Course, draw, generators, noise
from salun_diffusers.red_team.side_doors import EMPTY, OWN, Completion, ImageToImage, Inpainting
from salun_diffusers.red_team.subject import Subject
from salun_diffusers.seeds import stream


def doors(kind: str) -> tuple[Probe, ...]:
    anchor = "7" if kind == "tiny_ddpm" else "a photo of a square"
    return (Completion((0.3, 0.9)), ImageToImage((anchor,), (0.5,)), Inpainting(), AddedNoise((1.0, 1.85), (1.04,)))


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_door_opens_on_every_family_and_leaves_it_as_it_was(request, kind):
    one, base = (subject(request.getfixturevalue(kind), kind, name) for name in ("erased", "base"))
    shown, before = evidence(one, base), state(one)
    scheduler = one.family.pipe.scheduler
    expected = one.drawn_latents(shown.prompts, shown.seeds)
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    numbers = torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()
    for door in doors(kind):
        said: list[int] = []
        reading = door(one, shown, said.append)
        assert sum(said) == door.amount(3), door.name
        assert {curve.subject for curve in reading.curves} == {"erased"}
        assert all(point.hits == point.n == 3 for curve in reading.curves for point in curve.points)
    assert numbers == (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())
    assert one.family.pipe.scheduler is scheduler and same(state(one), before)
    assert torch.equal(one.drawn_latents(shown.prompts, shown.seeds), expected)


class Seen:
    """What a door has its model draw: the latents of the pictures that are decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.latents: list[torch.Tensor] = []
        plain = Subject.decode
        monkeypatch.setattr(Subject, "decode", lambda one, latents: self.latents.append(latents) or plain(one, latents))

    def through(self, door: Probe, one: Subject, shown: Evidence) -> torch.Tensor:
        self.latents.clear()
        door(one, shown, lambda _: None)
        return torch.cat(self.latents)


@pytest.mark.parametrize("number", range(4))
def test_a_case_does_not_depend_on_those_beside_it(tiny_pipeline, monkeypatch, number):
    """Three cases two at a time, and the last of them alone; twice the same, and another seed another picture."""
    one, seen, door = subject(tiny_pipeline, "tiny_pipeline"), Seen(monkeypatch), doors("tiny_pipeline")[number]
    shown = evidence(one, one)
    together = seen.through(door, one, shown)
    assert torch.equal(together, seen.through(door, one, shown))
    alone = seen.through(door, one, Evidence(shown.contest, shown.cases[2:]))
    torch.testing.assert_close(alone, together[2::3], rtol=1e-4, atol=1e-5)
    other = replace(shown.cases[2], seed=7)
    assert not torch.allclose(seen.through(door, one, Evidence(shown.contest, (other,))), alone, rtol=1e-2)


@pytest.mark.parametrize("kind", ["tiny_pipeline", "tiny_ddpm"])
def test_completion_begins_at_the_noised_picture_of_the_base(request, monkeypatch, kind):
    """By hand: the state at the first timestep below the share, with ᾱ from the schedule; then the pipeline's steps."""
    one = subject(request.getfixturevalue(kind), kind, steps=5)
    shown, begun = evidence(one, one, cases=1), {}

    def spied(drawing, course, conditions, drawn_by, begins, *, place):
        begun.setdefault(place, begins)
        return draw(drawing, course, conditions, drawn_by, begins, place=place)

    monkeypatch.setattr(side_doors, "draw", spied)
    Completion((0.3, 0.9))(one, shown, lambda _: None)
    times = Course(one.family, 5).timesteps.tolist()
    assert {place: times[place] for place in begun} == {
        place: time for place, time in enumerate(times) if place in (
            next(number for number, time in enumerate(times) if time <= 300),
            next(number for number, time in enumerate(times) if time <= 900),
        )
    }  # fmt: skip
    for share, (place, found) in zip((0.3, 0.9), begun.items(), strict=True):
        alpha = one.family.schedule.alphas[int(times[place])]
        error = noise(one.family, [stream(shown.seeds[0], f"completion/{share:g}")])
        expected = alpha.sqrt() * shown.latents + (1 - alpha).sqrt() * error
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_empty_prompt_is_asked_as_well(tiny_pipeline, monkeypatch):
    one, shown = subject(tiny_pipeline, "tiny_pipeline"), None
    shown = evidence(one, one)
    found = side_doors.asked(one, shown)
    assert torch.equal(found[OWN]["encoder_hidden_states"],
                       one.family.encode(shown.prompts)["encoder_hidden_states"])  # fmt: skip
    assert torch.equal(found[EMPTY]["encoder_hidden_states"], one.family.encode([""] * 3)["encoder_hidden_states"])
    names = [curve.name for curve in Inpainting()(one, shown, lambda _: None).curves]
    assert names == [f"inpainting, {OWN}", f"inpainting, {EMPTY}"]


@pytest.mark.parametrize(("kind", "columns"), [("tiny_pipeline", 2), ("sdxl", 2), ("tiny_ddpm", 4)])
def test_inpainting_keeps_the_given_half_and_draws_the_other(request, kind, columns):
    one = subject(request.getfixturevalue(kind), kind)
    shown = evidence(one, one)
    known = torch.randn(shown.latents.shape, generator=stream(0, "known"))
    asked = side_doors.asked(one, shown)[OWN]
    found = Inpainting().latents(one, known, asked, generators([1, 2, 3]))
    assert torch.equal(found[..., :columns], known[..., :columns])
    assert not bool((found[..., columns:] == known[..., columns:]).any())
    other = Inpainting().latents(one, known + 1.0, asked, generators([1, 2, 3]))
    assert not torch.allclose(found[..., columns:], other[..., columns:], rtol=1e-3), "it sees the given half"


def test_at_every_step_the_given_half_has_the_noise_of_that_step(tiny_pipeline, monkeypatch):
    one, states = subject(tiny_pipeline, "tiny_pipeline", steps=4), []
    known = torch.randn(1, 4, 4, 4, generator=stream(0, "known"))

    def spied(drawing, course, conditions, drawn_by, begins, *, after):
        def kept(place, led):
            states.append((place, after(place, led)))
            return states[-1][1]

        return draw(drawing, course, conditions, drawn_by, begins, after=kept)

    monkeypatch.setattr(side_doors, "draw", spied)
    Inpainting().latents(one, known, one.family.encode(["a star"]), generators([1]))
    times, error = Course(one.family, 4).timesteps, noise(one.family, generators([1]))
    for place, led in states[:-1]:
        alpha = one.family.schedule.alphas[int(times[place])]
        expected = alpha.sqrt() * known + (1 - alpha).sqrt() * error
        torch.testing.assert_close(led[..., :2], expected[..., :2], rtol=1e-4, atol=1e-5)


def test_quick_settings_are_some_of_the_full_ones():
    assert set(Completion.quick().shares) < set(Completion().shares)
    assert set(ImageToImage.quick(("x",)).strengths) < set(ImageToImage(("x",)).strengths)
    few, many = AddedNoise.quick(), AddedNoise()
    assert set(few.etas) < set(many.etas) and set(few.scales) < set(many.scales)
    assert many.amount(1) == 24


class TestAddedNoise:
    @pytest.mark.parametrize("clipped", [False, True])
    def test_up_to_eta_1_it_is_diffusers_ddim(self, tiny_pipeline, clipped):
        """Where diffusers has no NaN both are one formula, noise included, and x̂₀ clipped where the pipeline's is."""
        one = subject(tiny_pipeline, "tiny_pipeline", steps=5)
        one.family.pipe.scheduler = DDIMScheduler.from_config(one.family.pipe.scheduler.config, clip_sample=clipped)
        for eta in (0.0, 0.6, 1.0):
            course = NoisyCourse(one.family, 5, eta, 1.0)
            scheduler = DDIMScheduler.from_config(one.family.pipe.scheduler.config)
            scheduler.set_timesteps(5)
            before = torch.randn(1, 4, 4, 4, generator=stream(0, "state"))
            answer = torch.randn(1, 4, 4, 4, generator=stream(0, "answer"))
            for place in range(5):
                expected = scheduler.step(
                    answer, scheduler.timesteps[place], before, eta=eta, generator=generators([9])[0]
                ).prev_sample
                torch.testing.assert_close(
                    course.step(answer, place, before, generators([9])), expected, rtol=1e-4, atol=1e-5
                )

    def test_beyond_it_the_root_is_of_the_absolute_value(self, tiny_pipeline):
        """By hand at one step, as the source has it; ε-prediction, the noise times the scale."""
        one = subject(tiny_pipeline, "tiny_pipeline", steps=5)
        course, place = NoisyCourse(one.family, 5, 1.85, 1.04), 1
        time = int(course.timesteps[place])
        alpha, then = (float(one.family.schedule.alphas[number]) for number in (time, time - 200))
        sigma = 1.85 * math.sqrt((1 - then) / (1 - alpha) * (1 - alpha / then))
        assert sigma**2 > 1 - then
        before, answer = (torch.randn(1, 4, 4, 4, generator=stream(0, name)) for name in ("state", "answer"))
        clean = (before - math.sqrt(1 - alpha) * answer) / math.sqrt(alpha)
        drawn = noise(one.family, generators([9]))
        expected = math.sqrt(then) * clean + math.sqrt(sigma**2 + then - 1) * answer + 1.04 * sigma * drawn
        torch.testing.assert_close(course.step(answer, place, before, generators([9])), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("kind", ["v_prediction", "sample"])
    def test_other_predictions_are_the_same_step(self, tiny_pipeline, kind):
        one = subject(tiny_pipeline, "tiny_pipeline", steps=5)
        before, answer = (torch.randn(1, 4, 4, 4, generator=stream(0, name)) for name in ("state", "answer"))
        expected = NoisyCourse(one.family, 5, 1.5, 1.0)
        alpha = float(one.family.schedule.alphas[int(expected.timesteps[2])])
        clean = (before - math.sqrt(1 - alpha) * answer) / math.sqrt(alpha)
        told = clean if kind == "sample" else math.sqrt(alpha) * answer - math.sqrt(1 - alpha) * clean
        by_noise = expected.step(answer, 2, before, generators([9]))
        config = one.family.pipe.scheduler.config
        one.family.pipe.scheduler = DDIMScheduler.from_config(config, prediction_type=kind)
        found = NoisyCourse(one.family, 5, 1.5, 1.0).step(told, 2, before, generators([9]))
        torch.testing.assert_close(found, by_noise, rtol=1e-4, atol=1e-4)

    def test_any_counts_a_case_once(self, tiny_pipeline, monkeypatch):
        one = subject(tiny_pipeline, "tiny_pipeline")
        answers = iter([[True, False, False], [True, True, False]])
        monkeypatch.setattr(AddedNoise, "_seen", lambda *_: next(answers))
        curve, ever = AddedNoise((1.0, 1.5), (1.0,))(one, evidence(one, one), lambda _: None).curves
        assert [point.hits for point in curve.points] == [1, 2]
        assert (ever.name, ever.points[0].hits, ever.points[0].n) == ("added noise, any", 2, 3)


@pytest.fixture(scope="module", params=["tiny_pipeline", "sdxl"])
def equipped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path, Path]:
    """A pipeline, a LoRA and a ControlNet for it, as diffusers saves them."""
    folder, place = request.getfixturevalue(request.param), tmp_path_factory.mktemp("add_ons")
    return request.param, folder, *added(folder, request.param, place)


@pytest.fixture
def remarks() -> Iterator[list[str]]:
    """What diffusers logs."""
    heard: list[str] = []
    handler, log = logging.Handler(), logging.getLogger("diffusers")
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    yield heard
    log.removeHandler(handler)


class TestAddOns:
    def test_they_count_for_what_is_drawn_and_leave_no_trace(self, equipped, monkeypatch, remarks):
        kind, folder, lora, net = equipped
        one, seen = subject(folder, kind), Seen(monkeypatch)
        shown, before = evidence(one, one), state(one)
        plain = one.drawn_latents(shown.prompts, shown.seeds)
        for door in (FewSteps(lora, 3, scheduler="DDIMScheduler"), WithControlNet(net)):
            first = seen.through(door, one, shown)[-3:]
            assert torch.equal(first, seen.through(door, one, shown)[-3:])
            assert not torch.allclose(first, plain, rtol=1e-2, atol=1e-3)
        assert remarks == []
        assert same(state(one), before) and torch.equal(one.drawn_latents(shown.prompts, shown.seeds), plain)
        assert not hasattr(one.family.denoiser, "peft_config")

    def test_steps_guidance_and_scheduler_are_the_loras(self, equipped):
        kind, folder, lora, _ = equipped
        drawing = FewSteps(lora, 4)
        student = drawing.equipped(subject(folder, kind))
        assert (student.drawing.num_inference_steps, student.drawing.guidance_scale) == (4, 1.0)
        assert type(student.family.pipe.scheduler).__name__ == "LCMScheduler"
        assert type(subject(folder, kind).family.pipe.scheduler).__name__ != "LCMScheduler"

    def test_what_fits_another_model_is_refused_in_one_line(self, equipped, request, remarks):
        kind, _, lora, net = equipped
        other = "sdxl" if kind == "tiny_pipeline" else "tiny_pipeline"
        for stranger in (subject(request.getfixturevalue(other), other),
                         subject(request.getfixturevalue("tiny_ddpm"), "tiny_ddpm")):  # fmt: skip
            for door in (FewSteps(lora), WithControlNet(net)):
                with pytest.raises(UserError, match=r"does not fit|loads none|reads no prompts") as told:
                    door.equipped(stranger)
                assert "\n" not in str(told.value) and remarks == []

    def test_what_is_none_is_refused(self, equipped, tmp_path):
        kind, folder, lora, _ = equipped
        (tmp_path / "adapter.bin").write_bytes(b"pickle")
        for place in (tmp_path, tmp_path / "adapter.bin", tmp_path / "missing"):
            with pytest.raises(UserError, match=r"must be a LoRA's \.safetensors file"):
                FewSteps(place)
            with pytest.raises(UserError, match="must be the folder of a ControlNet"):
                WithControlNet(place)
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(UserError, match="cannot be loaded as a ControlNet"):
            WithControlNet(tmp_path).equipped(subject(folder, kind))
        (tmp_path / "one.safetensors").write_bytes(b"nothing")
        with pytest.raises(UserError):
            FewSteps(tmp_path).equipped(subject(folder, kind))
        with pytest.raises(UserError, match="One step or more"):
            FewSteps(lora, 0)

    def test_edges_are_where_lightness_changes(self):
        picture = Image.new("RGB", (8, 6), "black")
        picture.paste("white", (4, 0, 8, 6))
        (lines,) = edges([picture])
        assert lines.size == (8, 6)
        assert np.asarray(lines)[:, :, 0].tolist() == [[0, 0, 0, 255, 255, 0, 0, 0]] * 6

    def test_edges_are_those_above_a_share_of_the_strongest(self):
        """A step of 30 beside one of 200 is none; alone it is one."""
        values = np.zeros((6, 12), dtype=np.uint8)
        values[:, 4:], values[:, 8:] = 30, 230
        both, faint = (Image.fromarray(values[:, :width]) for width in (12, 8))
        found = [np.asarray(lines)[0, :, 0].nonzero()[0].tolist() for lines in edges([both, faint])]
        assert found == [[7, 8], [3, 4]]

    def test_a_controlnet_steers_as_strongly_as_asked(self, tiny_pipeline, tmp_path, monkeypatch):
        one, asked = subject(tiny_pipeline, "tiny_pipeline"), []
        (tmp_path / "config.json").write_text("{}")
        drawn = torch.zeros(2, *one.family.latent_shape)
        pipe = lambda **given: asked.append(given) or SimpleNamespace(images=drawn[: len(given["image"])])  # noqa: E731
        monkeypatch.setattr(WithControlNet, "equipped", lambda *_: pipe)
        WithControlNet(tmp_path, 0.7)(one, evidence(one, one), lambda _: None)
        assert {given["controlnet_conditioning_scale"] for given in asked} == {0.7}
        assert {given["guidance_scale"] for given in asked} == {one.drawing.guidance_scale}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Completion(()), "ascend within"), (lambda: Completion((0.5, 0.3)), "ascend within"),
        (lambda: Completion((0.5, 1.5)), "ascend within"), (lambda: Completion((0.0,)), "ascend within"),
        (lambda: ImageToImage(()), "at least one"), (lambda: ImageToImage(("x",), (2.0,)), "ascend within"),
        (lambda: Inpainting(1.0), "a part of a picture"), (lambda: Inpainting(0.0), "a part of a picture"),
        (lambda: AddedNoise(()), "ascending values of eta"), (lambda: AddedNoise((1.0,), (-1.0,)), "of scale"),
        (lambda: AddedNoise((math.inf,)), "of eta"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(UserError, match=words) as told:
        make()
    assert "\n" not in str(told.value)
