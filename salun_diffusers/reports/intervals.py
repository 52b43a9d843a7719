"""95 % intervals: of rates, of counts, of means, and of the difference of two rates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from salun_diffusers.errors import UserError

NORMAL_95 = 1.959964  # 97.5 % quantile of the standard normal distribution


def score_limits(rate: float, n: float, z: float = NORMAL_95) -> tuple[float, float]:
    """Wilson's score interval of a rate.

        (p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n)

    Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22(158).

    Args:
        rate: p, in [0, 1].
        n: How often it was tried.
        z: Quantile of the standard normal distribution; the default gives 95 %.
    """
    centre = rate + z * z / (2 * n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the limit equals the rate exactly; rounding must not push it past.
    return (0.0 if rate == 0 else (centre - half) / scale), (1.0 if rate == 1 else (centre + half) / scale)


def wilson_interval(successes: int, n: int, z: float = NORMAL_95) -> tuple[float, float]:
    """Bound a rate by `score_limits`, which stay honest at 0 of n and n of n.

    Args:
        successes: How often it happened, 0 to `n`.
        n: How often it was tried, at least 1.
        z: Quantile of the standard normal distribution; the default gives 95 %.

    Returns:
        The lower and the upper limit, in [0, 1].

    Raises:
        UserError: If `n` is not positive or `successes` is not between 0 and `n`.
    """
    if n < 1:
        raise UserError(f"A rate needs at least one trial, got n = {n}. Evaluate at least one picture.")
    if not 0 <= successes <= n:
        raise UserError(f"successes must lie between 0 and n = {n}, got {successes}. Pass counts, not rates.")
    return score_limits(successes / n, n, z)


def fall_limits(before: float, n: float, after: float, m: float) -> tuple[float, float]:
    """Bound how far a rate fell, by the score limits of both.

        d - √((p₁ - l₁)² + (u₂ - p₂)²)   and   d + √((u₁ - p₁)² + (p₂ - l₂)²),   d = p₁ - p₂

    Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10, Statistics in
    Medicine 17(8). Two samples at equal seeds are no more apart than independent ones, so it is wide enough for them.

    Args:
        before: p₁.
        n: How often it was tried.
        after: p₂.
        m: How often that was tried.
    """
    (low, high), (later_low, later_high) = score_limits(before, n), score_limits(after, m)
    fall = before - after
    return fall - math.hypot(before - low, later_high - after), fall + math.hypot(high - before, after - later_low)


def poisson_interval(count: int) -> tuple[float, float]:
    """Bound the expectation of a count by the exact Poisson limits.

        P(X ≥ k | low) = 2.5 %   and   P(X ≤ k | high) = 2.5 %

    Garwood 1936, "Fiducial limits for the Poisson distribution", Biometrika 28: quantiles of gamma distributions with
    the shapes k and k + 1. For k = 3 they are 0.6187 and 8.7673, for k = 0 they are 0 and 3.6889.

    Args:
        count: How many were found, k.

    Returns:
        The lower and the upper limit.

    Raises:
        UserError: If the count is negative.
    """
    from scipy.special import gammaincinv

    if count < 0:
        raise UserError(f"A count is at least 0, got {count}.")
    return (float(gammaincinv(count, 0.025)) if count else 0.0), float(gammaincinv(count + 1, 0.975))


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Bound a mean by Student's t.

        mean ± t · s / √n,   s the sample deviation, t the 97.5 % quantile of n - 1 degrees of freedom

    Args:
        values: At least two finite numbers that are independent, such as one per picture.

    Returns:
        The mean, the lower and the upper limit of its 95 % interval.

    Raises:
        UserError: If there are fewer than two values or one of them is not finite.
    """
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        raise UserError(f"The interval of a mean needs at least two values, got {n}. Evaluate more pictures.")
    mean = finite_mean(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
    return mean, mean - half, mean + half


def finite_mean(values: Sequence[float]) -> float:
    """The mean of at least one finite number.

    Raises:
        UserError: If there is none, or one of them is not finite.
    """
    if not values:
        raise UserError("A mean needs at least one value, got none. Evaluate at least one picture.")
    wrong = next((at for at, value in enumerate(values) if not math.isfinite(value)), None)
    if wrong is not None:
        raise UserError(
            f"A mean needs finite values, got {values[wrong]} as number {wrong + 1} of {len(values)}. Look for the "
            "picture that scores so."
        )
    return math.fsum(values) / len(values)
