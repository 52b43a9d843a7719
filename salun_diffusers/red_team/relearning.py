"""How few steps of training bring a concept back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from salun_diffusers.diffusion.batches import shuffled
from salun_diffusers.diffusion.families.family import Conditions, Family, rows
from salun_diffusers.errors import UserError
from salun_diffusers.masks.trained_weights import TrainedWeights
from salun_diffusers.red_team.attack import Told
from salun_diffusers.red_team.denoising import is_small
from salun_diffusers.red_team.lessons import ConceptPictures, Lesson, Lessons
from salun_diffusers.red_team.practice import ByLora, Way, practising
from salun_diffusers.red_team.probe import Curve, Evidence, Point, Reading
from salun_diffusers.red_team.subject import Subject
from salun_diffusers.seeds import random_state_kept, stream

_PRECISION = {"fp16": torch.float16, "bf16": torch.bfloat16}


QUICK, FULL = (0, 10, 25, 50, 100), (0, 10, 25, 50, 100, 250, 500)


@dataclass(frozen=True)
class Pace:
    """How a network of a size learns again; the same for all that were erased from one base, however that was done.

    Args:
        weights: Learning rate of the network's own weights.
        lora: Learning rate of a LoRA.
        batch_size: Pictures a step.
    """

    weights: float
    lora: float
    batch_size: int

    @classmethod
    def of(cls, family: Family) -> Pace:
        """By the size of the denoiser.

        Of Stable Diffusion's size MemoRa's LoRA (1e-4, one picture a step), and for the weights themselves a tenth of
        that, the rate at which SalUn moves them. Below 20 million weights, as of the demo, 1e-4 moves no LoRA within
        100 steps: thirty and ten times as much, and four pictures a step.
        """
        return cls(1e-4, 3e-3, 4) if is_small(family) else cls(1e-5, 1e-4, 1)

    def rate(self, way: Way) -> float:
        """Of a way to train."""
        return self.lora if isinstance(way, ByLora) else self.weights


@final
@dataclass(frozen=True)
class Relearning:
    """Train a copy of a model on a few pictures, and count after some steps how often plain prompts show the concept.

        ℓ = ‖ f_θ(x_t, c) - y_t ‖²,   y_t the network's own target (ε, v or x₀) of the drawn noise, t uniform

    The defaults are those of MemoRa (gmum/MemoRa@f770e7f, arXiv 2510.03263): LoRA of rank 4, rate 1e-4, one picture a
    step. Checkpoints are pictures of one training: what is drawn at step 50 has had the first 50 of the 500 steps.

    Differs from the official code: the pictures are drawn by the base at seeds of their own; there they are made by
    inverting and mixing pictures of three pairs of seeds. The concept is looked for in pictures of plain prompts.

    Args:
        way: What is trained.
        lessons: On which pictures.
        steps: After how many steps is looked; ascending, the first is 0.
        batch_size: Pictures a step.
        learning_rate: Constant.
        optimizer: Adam without decay, or plain gradient descent.
        mixed_precision: Of training.
        seed: Of pictures, order, timesteps, noise and LoRA.

    Raises:
        UserError: If a number is none of these.
    """

    way: Way = ByLora()  # noqa: RUF009  # frozen
    lessons: Lessons = ConceptPictures()  # noqa: RUF009  # frozen
    steps: tuple[int, ...] = FULL
    batch_size: int = 1
    learning_rate: float = 1e-4
    optimizer: Literal["adam", "sgd"] = "adam"
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps[:1] != (0,) or list(self.steps) != sorted(set(self.steps)):
            raise UserError(f"Steps of relearning must ascend from 0, such as 0, 10, 100; got {self.steps}.")
        if self.batch_size < 1:
            raise UserError(f"One picture a step or more is required to relearn, got {self.batch_size}.")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"The learning rate of relearning must be positive, got {self.learning_rate}.")
        if self.optimizer not in ("adam", "sgd"):
            raise UserError(f"The optimizer of relearning must be adam or sgd, got {self.optimizer!r}.")

    @classmethod
    def at_pace(cls, family: Family, way: Way, lessons: Lessons, steps: tuple[int, ...] = QUICK) -> Relearning:
        """At the pace of a model's size; by default up to 100 steps.

        Args:
            family: The model.
            way: What is trained.
            lessons: On which pictures.
            steps: After how many steps is looked.
        """
        pace = Pace.of(family)
        return cls(way, lessons, steps, pace.batch_size, pace.rate(way))

    @property
    def name(self) -> str:
        """``relearning by LoRA 4 from the concept``."""
        return f"relearning by {self.way.name} from {self.lessons.name}"

    def amount(self, cases: int) -> int:
        """Pictures drawn and steps done."""
        return len(self.steps) * cases + self.steps[-1]

    def __call__(self, subject: Subject, evidence: Evidence, told: Told) -> Reading:
        """Train and look, in turn.

        Returns:
            The curve over steps; ``steps to half`` of the base's rate (of 1, where the base does not know what is
            taught; None if it is never reached) and the ``area`` under the curve.

        Raises:
            UserError: If training diverges, or a mask is of another network.
        """
        with random_state_kept():
            lesson = self.lessons.of(evidence, self.seed)
            student = practising(subject)
            points = self._points(student, lesson, evidence, told)
        curve = Curve(self.name, subject.name, "steps", tuple(points))
        ceiling = evidence.ceiling if evidence.ceiling > 0 else 1.0
        return Reading((curve,), {"steps to half": curve.steps_to(ceiling / 2), "area": curve.area})

    def _points(self, student: Subject, lesson: Lesson, evidence: Evidence, told: Told) -> list[Point]:
        """The curve, of a model that is changed."""
        network = student.family.denoiser
        weights = self.way.weights(network, self.seed)
        conditions = lesson.conditions(student.family)
        step = self._stepping(student, weights, lesson.latents, conditions)
        points, done = [], 0
        with weights.in_training(gather_as_they_come=False):
            for upto in self.steps:
                for number in range(done, upto):
                    step(number)
                told(upto - done)
                done = upto
                pictures = student.drawn(evidence.prompts, evidence.seeds)
                points.append(Point.of(upto, evidence.contest.judge.hits(pictures)))
                told(len(pictures))
        return points

    def _stepping(
        self, student: Subject, weights: TrainedWeights, latents: Tensor, conditions: Conditions
    ) -> Callable[[int], None]:
        """One step by its number."""
        family = student.family
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.SGD
        stepper = kind(weights.weights, lr=self.learning_rate)
        dtype = _PRECISION.get(self.mixed_precision, torch.float32)
        scaler = torch.amp.GradScaler(family.device.type, enabled=dtype == torch.float16)

        def step(number: int) -> None:
            picked = shuffled(
                len(latents), self.batch_size, number * self.batch_size, seed=self.seed, name="relearning"
            )
            drawn_by = stream(self.seed, "relearning", number)
            times = family.schedule.sample(len(picked), drawn_by).to(family.device)
            clean = latents[picked.to(latents.device)]
            noise = torch.randn(clean.shape, generator=drawn_by).to(family.device)
            noised = family.schedule.noised(clean, noise, times)
            with torch.autocast(family.device.type, dtype, enabled=dtype != torch.float32):
                answer = family.predict(family.denoiser, noised, times, rows(conditions, picked))
            loss = F.mse_loss(answer, family.schedule.target(clean, noise, times))
            if not math.isfinite(loss.item()):
                raise UserError(
                    f"Relearning diverged at step {number + 1} (loss {loss.item()}): a lower learning rate than "
                    f"{self.learning_rate:g} is required."
                )
            scaler.scale(loss).backward()
            weights.gather_gradients()
            scaler.step(stepper)
            scaler.update()
            stepper.zero_grad()
            weights.scatter()

        return step
