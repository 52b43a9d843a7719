"""How much an erasure forgets and keeps against its strength s, θ(s) = θ₀ + s·Δθ, and the s that was taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from salun_diffusers.reports.measurement import Measurement, percent


@dataclass(frozen=True)
class StrengthPoint:
    """One place on the line from the base to the erased model.

    Args:
        strength: s, in [0, 1].
        forgotten: Share of pictures of the concept's prompts in which it is not found.
        retained: Share of pictures of the others that show what they should; None where nothing says what that is.
        steps: Of an early checkpoint, at whose full strength this is; 0 on the line of the final weights.
    """

    strength: float
    forgotten: Measurement
    retained: Measurement | None
    steps: int = 0

    @property
    def words(self) -> str:
        """``s = 0.5``, or that of an early checkpoint."""
        return f"after {self.steps} steps" if self.steps else f"s = {self.strength:g}"

    def fall(self, base: StrengthPoint) -> float:
        """How far the retained rate lies below that of the base; 0 where nobody knows."""
        if self.retained is None or base.retained is None:
            return 0.0
        return base.retained.value - self.retained.value

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StrengthPoint:
        """Rebuild a point."""
        kept = data["retained"]
        return cls(
            data["strength"],
            Measurement.from_json(data["forgotten"]),
            None if kept is None else Measurement.from_json(kept),
            data["steps"],
        )


@dataclass(frozen=True)
class StrengthCurve:
    """Points of the line, and the one that was taken.

    Args:
        points: By strength, the base first; early checkpoints last.
        chosen: s of the saved weights.
        steps: Of the early checkpoint that was saved; 0 for the final weights.
        target: Share of pictures that should lose the concept; None where nothing was looked for.
        allowed: How far the retained rate may fall, or None.
        sentence: What came of the search.

    Raises:
        ValueError: If no point is the chosen one.
    """

    points: tuple[StrengthPoint, ...]
    chosen: float = 1.0
    steps: int = 0
    target: float | None = None
    allowed: float | None = None
    sentence: str = ""

    def __post_init__(self) -> None:
        if (self.chosen, self.steps) not in [(point.strength, point.steps) for point in self.points]:
            raise ValueError(f"The chosen strength must be one of the curve's points, got {self.chosen}.")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StrengthCurve:
        """Rebuild a curve from what `dataclasses.asdict` made of it."""
        return cls(**{**data, "points": tuple(map(StrengthPoint.from_json, data["points"]))})


@dataclass(frozen=True)
class Need:
    """What is asked of an erasure.

    Args:
        target: Share of pictures that must lose the concept.
        allowed: How far the retained rate may fall.
    """

    target: float
    allowed: float

    def reached(self, point: StrengthPoint) -> bool:
        """Whether enough is forgotten."""
        return point.forgotten.value >= self.target

    def met(self, point: StrengthPoint, base: StrengthPoint) -> bool:
        """Whether enough is forgotten and enough is kept."""
        return self.reached(point) and point.fall(base) <= self.allowed + 1e-9


def decided(points: Sequence[StrengthPoint], need: Need) -> StrengthCurve:
    """Choose the weakest point that meets a need; where none does, the nearest.

    The nearest is the weakest that forgets enough, whatever it costs, or where none does, the one that forgets most.

    Args:
        points: The base first, then the line by strength, then early checkpoints.
        need: What is asked for.
    """
    base, others = points[0], points[1:]
    wish = f"forget {percent(need.target)}, retained lower by {100 * need.allowed:.3g} points at most"
    met = [point for point in others if need.met(point, base)]
    reached = [point for point in others if need.reached(point)]
    if met:
        found = min(met, key=_strength)
        sentence = f"The weakest that does ({wish}): {found.words}. It {_does(found, base)}."
    else:
        most = max(point.forgotten.value for point in others)
        found = min(reached or [point for point in others if point.forgotten.value == most], key=_strength)
        missing = "the target costs more" if reached else "the target is not reached"
        cure = "raise --max_retain_drop" if reached else "train longer (--max_train_steps) or lower --target_forget"
        sentence = (
            f"No strength does ({wish}): {missing}. The nearest was saved, {found.words}; it {_does(found, base)}. "
            f"To have it otherwise, {cure}."
        )
    return StrengthCurve(tuple(points), found.strength, found.steps, need.target, need.allowed, sentence)


def _strength(point: StrengthPoint) -> tuple[bool, float]:
    """Weakest first; of the line before early checkpoints, the last steps of which come last."""
    return point.steps > 0, point.steps or point.strength


def _does(point: StrengthPoint, base: StrengthPoint) -> str:
    if point.retained is None:
        return f"forgets {percent(point.forgotten.value)}; nothing says what must be retained"
    fall = 100 * point.fall(base)
    many = "" if f"{abs(fall):.3g}" == "1" else "s"
    told = f"{abs(fall):.3g} point{many} {'higher' if fall < 0 else 'lower'}" if abs(fall) > 1e-6 else "as before"
    return f"forgets {percent(point.forgotten.value)} and retains {percent(point.retained.value)} ({told})"
