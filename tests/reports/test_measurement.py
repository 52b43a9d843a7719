"""Intervals against numbers worked out by hand, and measurements that survive JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from salun_diffusers.errors import UserError
from salun_diffusers.reports.intervals import fall_limits, mean_interval, poisson_interval, wilson_interval
from salun_diffusers.reports.measurement import Comparison, Measurement, percent


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (0, 100, 0.0, 0.0370),  # z² / (n + z²) = 3.8415 / 103.8415
        (100, 100, 0.9630, 1.0),
        (50, 100, 0.4038, 0.5962),  # 0.5 ± 0.09617
        (1, 1, 0.2065, 1.0),  # 1 / (1 + z²)
        (0, 4, 0.0, 0.4899),
    ],
)
def test_wilson_interval_matches_hand_derived_limits(successes: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [
        (0, 0.0, 3.68888),  # exp(-u) = 0.025: u = ln 40
        (1, 0.025318, 5.57164),  # 1 - exp(-l) = 0.025: l = -ln 0.975; (1 + u) exp(-u) = 0.025
        (3, 0.61867, 8.76727),
        (10, 4.79539, 18.39036),
    ],
)
def test_poisson_interval_is_exact(count: int, low: float, high: float) -> None:
    assert poisson_interval(count) == pytest.approx((low, high), abs=2e-5)


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_poisson_limits_leave_a_fortieth_on_either_side(count: int) -> None:
    """P(X ≥ k | low) and P(X ≤ k | high), summed term by term."""

    def at_most(k: int, rate: float) -> float:
        return math.fsum(math.exp(i * math.log(rate) - rate - math.lgamma(i + 1)) for i in range(k + 1))

    low, high = poisson_interval(count)
    assert 1 - at_most(count - 1, low) == pytest.approx(0.025, abs=1e-9)
    assert at_most(count, high) == pytest.approx(0.025, abs=1e-9)


def test_the_fall_of_a_rate_by_hand() -> None:
    """56/70 and 48/80, Newcombe's own example (1998, Table II, case a, method 10): 0.0524 to 0.3339."""
    assert fall_limits(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    # All of 16 before and after: 3.8415 / 19.8415 may be lost.
    assert fall_limits(1, 16, 1, 16) == pytest.approx((-0.19361, 0.19361), abs=1e-5)


def test_counts_cannot_be_negative() -> None:
    with pytest.raises(ValueError, match="at least 0, got -1"):
        poisson_interval(-1)


def test_wilson_interval_encloses_every_rate() -> None:
    for n in (1, 2, 3, 7, 50, 333):
        for successes in range(n + 1):
            low, high = wilson_interval(successes, n)
            assert 0 <= low <= successes / n <= high <= 1


def test_wilson_interval_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError, match="at least one trial, got n = 0"):
        wilson_interval(0, 0)
    with pytest.raises(ValueError, match="between 0 and n = 5, got 6"):
        wilson_interval(6, 5)


def test_mean_interval_matches_hand_derived_limits() -> None:
    # Mean 2, sample deviation 1, standard error 1/√3 = 0.57735; t of 2 degrees of freedom at p is
    # (2p - 1) √(2 / (4p (1 - p))) = 0.95 √(2 / 0.0975) = 4.30265, half width 2.48414.
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, -0.48414, 4.48414), abs=1e-5)
    assert mean_interval([4.0, 4.0]) == (4.0, 4.0, 4.0)


def test_mean_interval_refuses_what_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least two values, got 1"):
        mean_interval([1.0])
    with pytest.raises(UserError, match="finite values, got nan as number 2 of 2"):
        mean_interval([1.0, float("nan")])


@pytest.mark.parametrize(
    ("values", "bounds", "interval"),
    [
        # Mean 0.8, deviation √0.06, half width 4.30265 √0.02 = 0.60849: SSIM cannot exceed 1.
        ([1.0, 0.9, 0.5], (-1.0, 1.0), (0.8 - 0.60849 / 0.24495 * 0.26458 * 1.0, 1.0)),
        ([0.0, 0.0, 0.03], (0.0, 1.0), (0.0, 0.01 + 0.04303)),  # s = 0.01 √3, half width 4.30265 · 0.01
        ([2.0, 2.0, 1.7], (0.0, 2.0), (1.9 - 0.43027, 2.0)),  # s = 0.1 √3, half width 4.30265 · 0.1
        ([1.0, 1.0], (0.0, 1.0), (1.0, 1.0)),
    ],
)
def test_no_interval_leaves_what_the_measure_can_be(
    values: list[float], bounds: tuple[float, float], interval: tuple[float, float]
) -> None:
    made = Measurement.mean("share", values, direction="lower", protocol="by hand", bounds=bounds)
    assert (made.low, made.high) == pytest.approx(interval, abs=1e-4)


