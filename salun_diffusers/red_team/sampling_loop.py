"""The loop that draws a picture, step by step: what pipelines do within, open at both ends and between the steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from salun_diffusers.diffusion.families.family import Conditions, Family, rows
from salun_diffusers.red_team.subject import Subject

After = Callable[[int, Tensor], Tensor]
"""Called after each step with the place of the state that it led to (the number of timesteps after the last) and the
state; what it returns is gone on from."""


def unchanged(place: int, state: Tensor) -> Tensor:
    """Nobody intervenes."""
    return state


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One for each picture, on the CPU, as families draw with."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def noise(family: Family, drawn_by: Sequence[torch.Generator]) -> Tensor:
    """ε of latents, one row for each generator."""
    found: Tensor = randn_tensor(
        (len(drawn_by), *family.latent_shape), generator=list(drawn_by), device=family.device, dtype=torch.float32
    )
    return found


class Course:
    """The states that a scheduler leads a picture through, from noise to the picture.

    Attributes:
        timesteps: Of each step, in the order of drawing.
    """

    def __init__(self, family: Family, steps: int) -> None:
        """Take the scheduler that the family's pipeline draws with; a new one of its kind, so that it stays as it is.

        Args:
            family: The model.
            steps: Sampling steps.
        """
        self._family, self._steps = family, steps
        self._scheduler = self.scheduler_of(family.pipe.scheduler)
        # One that never steps: others take the noise of where they are for that of the timestep.
        self._unmoved = self.scheduler_of(family.pipe.scheduler)
        for one in (self._scheduler, self._unmoved):
            one.set_timesteps(steps, device=family.device)
        self.timesteps: Tensor = self._scheduler.timesteps

    def scheduler_of(self, own: Any) -> Any:
        """The scheduler of this course; that of the pipeline is `own`."""
        return type(own).from_config(own.config)

    def place(self, share: float) -> int:
        """The first step whose timestep is at most a share of all T; the last step where there is none.

        Args:
            share: In [0, 1].
        """
        most = share * self._family.schedule.num_train_timesteps
        # A scheduler of second order has two timesteps a step, and begins at every other one.
        starts = range(0, len(self.timesteps), getattr(self._scheduler, "order", 1))
        return next((place for place in starts if float(self.timesteps[place]) <= most), starts[-1])

    def begin(self, place: int) -> None:
        """Forget earlier pictures, and begin at a step."""
        self._scheduler.set_timesteps(self._steps, device=self._family.device)
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(place)

    def first(self, noise: Tensor) -> Tensor:
        """The state at the first step."""
        state: Tensor = noise * self._scheduler.init_noise_sigma
        return state

    def noised(self, latents: Tensor, noise: Tensor, place: int) -> Tensor:
        """The state at a step whose picture is known, x_t = √ᾱ_t x₀ + √(1-ᾱ_t) ε in the scheduler's own scale.

        Args:
            latents: x₀, `(n, …)`.
            noise: ε.
            place: Of the step; the number of timesteps for the end, where there is no noise.
        """
        if place >= len(self.timesteps):
            return latents
        times = self.timesteps[place : place + 1].repeat(len(latents))
        state: Tensor = self._unmoved.add_noise(latents, noise, times)
        return state

    def scaled(self, state: Tensor, place: int) -> Tensor:
        """What the network sees of a state."""
        seen: Tensor = self._scheduler.scale_model_input(state, self.timesteps[place])
        return seen

    def step(self, answer: Tensor, place: int, state: Tensor, drawn_by: Sequence[torch.Generator]) -> Tensor:
        """The next state.

        Args:
            answer: Of the network, guided.
            place: Of the step.
            state: Before it.
            drawn_by: Noise of schedulers that draw some.
        """
        takes = inspect.signature(self._scheduler.step).parameters
        more: dict[str, Any] = {"generator": list(drawn_by)} if "generator" in takes else {}
        if "eta" in takes:
            more["eta"] = 0.0
        led: Tensor = self._scheduler.step(answer, self.timesteps[place], state, **more).prev_sample
        return led


@torch.no_grad()
def draw(
    subject: Subject,
    course: Course,
    conditions: Conditions,
    drawn_by: Sequence[torch.Generator],
    state: Tensor,
    *,
    place: int = 0,
    after: After = unchanged,
) -> Tensor:
    """Go a course to its end, with classifier-free guidance as the family's pipeline has it.

        ε̂ = ε_θ(x_t, ∅) + g · (ε_θ(x_t, c) - ε_θ(x_t, ∅))

    From the first state of noise and without intervention this is what `Family.generate_from` draws.

    Args:
        subject: Who draws, with which guidance g.
        course: Its steps.
        conditions: c, one row for each picture.
        drawn_by: A generator for each picture, for schedulers that draw noise.
        state: At the step where it begins, one row for each picture.
        place: Of that step.
        after: Intervenes between steps.

    Returns:
        Latents, `(n, …)`.
    """
    family, weight = subject.family, subject.drawing.guidance_scale
    # Pipelines of Stable Diffusion guide above 1, where the two branches differ; that of the DDPM at all but 1.
    guided = weight > 1 if family.has_encoder else weight != 1
    asked = conditions
    if guided:
        empty = rows(family.encode([""]), torch.zeros(len(state), dtype=torch.int64))
        asked = {name: torch.cat([empty[name], tensor]) for name, tensor in conditions.items()}
    course.begin(place)
    for number in range(place, len(course.timesteps)):
        seen = course.scaled(state, number)
        with family.autocast():
            answer = family.predict(
                family.denoiser, torch.cat([seen, seen]) if guided else seen, course.timesteps[number], asked
            )
        if guided:
            without, with_words = answer.chunk(2)
            answer = without + weight * (with_words - without)
        state = after(number + 1, course.step(answer, number, state, drawn_by))
    return state.float()
