"""A number with its uncertainty: what was measured, on how many pictures, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from salun_diffusers.errors import UserError
from salun_diffusers.reports.intervals import finite_mean, mean_interval, poisson_interval, wilson_interval

Direction = Literal["higher", "lower", "neither"]
Kind = Literal["rate", "number"]
Limits = tuple[float, float]
UNBOUNDED: Limits = (-math.inf, math.inf)


@dataclass(frozen=True)
class Measurement:
    """One measured number; rates lie in [0, 1] and become percent only when printed.

    Args:
        name: What was measured, as a reader would say it: ``star appears``.
        value: The number.
        n: On how many pictures.
        low: Lower limit of the 95 % interval; None where there is no interval: of a single value, of a time, of a mean
            over subsets that overlap.
        high: Upper limit of the 95 % interval, or None as well.
        direction: Which way is better.
        protocol: How it was measured, in one sentence.
        command: The command that measures it again; may be empty.
        group: Heading under which reports list it; ``drift`` also makes it a key figure.
        kind: ``rate`` is printed as percent, ``number`` as it is.
        subject: What exactly was measured, where the name does not say it: the data, what was forgotten, the prompts.
            Runs share a row of a comparison where name and subject are equal.

    Raises:
        UserError: If `n` is not positive, the limits do not enclose the value, or a rate leaves [0, 1].
    """

    name: str
    value: float
    n: int
    low: float | None
    high: float | None
    direction: Direction
    protocol: str
    command: str = ""
    group: str = ""
    kind: Kind = "number"
    subject: str = ""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UserError(f"{self.name!r} must be measured on at least one picture, got n = {self.n}.")
        low, high = self.interval or (self.value, self.value)
        if not low <= self.value <= high or math.isinf(low) or math.isinf(high):
            raise UserError(
                f"{self.name!r} needs finite limits with low <= value <= high, got {self.low}, {self.value}, "
                f"{self.high}. wilson_interval and mean_interval give such limits."
            )
        if self.direction not in ("higher", "lower", "neither"):
            raise UserError(f"direction must be 'higher', 'lower' or 'neither', got {self.direction!r}.")
        if self.kind not in ("rate", "number"):
            raise UserError(f"kind must be 'rate' or 'number', got {self.kind!r}.")
        if self.kind == "rate" and not (low >= 0 and high <= 1):
            raise UserError(
                f"The rate {self.name!r} must lie in [0, 1], got {self.value} in [{self.low}, {self.high}]. "
                "Rates are fractions: 0.41 is printed as 41 %."
            )

    @property
    def interval(self) -> Limits | None:
        """Both limits of the 95 % interval, or None where there is none."""
        if self.low is None or self.high is None:
            if self.low is not self.high:
                raise UserError(f"{self.name!r} has an interval or none, got limits {self.low} and {self.high}.")
            return None
        return self.low, self.high

    @classmethod
    def rate(
        cls,
        name: str,
        successes: int,
        n: int,
        *,
        direction: Direction,
        protocol: str,
        command: str = "",
        group: str = "",
    ) -> Measurement:
        """Measure how often something happened, with Wilson's 95 % interval.

        Example:
            >>> Measurement.rate("star appears", 41, 100, direction="lower", protocol="detector").text()
            '41 %'
        """
        low, high = wilson_interval(successes, n)
        return cls(name, successes / n, n, low, high, direction, protocol, command, group, "rate")

    @classmethod
    def count(
        cls,
        name: str,
        found: int,
        n: int,
        *,
        direction: Direction,
        protocol: str,
        command: str = "",
        group: str = "",
    ) -> Measurement:
        """Count things that a picture may hold several of, with the Poisson 95 % interval."""
        low, high = poisson_interval(found)
        return cls(name, float(found), n, low, high, direction, protocol, command, group, "number")

    @classmethod
    def mean(
        cls,
        name: str,
        values: Sequence[float],
        *,
        direction: Direction,
        protocol: str,
        bounds: Limits = UNBOUNDED,
        command: str = "",
        group: str = "",
    ) -> Measurement:
        """Average one number per picture, with Student's 95 % interval; of one picture there is none.

        Args:
            name: What was measured.
            values: One per picture.
            direction: Which way is better.
            protocol: How it was measured.
            bounds: What the measure can be at all, such as -1 and 1 of SSIM: Student's interval knows nothing of that
                and ends there.
            command: The command that measures it again.
            group: Heading in reports.
        """
        mean, low, high = finite_mean(values), None, None
        smallest, largest = bounds
        if not smallest - 1e-6 <= mean <= largest + 1e-6:
            raise UserError(f"{name!r} lies between {smallest:g} and {largest:g}, got {mean:g}.")
        if len(values) > 1:
            _, low, high = mean_interval(values)
            # Rounding may put a mean of values at the bound a last digit past it.
            low, high = min(max(low, smallest), mean), max(min(high, largest), mean)
        return cls(name, mean, len(values), low, high, direction, protocol, command, group)

    def of(self, subject: str) -> Measurement:
        """The same number, with what exactly it was measured on."""
        return replace(self, subject=subject)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object; `from_json` gives an equal measurement back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """Rebuild a measurement from `to_json`.

        Raises:
            TypeError: If a value is of another type.
        """
        for name in ("name", "direction", "protocol", "command", "group", "kind", "subject"):
            if not isinstance(data.get(name, ""), str):
                raise TypeError(f"{name!r} of a measurement must be a text, found {str(data[name])[:60]!r}")
        for name in ("value", "n", "low", "high"):
            value = data.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise TypeError(f"{name!r} of a measurement must be a number, found {str(value)[:60]!r}")
        return cls(**data)

    def text(self) -> str:
        """Print the value: ``41 %`` for a rate, three significant digits for a number."""
        return _printed(self.value, self.kind)

    def interval_text(self) -> str:
        """Print the 95 % interval: ``31.9 to 50.8 %``; ``no interval`` where there is none."""
        if self.interval is None:
            return "no interval"
        low, high = (_printed(limit, self.kind) for limit in self.interval)
        return f"{low.removesuffix(' %')} to {high}"


@dataclass(frozen=True)
class Comparison:
    """The same measurement of the base model and of the erased one.

    Args:
        name: What was measured.
        before: Measured on the base model.
        after: Measured on the erased model.

    Raises:
        ValueError: If the two differ in kind or direction and so cannot be compared.
    """

    name: str
    before: Measurement
    after: Measurement

    def __post_init__(self) -> None:
        if (self.before.kind, self.before.direction) != (self.after.kind, self.after.direction):
            raise UserError(
                f"{self.name!r} compares two different things: a {self.before.kind} where {self.before.direction} is "
                f"better with a {self.after.kind} where {self.after.direction} is. Measure both models the same way."
            )

    @property
    def change(self) -> float:
        """Value after minus value before."""
        return self.after.value - self.before.value

    def change_text(self) -> str:
        """Print the change with its sign: ``-57 points`` for rates, a plain number otherwise."""
        if self.before.kind == "number":
            return _signed(_printed(abs(self.change), "number"), self.change)
        points = _printed(abs(self.change), "rate").removesuffix(" %")
        return f"{_signed(points, self.change)} point{'' if points == '1' else 's'}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        """Rebuild a comparison from `to_json`."""
        return cls(data["name"], Measurement.from_json(data["before"]), Measurement.from_json(data["after"]))


def _signed(magnitude: str, change: float) -> str:
    if float(magnitude.replace(",", "")) == 0:
        return "±0"
    return f"{'+' if change > 0 else '-'}{magnitude}"


def _printed(value: float, kind: Kind) -> str:
    if kind == "rate":
        return percent(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def percent(rate: float) -> str:
    """Print a rate in [0, 1] with at most one decimal: ``41 %``, ``99.4 %``."""
    return f"{100 * rate:.1f}".removesuffix(".0") + " %"
