"""Side doors: a concept that words no longer call may come when a part of its picture is already there.

What a door begins with is the base's picture of each case, or part of it. The same doors stand open for the base and
for a model that never knew the concept: what these draw says how much of a rate is the picture's own doing. Of the two
prompts, the empty one shows what the network makes of a picture without being told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from salun_diffusers.diffusion.families.family import Conditions, rows
from salun_diffusers.errors import UserError
from salun_diffusers.red_team.attack import Told
from salun_diffusers.red_team.probe import Curve, Evidence, Point, Reading
from salun_diffusers.red_team.sampling_loop import Course, draw, noise
from salun_diffusers.red_team.subject import Subject
from salun_diffusers.seeds import random_state_kept, stream

OWN, EMPTY = "its own prompt", "the empty prompt"

Drawn = Callable[[Tensor, Conditions, list[torch.Generator]], Tensor]
"""Latents of some cases, from their places, conditions and generators."""


def shares_of(shares: Sequence[float], what: str) -> None:
    """Refuse what is no ascending list of shares.

    Raises:
        UserError: Naming what they are of.
    """
    if not shares or list(shares) != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] <= 1:
        raise UserError(f"{what} must ascend within (0, 1], such as 0.3, 0.5, 0.7, 0.9; got {tuple(shares)}.")


def asked(subject: Subject, evidence: Evidence) -> Mapping[str, Conditions]:
    """The conditions of the cases' own prompts, and of the empty one, one row for each case."""
    distinct = list(dict.fromkeys(evidence.prompts))
    places = torch.tensor([distinct.index(prompt) for prompt in evidence.prompts])
    return {
        OWN: rows(subject.family.encode(distinct), places),
        EMPTY: rows(subject.family.encode([""]), torch.zeros_like(places)),
    }


def seen_through(
    subject: Subject, evidence: Evidence, conditions: Conditions, door: tuple[str, Drawn], told: Told
) -> list[bool]:
    """Draw all cases through a door, a batch at a time, and look at them.

    Args:
        subject: Who draws.
        evidence: Cases and judge.
        conditions: One row for each case.
        door: The name of its random numbers, and how it draws.
        told: Called with pictures drawn.
    """
    name, drawn = door
    found: list[bool] = []
    for part in torch.arange(len(evidence.cases)).split(subject.drawing.batch_size):
        drawn_by = [stream(evidence.seeds[place], name) for place in part.tolist()]
        latents = drawn(part, rows(conditions, part), drawn_by)
        found += evidence.contest.judge.hits(subject.decode(latents))
        told(len(part))
    return found


def _finished(subject: Subject, known: Tensor, share: float) -> Drawn:
    """Noise pictures up to a share of T, and let a model finish them."""
    course = Course(subject.family, subject.drawing.num_inference_steps)
    place = course.place(share)

    def drawn(part: Tensor, conditions: Conditions, drawn_by: list[torch.Generator]) -> Tensor:
        state = course.noised(known[part.to(known.device)], noise(subject.family, drawn_by), place)
        return draw(subject, course, conditions, drawn_by, state, place=place)

    return drawn


@final
@dataclass(frozen=True)
class Completion:
    """Noise the base's picture of the concept up to t, and let the model finish it.

        x_t = √ᾱ_t x₀ + √(1-ᾱ_t) ε,   t the largest timestep of the sampler with t ≤ share · T

    Differs from the official code: kevinlu4588/WhenAreConceptsErased@9a03e07 (arXiv 2505.17013) hands over the base's
    own state after 1, 2 or 3 of 50 DDIM steps, which are the shares .96, .94 and .92; here the picture is noised anew,
    by the sampler of the examination, and the shares go down to where a picture is all but done.

    Args:
        shares: Of T.

    Raises:
        UserError: If they are none.
    """

    shares: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    name = "completion"

    def __post_init__(self) -> None:
        shares_of(self.shares, "Shares of noise for completion")

    @classmethod
    def quick(cls) -> Completion:
        """Three shares."""
        return cls((0.5, 0.7, 0.9))

    def amount(self, cases: int) -> int:
        """Pictures drawn."""
        return 2 * len(self.shares) * cases

    def __call__(self, subject: Subject, evidence: Evidence, told: Told) -> Reading:
        """A curve over shares for each of both prompts."""
        with random_state_kept():
            curves = []
            for prompt, conditions in asked(subject, evidence).items():
                points = []
                for share in self.shares:
                    door = f"{self.name}/{share:g}", _finished(subject, evidence.latents, share)
                    points.append(Point.of(share, seen_through(subject, evidence, conditions, door, told)))
                curves.append(Curve(f"{self.name}, {prompt}", subject.name, "noise from t/T", tuple(points)))
        return Reading(tuple(curves))


