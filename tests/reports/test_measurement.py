"""Intervals against numbers worked out by hand, and measurements that survive JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest

from salun_diffusers.reports.measurement import (
    Comparison,
    Measurement,
    mean_interval,
    percent,
    poisson_interval,
    wilson_interval,
)


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


@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 100, 851])
def test_poisson_interval_is_near_the_exact_one(count: int) -> None:
    """Exact limits are half the χ² quantiles with 2k and 2k + 2 degrees of freedom."""
    chi2 = pytest.importorskip("scipy.stats").chi2
    low, high = poisson_interval(count)
    assert low == pytest.approx(chi2.ppf(0.025, 2 * count) / 2 if count else 0, abs=0.05)
    assert high == pytest.approx(chi2.ppf(0.975, 2 * count + 2) / 2, abs=0.05)
    assert low <= count <= high


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
    with pytest.raises(ValueError, match="finite values"):
        mean_interval([1.0, float("nan")])


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
