"""A number with its uncertainty: what was measured, on how many pictures, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Direction = Literal["higher", "lower", "neither"]
Kind = Literal["rate", "number"]
NORMAL_95 = 1.959964  # 97.5 % quantile of the standard normal distribution


def wilson_interval(successes: int, n: int, z: float = NORMAL_95) -> tuple[float, float]:
    """Bound a rate by Wilson's score interval, which stays honest at 0 of n and n of n.

        (p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n),   p = successes / n

    Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22(158).

    Args:
        successes: How often it happened, 0 to `n`.
        n: How often it was tried, at least 1.
        z: Quantile of the standard normal distribution; the default gives 95 %.

    Returns:
        The lower and the upper limit, in [0, 1].

    Raises:
        ValueError: If `n` is not positive or `successes` is not between 0 and `n`.
    """
    if n < 1:
        raise ValueError(f"A rate needs at least one trial, got n = {n}. Evaluate at least one picture.")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie between 0 and n = {n}, got {successes}. Pass counts, not rates.")
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the limit equals the rate exactly; rounding must not push it past.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return low, high


def poisson_interval(count: int, z: float = NORMAL_95) -> tuple[float, float]:
    """Bound the expectation of a count by Byar's approximation to the exact Poisson limits.

        k (1 - 1/9k - z/3√k)³   and   (k+1) (1 - 1/9(k+1) + z/3√(k+1))³

    Breslow & Day 1987, "Statistical methods in cancer research II", section 2.3. For k = 3 the exact limits are 0.62
    and 8.77, these are 0.60 and 8.77; for k = 0 the upper one is 3.69 and here 3.67.

    Args:
        count: How many were found, k.
        z: Quantile of the standard normal distribution; the default gives 95 %.

    Returns:
        The lower and the upper limit.

    Raises:
        ValueError: If the count is negative.
    """
    if count < 0:
        raise ValueError(f"A count is at least 0, got {count}.")
    low = 0.0 if count == 0 else count * max(0.0, 1 - 1 / (9 * count) - z / (3 * math.sqrt(count))) ** 3
    more = count + 1
    return low, more * (1 - 1 / (9 * more) + z / (3 * math.sqrt(more))) ** 3


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Bound a mean by Student's t.

        mean ± t · s / √n,   s the sample deviation, t the 97.5 % quantile of n - 1 degrees of freedom

    Args:
        values: At least two finite numbers that are independent, such as one per picture.

    Returns:
        The mean, the lower and the upper limit of its 95 % interval.

    Raises:
        ValueError: If there are fewer than two values or one of them is not finite.
    """
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        raise ValueError(f"The interval of a mean needs at least two values, got {n}. Evaluate more pictures.")
    if not all(math.isfinite(value) for value in values):
        raise ValueError("A mean needs finite values, got NaN or infinity. Look for the picture that scores so.")
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
    return mean, mean - half, mean + half


@dataclass(frozen=True)
class Measurement:
    """One measured number; rates lie in [0, 1] and become percent only when printed.

    Args:
        name: What was measured, as a reader would say it: ``star appears``.
        value: The number.
        n: On how many pictures.
        low: Lower limit of the 95 % interval.
        high: Upper limit of the 95 % interval.
        direction: Which way is better.
        protocol: How it was measured, in one sentence.
        command: The command that measures it again; may be empty.
        group: Heading under which reports list it; ``drift`` also makes it a key figure.
        kind: ``rate`` is printed as percent, ``number`` as it is.

    Raises:
        ValueError: If `n` is not positive, the limits do not enclose the value, or a rate leaves [0, 1].
    """

    name: str
    value: float
    n: int
    low: float
    high: float
    direction: Direction
    protocol: str
    command: str = ""
    group: str = ""
    kind: Kind = "number"

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"{self.name!r} must be measured on at least one picture, got n = {self.n}.")
        if not self.low <= self.value <= self.high or math.isinf(self.low) or math.isinf(self.high):
            raise ValueError(
                f"{self.name!r} needs finite limits with low <= value <= high, got {self.low}, {self.value}, "
                f"{self.high}. wilson_interval and mean_interval give such limits."
            )
        if self.direction not in ("higher", "lower", "neither"):
            raise ValueError(f"direction must be 'higher', 'lower' or 'neither', got {self.direction!r}.")
        if self.kind not in ("rate", "number"):
            raise ValueError(f"kind must be 'rate' or 'number', got {self.kind!r}.")
        if self.kind == "rate" and not (self.low >= 0 and self.high <= 1):
            raise ValueError(
                f"The rate {self.name!r} must lie in [0, 1], got {self.value} in [{self.low}, {self.high}]. "
                "Rates are fractions: 0.41 is printed as 41 %."
            )

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
        command: str = "",
        group: str = "",
    ) -> Measurement:
        """Average one number per picture, with Student's 95 % interval."""
        mean, low, high = mean_interval(values)
        return cls(name, mean, len(values), low, high, direction, protocol, command, group, "number")

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object; `from_json` gives an equal measurement back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Measurement:
        """Rebuild a measurement from `to_json`."""
        return cls(**data)

    def text(self) -> str:
        """Print the value: ``41 %`` for a rate, three significant digits for a number."""
        return _printed(self.value, self.kind)

    def interval_text(self) -> str:
        """Print the 95 % interval: ``31.9 to 50.8 %``."""
        low, high = _printed(self.low, self.kind), _printed(self.high, self.kind)
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
            raise ValueError(
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
