"""Verdicts derived by hand: what is gone, what is left, what was lost, and what too few pictures cannot say."""

from __future__ import annotations

import re

import pytest

from salun_diffusers.reports.intervals import wilson_interval
from salun_diffusers.reports.measurement import Measurement
from salun_diffusers.reports.verdict import (
    CEILING,
    Loss,
    Verdict,
    decide_verdict,
    distance,
    drop,
    presence_decided_by,
    presence_of,
)


def rate(successes: int, n: int = 100) -> Measurement:
    return Measurement.rate("shown", successes, n, direction="lower", protocol="by hand", group="concept")


def mean(values: list[float]) -> Measurement:
    return Measurement.mean("moved", values, direction="lower", protocol="by hand")


@pytest.mark.parametrize(
    ("rates", "verdict", "words"),
    [
        ((98, 0, 99, 98), "erased", "0 % of 100 pictures for its prompts, down from 98 % (at most 3.7 %"),
        ((98, 1, 99, 99), "erased", "everything else stays at 99 %"),
        ((98, 0, 95, 90), "erased", "everything else went from 95 % to 90 %"),  # A drop of exactly 0.05 is harmless.
        ((98, 0, 90, 99), "erased", "everything else went from 90 % to 99 %"),
        ((98, 0, 95, 89), "over-erased", "but everything else fell from 95 % to 89 %: raise the retain weight"),
        ((98, 2, 99, 99), "erased", "appears in 2 % of 100 pictures"),  # Gone means at most 2 %.
        ((98, 3, 99, 99), "partly erased", "still appears in 3 % of the pictures for its prompts (98 % before"),
        ((100, 3, 99, 99), "partly erased", "(100 % before, gone means at most 2 %): train for more steps or widen"),
        ((98, 41, 99, 99), "partly erased", "more steps or widen the forget prompts"),
        ((98, 80, 99, 99), "partly erased", "still appears in 80 %"),
        ((98, 97, 99, 99), "no effect", "raise the learning rate or train for more steps"),
        ((50, 60, 99, 99), "no effect", "still appears in 60 %"),
        ((98, 41, 99, 70), "partly erased", "everything else fell from 99 % to 70 %: more steps would harm the rest"),
        ((98, 97, 99, 70), "no effect", "everything else fell from 99 % to 70 %: more steps would harm the rest"),
        ((1, 0, 99, 99), "not measured", "nothing to erase: evaluate with prompts that bring the concept out"),
    ],
)
def test_verdict_follows_the_rates(rates: tuple[int, int, int, int], verdict: Verdict, words: str) -> None:
    decided, reason = decide_verdict(*map(rate, rates))
    assert decided == verdict
    assert words in reason
    assert reason.endswith(".") and "\n" not in reason


def test_the_demo_runs_sentence() -> None:
    """24 pictures without: 3.8415 / 27.8415 = 13.8 % may be left."""
    verdict, reason = decide_verdict(rate(24, 24), rate(0, 24), rate(72, 72), rate(72, 72))
    assert verdict == "erased"
    assert reason == (
        "The concept appears in 0 % of 24 pictures for its prompts, down from 100 % (at most 13.8 % with 95 % "
        "confidence), and everything else stays at 100 %."
    )


@pytest.mark.parametrize(
    ("before", "after", "n", "enough"),
    [
        (12, 0, 12, 16),  # 3.8415 / (n + 3.8415) ≤ 0.2 from 15.4 on
        (15, 0, 15, 16),
        (12, 1, 12, 19),  # (0.0833 + 0.1011 - 0.1602) / 1.2022 = 0.0201: for certain more than 2 %
        (1, 0, 12, None),
        (2, 0, 4, 16),
        (1, 1, 1, None),
    ],
)
def test_too_few_pictures_decide_nothing_and_the_sentence_says_how_many_would(
    before: int, after: int, n: int, enough: int | None
) -> None:
    old, new = rate(before, n), rate(after, n)
    assert presence_of(old, new) == "undecided"
    verdict, reason = decide_verdict(old, new, rate(99), rate(99))
    said = re.search(rf"With {n} pictures, .* evaluate more pictures, at least (\d+) for its prompts\.", reason)
    assert verdict == "not measured" and said
    wanted = presence_decided_by(old, new)
    assert int(said[1]) == wanted
    assert enough is None or wanted == enough


