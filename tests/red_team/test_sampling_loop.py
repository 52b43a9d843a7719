"""The open loop draws what the pipeline draws, to the bit, and its half-noised states have the noise of their step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from probed import FAMILIES, subject

from salun_diffusers.evaluation.drawing_pipeline import replace_scheduler
from salun_diffusers.red_team.sampling_loop import Course, draw, generators, noise
from salun_diffusers.red_team.subject import Subject

WORDS = {"tiny_ddpm": ["cat", "dog"]}


def loop(one: Subject, prompts: list[str], seeds: list[int], **how: object) -> torch.Tensor:
    course, drawn_by = Course(one.family, one.drawing.num_inference_steps), generators(seeds)
    start = course.first(noise(one.family, drawn_by))
    return draw(one, course, one.family.encode(prompts), drawn_by, start, **how)


@pytest.fixture(scope="module", params=FAMILIES)
def kind(request: pytest.FixtureRequest) -> tuple[str, Path]:
    return request.param, request.getfixturevalue(request.param)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_without_intervention_it_is_the_pipeline(kind, guidance):
    name, folder = kind
    one = subject(folder, name, guidance=guidance)
    prompts = WORDS.get(name, ["a star", "a photo of a circle"])
    expected = one.family.generate_from(
        one.family.encode(prompts), [3, 4], num_inference_steps=3, guidance_scale=guidance
    )
    assert torch.equal(loop(one, prompts, [3, 4]), expected)


@pytest.mark.parametrize(
    "scheduler",
    ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler",
     "HeunDiscreteScheduler", "DDPMScheduler"],
)  # fmt: skip
def test_any_scheduler_draws_as_in_the_pipeline(tiny_pipeline, scheduler):
    one = subject(tiny_pipeline, "tiny_pipeline", steps=4)
    replace_scheduler(one.family.pipe, scheduler)
    expected = one.drawn_latents(["a star"], [5])
    scheduler = one.family.pipe.scheduler
    before = scheduler.timesteps
    assert torch.equal(loop(one, ["a star"], [5]), expected)
    assert scheduler.timesteps is before, "the pipeline's own is not used"
    assert torch.equal(one.drawn_latents(["a star"], [5]), expected)


@pytest.mark.parametrize("scheduler", ["own", "EulerDiscreteScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_half_noised_state_has_the_noise_of_its_timestep(tiny_pipeline, scheduler, share):
    """By hand: power of the picture over that of the noise is ᾱ_t / (1 - ᾱ_t), in any scheduler's scale."""
    one = subject(tiny_pipeline, "tiny_pipeline", steps=10)
    alphas = one.family.schedule.alphas
    if scheduler != "own":
        replace_scheduler(one.family.pipe, scheduler)
    course = Course(one.family, 10)
    place = course.place(share)
    time = float(course.timesteps[place])
    assert share * 1000 - 112 <= time <= share * 1000
    clean, drawn = torch.full((1, 4, 4, 4), 0.7), torch.full((1, 4, 4, 4), -1.3)
    nothing = torch.zeros_like(clean)
    signal = course.noised(clean, nothing, place) / clean
    error = course.noised(nothing, drawn, place) / drawn
    ratio = float((signal / error).flatten()[0]) ** 2
    alpha = float(alphas[round(time)])
    assert ratio == pytest.approx(alpha / (1 - alpha), rel=2e-2)
    assert torch.equal(course.noised(clean, drawn, len(course.timesteps)), clean)


def test_a_share_below_the_last_timestep_is_its_last_step(tiny_pipeline):
    course = Course(subject(tiny_pipeline, "tiny_pipeline").family, 3)
    assert course.place(0.001) == len(course.timesteps) - 1
    assert course.place(1.0) == 0


def test_a_timestep_that_is_the_share_is_taken(tiny_pipeline):
    course = Course(subject(tiny_pipeline, "tiny_pipeline").family, 3)
    course.timesteps = torch.tensor([900, 500, 100])
    assert [course.place(share) for share in (0.9, 0.5, 0.499, 0.1)] == [0, 1, 2, 2]


@pytest.mark.parametrize("scheduler", ["own", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_going_on_from_a_state_of_its_own_changes_nothing(tiny_pipeline, scheduler):
    """Of schedulers without a memory; a solver of second order begins anew, so that only the shape is held."""
    one = subject(tiny_pipeline, "tiny_pipeline", steps=4)
    if scheduler != "own":
        replace_scheduler(one.family.pipe, scheduler)
    states: dict[int, torch.Tensor] = {}

    def kept(place: int, state: torch.Tensor) -> torch.Tensor:
        states[place] = state.clone()
        return state

    whole = loop(one, ["a star"], [5], after=kept)
    assert sorted(states) == [1, 2, 3, 4]
    course = Course(one.family, 4)
    rest = draw(one, course, one.family.encode(["a star"]), generators([5]), states[2], place=2)
    if scheduler == "DPMSolverMultistepScheduler":
        assert rest.shape == whole.shape and bool(torch.isfinite(rest).all())
    else:
        assert torch.equal(rest, whole)


def test_what_is_done_between_steps_counts(tiny_pipeline):
    one = subject(tiny_pipeline, "tiny_pipeline")
    found = loop(one, ["a star"], [5], after=lambda place, state: state * 0 + place)
    assert torch.equal(found, torch.full_like(found, 3))
