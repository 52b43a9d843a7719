"""Drawing with more noise than a sampler takes: trajectories that training for an erasure has not been on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from diffusers import DDIMScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from salun_diffusers.diffusion.families.family import Conditions, Family
from salun_diffusers.errors import UserError
from salun_diffusers.red_team.attack import Told
from salun_diffusers.red_team.probe import Curve, Evidence, Point, Reading
from salun_diffusers.red_team.sampling_loop import Course, draw, noise
from salun_diffusers.red_team.side_doors import OWN, asked, seen_through
from salun_diffusers.red_team.subject import Subject
from salun_diffusers.seeds import random_state_kept


class NoisyCourse(Course):
    """DDIM whose noise may exceed what the state has room for (kevinlu4588/WhenAreConceptsErased@9a03e07).

        x_{t'} = √ᾱ' x̂₀ + √|1 - ᾱ' - σ²| ε̂ + κ σ z        σ = η √((1-ᾱ')/(1-ᾱ)) √(1-ᾱ/ᾱ')

    with z ~ N(0, 1), ᾱ at t and ᾱ' at the next timestep t' (arXiv 2010.02502, eq. 12 and 16). η = 0 is DDIM, η = 1
    DDPM; beyond 1, and with κ > 1, states are noisier than the network was trained on. diffusers' own step has no
    absolute value, and gives NaN where σ² > 1 - ᾱ'.
    """

    def __init__(self, family: Family, steps: int, eta: float, scale: float) -> None:
        """As `Course`, with DDIM on the noise of the pipeline's scheduler.

        Args:
            family: The model.
            steps: Sampling steps.
            eta: η.
            scale: κ.
        """
        super().__init__(family, steps)
        self._eta, self._scale = eta, scale

    def scheduler_of(self, own: Any) -> Any:
        """DDIM; it clips x̂₀ only where the pipeline's own does."""
        return DDIMScheduler.from_config(own.config, clip_sample=own.config.get("clip_sample", False))

    def step(self, answer: Tensor, place: int, state: Tensor, drawn_by: Sequence[torch.Generator]) -> Tensor:
        """The next state."""
        scheduler, time = self._scheduler, int(self.timesteps[place])
        then = time - scheduler.config.num_train_timesteps // self._steps
        alpha = float(scheduler.alphas_cumprod[time])
        next_alpha = float(scheduler.alphas_cumprod[then] if then >= 0 else scheduler.final_alpha_cumprod)
        signal, dirt = math.sqrt(alpha), math.sqrt(1 - alpha)
        kind = scheduler.config.prediction_type
        if kind == "epsilon":
            clean, error = (state - dirt * answer) / signal, answer
        elif kind == "sample":
            clean, error = answer, (state - signal * answer) / dirt
        else:
            clean, error = signal * state - dirt * answer, signal * answer + dirt * state
        if scheduler.config.clip_sample:
            clean = clean.clamp(-scheduler.config.clip_sample_range, scheduler.config.clip_sample_range)
        sigma = self._eta * math.sqrt((1 - next_alpha) / (1 - alpha) * max(0.0, 1 - alpha / next_alpha))
        led: Tensor = math.sqrt(next_alpha) * clean + math.sqrt(abs(1 - next_alpha - sigma**2)) * error
        if sigma > 0:
            drawn: Tensor = randn_tensor(state.shape, generator=list(drawn_by), device=state.device, dtype=state.dtype)
            led = led + self._scale * sigma * drawn
        return led


@final
@dataclass(frozen=True)
class AddedNoise:
    """Draw plain prompts by DDIM with ever more noise in every step, see `NoisyCourse` (arXiv 2505.17013).

    Differs from the official code: a case counts at every η by itself, and once more where any of them hits; there the
    best of all 24 pictures of a prompt is kept, by a classifier. Steps and guidance are the examination's, there 50
    and 7.5.

    Args:
        etas: η.
        scales: κ; each is drawn with each η.

    Raises:
        UserError: If one is none.
    """

    etas: tuple[float, ...] = (1.0, 1.17, 1.34, 1.51, 1.68, 1.85)
    scales: tuple[float, ...] = (1.0, 1.02, 1.03, 1.04)
    name = "added noise"

    def __post_init__(self) -> None:
        for what, values in (("eta", self.etas), ("scale", self.scales)):
            if not values or list(values) != sorted(set(values)) or not 0 <= values[0] <= values[-1] < math.inf:
                raise UserError(f"Added noise needs ascending values of {what}, at least 0; got {values}.")

    @classmethod
    def quick(cls) -> AddedNoise:
        """Two values of η, at the largest κ: beyond them the few steps of a small model leave nothing to be seen."""
        return cls((1.0, 1.34), (1.04,))

    def amount(self, cases: int) -> int:
        """Pictures drawn."""
        return len(self.etas) * len(self.scales) * cases

    def __call__(self, subject: Subject, evidence: Evidence, told: Told) -> Reading:
        """A curve over η for each κ; and ``any``, the rate of cases with a hit at any of them."""
        ever = [False] * len(evidence.cases)
        with random_state_kept():
            conditions, curves = asked(subject, evidence)[OWN], []
            for scale in self.scales:
                points = []
                for eta in self.etas:
                    seen = self._seen(subject, evidence, conditions, (eta, scale), told)
                    points.append(Point.of(eta, seen))
                    ever = [one or other for one, other in zip(ever, seen, strict=True)]
                curves.append(Curve(f"{self.name} x {scale:g}, {OWN}", subject.name, "eta", tuple(points)))
            curves.append(Curve(f"{self.name}, any", subject.name, "tries", (Point.of(self.amount(1), ever),)))
        return Reading(tuple(curves))

    def _seen(
        self, subject: Subject, evidence: Evidence, conditions: Conditions, at: tuple[float, float], told: Told
    ) -> list[bool]:
        eta, scale = at
        course = NoisyCourse(subject.family, subject.drawing.num_inference_steps, eta, scale)

        def drawn(part: Tensor, asked_for: Conditions, drawn_by: list[torch.Generator]) -> Tensor:
            state = course.first(noise(subject.family, drawn_by))
            return draw(subject, course, asked_for, drawn_by, state)

        door = f"{self.name}/{eta:g}/{scale:g}", drawn
        return seen_through(subject, evidence, conditions, door, told)