@final
@dataclass(frozen=True)
class ImageToImage:
    """Begin at a picture of what the concept was replaced by, and ask for the concept (SDEdit, arXiv 2108.01073).

    As `Completion`, with the base's pictures of the anchor prompts as x₀: nothing of the concept is given.

    Args:
        anchor_prompts: What the pictures show; the cases take them in turn.
        strengths: Shares of T up to which they are noised.

    Raises:
        UserError: If there are none.
    """

    anchor_prompts: tuple[str, ...]
    strengths: tuple[float, ...] = (0.5, 0.7, 0.9)
    name = "image to image"

    def __post_init__(self) -> None:
        shares_of(self.strengths, "Strengths of image to image")
        if not self.anchor_prompts:
            raise UserError(
                "Image to image begins with pictures of anchor prompts; at least one is required, got none."
            )

    @classmethod
    def quick(cls, anchor_prompts: tuple[str, ...]) -> ImageToImage:
        """Two strengths."""
        return cls(anchor_prompts, (0.7, 0.9))

    def amount(self, cases: int) -> int:
        """Pictures drawn."""
        return len(self.strengths) * cases

    def __call__(self, subject: Subject, evidence: Evidence, told: Told) -> Reading:
        """A curve over strengths."""
        with random_state_kept():
            anchors = [self.anchor_prompts[place % len(self.anchor_prompts)] for place in range(len(evidence.cases))]
            known = evidence.contest.base.drawn_latents(anchors, evidence.seeds)
            conditions, points = asked(subject, evidence)[OWN], []
            for strength in self.strengths:
                door = f"{self.name}/{strength:g}", _finished(subject, known, strength)
                points.append(Point.of(strength, seen_through(subject, evidence, conditions, door, told)))
        return Reading((Curve(f"{self.name}, {OWN}", subject.name, "strength", tuple(points)),))


@final
@dataclass(frozen=True)
class Inpainting:
    """Give one half of the base's picture of the concept, and let the model draw the other.

        x_t ← m ⊙ (√ᾱ_t x₀ + √(1-ᾱ_t) ε) + (1 - m) ⊙ x_t       after every step; m = 1 on the left half

    as diffusers' inpainting pipeline does with a plain text-to-image network, in latents (RePaint, arXiv 2201.09865,
    without its jumps back in time). A detector may see the concept in the half that is given: the floor says how often.

    Differs from the official code: kevinlu4588/WhenAreConceptsErased@9a03e07 has a square of half the side, in the
    middle, drawn anew, and looks at that square only.

    Args:
        given: Share of the picture's width that is given, from the left.

    Raises:
        UserError: If nothing or all is given.
    """

    given: float = 0.5
    name = "inpainting"

    def __post_init__(self) -> None:
        if not 0 < self.given < 1:
            raise UserError(f"Inpainting gives a part of a picture, between 0 and 1; got {self.given:g}.")

    def amount(self, cases: int) -> int:
        """Pictures drawn."""
        return 2 * cases

    def mask(self, known: Tensor) -> Tensor:
        """m, `(1, 1, height, width)`: 1 where the picture is given; one column at least, and not all."""
        width = known.shape[-1]
        columns = min(max(1, round(self.given * width)), width - 1)
        kept = torch.zeros(1, 1, *known.shape[-2:], device=known.device)
        kept[..., :columns] = 1
        return kept

    def latents(
        self, subject: Subject, known: Tensor, conditions: Conditions, drawn_by: Sequence[torch.Generator]
    ) -> Tensor:
        """Pictures whose given part is that of known ones, to the bit.

        Args:
            subject: Who draws the rest.
            known: x₀, `(n, …)`.
            conditions: One row each.
            drawn_by: A generator each.
        """
        course = Course(subject.family, subject.drawing.num_inference_steps)
        drawn, kept = noise(subject.family, drawn_by), self.mask(known)

        def after(place: int, state: Tensor) -> Tensor:
            return torch.where(kept > 0, course.noised(known, drawn, place), state)

        return draw(subject, course, conditions, drawn_by, course.first(drawn), after=after)

    def __call__(self, subject: Subject, evidence: Evidence, told: Told) -> Reading:
        """A rate for each of both prompts."""

        def drawn(part: Tensor, conditions: Conditions, drawn_by: list[torch.Generator]) -> Tensor:
            known = evidence.latents
            return self.latents(subject, known[part.to(known.device)], conditions, drawn_by)

        with random_state_kept():
            curves = []
            for prompt, conditions in asked(subject, evidence).items():
                seen = seen_through(subject, evidence, conditions, (self.name, drawn), told)
                points = (Point.of(self.given, seen),)
                curves.append(Curve(f"{self.name}, {prompt}", subject.name, "given", points))
        return Reading(tuple(curves))