def test_one_picture_has_a_mean_and_no_interval() -> None:
    alone = Measurement.mean("drift", [0.25], direction="lower", protocol="pixels")
    assert (alone.value, alone.n, alone.interval, alone.interval_text()) == (0.25, 1, None, "no interval")
    assert Measurement.from_json(json.loads(json.dumps(alone.to_json()))) == alone


def test_what_cannot_be_measured_is_told_in_one_line() -> None:
    about: dict[str, Any] = {"direction": "lower", "protocol": "pixels"}
    for words, values in {
        "got none": [],
        "got inf as number 1 of 2": [math.inf, 1],
        "between 0 and 1, got 2": [2, 2],
    }.items():
        with pytest.raises(UserError, match=words):
            Measurement.mean("drift", values, bounds=(0, 1), **about)
    with pytest.raises(UserError, match="got n = 0"):
        Measurement.rate("star appears", 0, 0, **about)
    with pytest.raises(UserError, match="an interval or none, got limits None and 1"):
        Measurement("star appears", 0.5, 3, None, 1.0, **about)


def star_rate(successes: int = 41, n: int = 100) -> Measurement:
    return Measurement.rate("star appears", successes, n, direction="lower", protocol="detector", group="concept")


def test_rate_keeps_a_fraction_and_prints_percent() -> None:
    rate = star_rate()
    assert (rate.value, rate.n, rate.kind) == (0.41, 100, "rate")
    assert rate.text() == "41 %"
    assert rate.interval_text() == "31.9 to 50.8 %"
    assert percent(0.9944) == "99.4 %"


def test_number_prints_three_digits() -> None:
    drift = Measurement.mean("drift", [0.05, 0.1186], direction="lower", protocol="pixels")
    assert drift.text() == "0.0843"
    assert dataclasses.replace(drift, value=12345.6, high=20000.0).text() == "12,346"


@pytest.mark.parametrize("measurement", [star_rate(), star_rate(1, 3), star_rate(0, 7)])
def test_measurement_survives_json(measurement: Measurement) -> None:
    assert Measurement.from_json(json.loads(json.dumps(measurement.to_json()))) == measurement


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "at least one picture, got n = 0"),
        ({"low": 0.5}, "low <= value <= high"),
        ({"value": float("nan")}, "low <= value <= high"),
        ({"high": float("inf")}, "finite limits"),
        ({"value": 41.0, "low": 30.0, "high": 50.0}, r"must lie in \[0, 1\], got 41.0"),
        ({"direction": "up"}, "'higher', 'lower' or 'neither', got 'up'"),
        ({"kind": "share"}, "'rate' or 'number', got 'share'"),
    ],
)
def test_measurement_refuses_impossible_values(change: dict[str, object], message: str) -> None:
    values = {**star_rate().to_json(), **change}
    with pytest.raises(ValueError, match=message):
        Measurement.from_json(values)


def test_comparison_prints_the_signed_change() -> None:
    assert Comparison("star appears", star_rate(98), star_rate(41)).change_text() == "-57 points"
    assert Comparison("star appears", star_rate(41), star_rate(42)).change_text() == "+1 point"
    assert Comparison("star appears", star_rate(41), star_rate(41)).change_text() == "±0 points"
    pair = Comparison("star appears", star_rate(98), star_rate(41))
    assert Comparison.from_json(json.loads(json.dumps(pair.to_json()))) == pair


def test_comparison_refuses_different_things() -> None:
    drift = Measurement.mean("drift", [0.1, 0.2], direction="lower", protocol="pixels")
    with pytest.raises(ValueError, match="compares two different things"):
        Comparison("star appears", star_rate(), drift)
