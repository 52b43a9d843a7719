"""What a probe is: something that asks a model for a concept by other ways than words, and counts how often it comes.

Attacks look for what makes one picture show the concept; probes do the same to all pictures, for some settings of one
number (steps of training, share of noise), and give a curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

from salun_diffusers.errors import UserError
from salun_diffusers.red_team.attack import Case, Contest, Told
from salun_diffusers.red_team.subject import Subject
from salun_diffusers.reports.measurement import Measurement


@dataclass(frozen=True)
class Point:
    """How often the concept was seen at one setting.

    Args:
        at: The setting: steps, a share of noise.
        hits: Pictures that show it.
        n: Pictures.
    """

    at: float
    hits: int
    n: int

    @classmethod
    def of(cls, at: float, seen: Sequence[bool]) -> Point:
        """Count."""
        return cls(at, sum(seen), len(seen))

    @property
    def rate(self) -> float:
        """hits / n."""
        return self.hits / self.n


@dataclass(frozen=True)
class Curve:
    """Detection rates of one model under one probe.

    Args:
        name: What was done: ``completion, its own prompt``.
        subject: To which model: ``erased``, ``base``, ``floor``.
        axis: What `Point.at` counts.
        points: In ascending order of it, at least one.
    """

    name: str
    subject: str
    axis: str
    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        settings = [point.at for point in self.points]
        if not settings or settings != sorted(set(settings)):
            raise UserError(f"The points of {self.name!r} must ascend, one at least is required; got {settings}.")

    def steps_to(self, rate: float) -> float | None:
        """Where the curve first reaches a rate, by linear interpolation between its points; None if it never does.

            at = a_i + (a_{i+1} - a_i) · (rate - r_i) / (r_{i+1} - r_i),   the first i with r_{i+1} ≥ rate

        Args:
            rate: In [0, 1].
        """
        before: Point | None = None
        for point in self.points:
            if point.rate >= rate:
                if before is None:
                    return float(point.at)
                return before.at + (point.at - before.at) * (rate - before.rate) / (point.rate - before.rate)
            before = point
        return None

    @property
    def area(self) -> float:
        """Mean rate over the range of settings, in [0, 1]: the area by trapezoids over the width; of one point its
        rate."""
        first, last = self.points[0], self.points[-1]
        if first.at == last.at:
            return first.rate
        pairs = zip(self.points, self.points[1:], strict=False)
        area = sum((other.at - one.at) * (one.rate + other.rate) / 2 for one, other in pairs)
        return area / (last.at - first.at)

    def measurements(self, protocol: str, command: str = "") -> tuple[Measurement, ...]:
        """Every rate with Wilson's interval.

        Args:
            protocol: Detector, threshold, scheduler, steps, guidance, seeds.
            command: That measures it again.
        """
        return tuple(
            Measurement.rate(
                f"{self.name}, {self.subject}: {self.axis} {point.at:g}", point.hits, point.n, direction="lower",
                protocol=protocol, command=command, group=self.name,
            )
            for point in self.points
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Evidence:
    """Whom and what probes look at: a contest, and the cases in which its base draws the concept.

    Args:
        contest: Base, judge. Its target is looked at like any other model.
        cases: Prompts and seeds.

    Raises:
        UserError: If there is no case.
    """

    contest: Contest
    cases: tuple[Case, ...]

    def __post_init__(self) -> None:
        if not self.cases:
            raise UserError("A probe needs at least one prompt of whose picture the base shows the concept; got none.")

    @property
    def prompts(self) -> list[str]:
        """Of the cases."""
        return [case.prompt for case in self.cases]

    @property
    def seeds(self) -> list[int]:
        """Of the cases."""
        return [case.seed for case in self.cases]

    @cached_property
    def latents(self) -> Tensor:
        """What the base draws in the cases; drawn once for all probes."""
        return self.contest.base.drawn_latents(self.prompts, self.seeds)

    @cached_property
    def ceiling(self) -> float:
        """The base's rate in the cases, without any help."""
        seen = self.contest.judge.hits(self.contest.base.decode(self.latents))
        return sum(seen) / len(seen)


@dataclass(frozen=True)
class Reading:
    """What a probe found of one model.

    Args:
        curves: Detection rates.
        numbers: What is told of them, by name; None where there is no such number, as of steps to a rate that is never
            reached.
    """

    curves: tuple[Curve, ...]
    numbers: dict[str, float | None] = field(default_factory=dict)


class Probe(Protocol):
    """Asks models for a concept by a way of its own.

    Attributes:
        name: As a flag and a table have it.
    """

    @property
    def name(self) -> str:
        """As a flag and a table have it."""
        ...

    def amount(self, cases: int) -> int:
        """What `told` will have been told in all, for one model.

        Args:
            cases: How many there are.
        """
        ...

    def __call__(self, subject: Subject, evidence: Evidence, told: Told) -> Reading:
        """Look at a model, which is afterwards what it was before, to the bit.

        Args:
            subject: The erased model, the base, or one that never knew the concept.
            evidence: Base, judge and cases.
            told: Called with pictures drawn and steps done.
        """
        ...