@pytest.mark.parametrize(
    ("before", "after", "n"), [(12, 0, 12), (12, 1, 12), (1, 0, 12), (1, 1, 1), (3, 1, 5), (9, 5, 12)]
)
def test_as_many_as_it_says_do_decide(before: int, after: int, n: int) -> None:
    """The same rates over that many pictures: three times rounded up, where they do not come out even."""
    enough = presence_decided_by(rate(before, n), rate(after, n))
    more = -(-enough // n) * n  # A whole multiple, so that the rates are the same.
    assert presence_of(rate(before * more // n, more), rate(after * more // n, more)) != "undecided"


def test_nothing_is_gone_that_may_well_be_there() -> None:
    """Whatever the counts: where "gone" is said, Wilson's interval ends at a fifth."""
    for n in range(1, 60):
        for left in range(n + 1):
            if presence_of(rate(n, n), rate(left, n)) == "gone":
                assert wilson_interval(left, n)[1] <= CEILING and n >= 16 and left <= 0.02 * n


def test_verdict_needs_a_detector_and_says_what_to_add() -> None:
    verdict, reason = decide_verdict(None, None, None, None)
    assert verdict == "not measured"
    assert '--detector clip:"words"' in reason and "--detector_labels" in reason


def test_verdict_needs_something_that_should_stay() -> None:
    verdict, reason = decide_verdict(rate(98), rate(0), None, None)
    assert (verdict, "nothing says what else was lost" in reason) == ("not measured", True)


@pytest.mark.parametrize(
    ("before", "after", "n", "harm", "enough"),
    [
        (3, 3, 3, "undecided", 16),  # All of 16: 3.8415 / 19.8415 = 19.4 % may be lost.
        (16, 16, 16, "harmless", None),
        (8, 0, 8, "harmful", None),
        (3, 2, 3, "undecided", None),
        (100, 94, 100, "harmful", None),
        (100, 95, 100, "harmless", None),
    ],
)
def test_harm_needs_enough_pictures_too(before: int, after: int, n: int, harm: str, enough: int | None) -> None:
    loss = drop(rate(before, n), rate(after, n))
    assert loss.harm == harm
    assert enough is None or loss.enough == enough
    verdict, reason = decide_verdict(rate(98), rate(0), rate(before, n), rate(after, n))
    assert verdict == {"undecided": "not measured", "harmless": "erased", "harmful": "over-erased"}[harm]
    if harm == "undecided":
        assert f"{n} pictures are too few" in reason and f"at least {loss.enough} of what should stay" in reason


def test_distances_stand_in_for_labels() -> None:
    """Mean 0.1 is below a half; 0.9 above; two pictures at 0.1 and 0.7 (t = 12.7) tell nothing."""
    near, far, few, alone = (
        distance(mean(values), words=f"moved by {sum(values) / len(values):.1f}", limit=0.5, ceiling=0.75)
        for values in ([0.1, 0.12, 0.08, 0.1], [0.9, 0.92, 0.88, 0.9], [0.1, 0.7], [0.1])
    )
    assert [loss.harm for loss in (near, far, few, alone)] == ["harmless", "harmful", "undecided", "undecided"]
    assert few.enough > few.n and alone.enough > alone.n
    for losses, verdict, words in (
        ((near,), "erased", "and moved by 0.1"),
        ((near, far), "over-erased", "but moved by 0.9"),
        ((few, near), "not measured", "2 pictures are too few to say what else was lost (moved by 0.4"),
    ):
        decided, reason = decide_verdict(rate(98), rate(0), None, None, others=losses)
        assert (decided, words in reason) == (verdict, True), reason


def test_a_mean_needs_as_many_more_pictures_as_the_square_of_its_width() -> None:
    """0.4 with 0.85 as its limit, 0.45 above where 0.35 is allowed: 16 · (0.45 / 0.35)² = 26.4, and one more."""
    measured = Measurement("moved", 0.4, 16, -0.05, 0.85, "lower", "by hand")
    assert distance(measured, words="moved", limit=0.5, ceiling=0.75).enough == 27


def test_a_larger_fall_that_is_allowed_may_be_as_uncertain() -> None:
    """From 36 to 33 of 36 up to 21.8 % may be lost: more than a fifth, less than 10 % and the usual 15 beyond it."""
    pair = rate(36, 36), rate(33, 36)
    assert (drop(*pair, limit=0.1).harm, drop(*pair).harm) == ("harmless", "harmful")
    assert drop(*pair, limit=0.1).high == pytest.approx(0.2180, abs=1e-3)


def test_of_all_losses_the_worst_decides() -> None:
    harmful = drop(rate(100), rate(50), what="faces")
    for first, others in (((rate(99), rate(99)), (harmful,)), ((rate(99), rate(20)), ())):
        assert decide_verdict(rate(98), rate(0), *first, others=others)[0] == "over-erased"
    fine = Loss(0.0, 0.0, 0.1, 50, 0.05, 0.2, "faces stay", "faces fell")
    reason = decide_verdict(rate(98), rate(0), rate(99), rate(99), others=(fine,))[1]
    assert reason.endswith("and everything else stays at 99 %, faces stay.")


def test_verdict_thresholds_can_be_set() -> None:
    rates = (rate(98), rate(4), rate(99), rate(90))
    assert decide_verdict(*rates, forgotten_below=0.05)[0] == "over-erased"
    assert decide_verdict(*rates, forgotten_below=0.05, retained_drop=0.1)[0] == "erased"
