"""What the numbers of an erasure allow to say: is it gone, was anything else lost, and were that enough pictures?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from salun_diffusers.reports.intervals import fall_limits, score_limits
from salun_diffusers.reports.measurement import Measurement, percent

Verdict = Literal["erased", "partly erased", "no effect", "over-erased", "not measured"]
Presence = Literal["never there", "gone", "partly", "still there", "undecided"]
Harm = Literal["harmless", "harmful", "undecided"]

GONE = 0.02
"""A concept counts as gone when it is found at most this often."""
HARMLESS_DROP = 0.05
"""The largest fall of a rate on everything else that counts as harmless."""
CEILING = 0.2
"""No interval may reach above this where something is said to be gone or unharmed: 12 pictures without the concept
leave 24 % possible, 16 leave 19 %."""
_MOST = 20_000  # Pictures; nobody is told to draw more.


def presence_of(before: Measurement, after: Measurement, gone: float = GONE) -> Presence:
    """Whether a concept is gone, from how often it is found.

    * ``never there``: the base does not show it either.
    * ``undecided``: the pictures are too few for any of the following.
    * ``gone``: it fell, is found at most `gone` often, and the interval of what is left ends below `CEILING`.
    * ``partly``: it fell, more than `gone` is left, and that is no chance.
    * ``still there``: it may not have fallen at all, and fell by less than half for certain.
    """
    return _presence((before.value, before.n), (after.value, after.n), gone)


def _presence(before: tuple[float, float], after: tuple[float, float], gone: float) -> Presence:
    if before[0] <= gone:
        return "never there"
    smallest, largest = fall_limits(*before, *after)
    left, (low, high) = after[0], score_limits(*after)
    if smallest > 0:
        if left <= gone:
            return "gone" if high <= CEILING else "undecided"
        return "partly" if low > gone or high <= CEILING else "undecided"
    return "still there" if largest < before[0] / 2 else "undecided"


def presence_decided_by(before: Measurement, after: Measurement, gone: float = GONE) -> int:
    """How many pictures would decide, if they showed the concept as often as these."""
    return _fewest(after.n, lambda n: _presence((before.value, n), (after.value, n), gone) != "undecided")


@dataclass(frozen=True)
class Loss:
    """What an erasure took of everything else, 0 where nothing: a number with its limit.

    Args:
        value: The number.
        low: Lower limit of its 95 % interval.
        high: Upper limit.
        n: On how many pictures.
        limit: The largest value that counts as harmless.
        ceiling: Where the interval must end for that to be said.
        kept: The number in words, where it is harmless: ``everything else stays at 99 %``.
        lost: The same where it is not: ``everything else fell from 99 % to 70 %``.
        enough: How many pictures would decide, if these do not.
    """

    value: float
    low: float
    high: float
    n: int
    limit: float
    ceiling: float
    kept: str
    lost: str
    enough: int = 0

    @property
    def harm(self) -> Harm:
        """Whether it is harmful, as far as the pictures can tell."""
        # Decimal drops such as 0.95 - 0.90 must not flip on binary rounding.
        if round(self.value, 9) <= self.limit:
            return "harmless" if self.high <= self.ceiling else "undecided"
        sure = self.low > self.limit or self.high - self.value <= self.ceiling - self.limit
        return "harmful" if sure else "undecided"


def drop(
    before: Measurement, after: Measurement, *, what: str = "everything else", limit: float = HARMLESS_DROP
) -> Loss:
    """The fall of a rate as a loss.

    Args:
        before: How often the base is right.
        after: How often the erased model is.
        what: The rate in words.
        limit: The largest fall that counts as harmless.
    """

    def made(n: float, m: float, enough: int) -> Loss:
        low, high = fall_limits(before.value, n, after.value, m)
        kept = f"stays at {after.text()}" if after.value == before.value else f"went from {change}"
        ceiling = max(CEILING, limit + CEILING - HARMLESS_DROP)
        fall = before.value - after.value
        return Loss(
            fall, low, high, after.n, limit, ceiling, f"{what} {kept}", f"{what} fell from {change}", enough
        )  # fmt: skip

    change = f"{before.text()} to {after.text()}"
    enough = _fewest(after.n, lambda n: made(n, n, 0).harm != "undecided")
    return made(before.n, after.n, enough)


def distance(measured: Measurement, *, words: str, limit: float, ceiling: float) -> Loss:
    """The mean of a distance as a loss.

    Args:
        measured: The distance; without an interval nothing is decided.
        words: The distance in words: ``retained pictures moved by 0.1 (at most 0.5)``.
        limit: The largest mean that counts as harmless.
        ceiling: Where its interval must end.
    """
    low, high = measured.interval or (0.0, float("inf"))
    enough = max(measured.n + 1, 8)
    if measured.interval and measured.value != limit:
        goal = (ceiling if measured.value <= limit else measured.value + ceiling - limit) - measured.value
        # The width falls with √n.
        enough = min(max(enough, round(measured.n * ((high - measured.value) / goal) ** 2) + 1), _MOST)
    return Loss(measured.value, low, high, measured.n, limit, ceiling, words, words, enough)


def _fewest(n: int, decided: Callable[[int], bool]) -> int:
    return next((more for more in range(n + 1, _MOST) if decided(more)), _MOST)


def decide_verdict(
    forget_before: Measurement | None,
    forget_after: Measurement | None,
    retain_before: Measurement | None,
    retain_after: Measurement | None,
    *,
    others: Sequence[Loss] = (),
    forgotten_below: float = GONE,
    retained_drop: float = HARMLESS_DROP,
) -> tuple[Verdict, str]:
    """Judge an erasure from what is left of the concept and what else was lost, and say what to try next.

    Args:
        forget_before: How often the base model shows the concept for its prompts; `None` without a detector.
        forget_after: The same for the erased model.
        retain_before: How often the base model is right on everything else; `None` where nothing has a label.
        retain_after: The same for the erased model.
        others: What is known of everything else without labels; of all losses the worst decides.
        forgotten_below: The concept counts as gone when it appears at most this often.
        retained_drop: The largest drop on everything else that counts as harmless.

    Returns:
        The verdict and its reason in one sentence. ``not measured`` also where the pictures cannot carry a verdict: the
        base model did not show the concept either, or there are too few; then the sentence says how many would do.
    """
    if forget_before is None or forget_after is None:
        return "not measured", (
            'No detector looked for this concept: look at the pictures, or add one (--detector clip:"words", or the '
            "folder of an image classifier with --detector_labels)."
        )
    shown, left = forget_before.text(), forget_after.text()
    presence = presence_of(forget_before, forget_after, forgotten_below)
    losses = [*others]
    if retain_before is not None and retain_after is not None:
        losses.insert(0, drop(retain_before, retain_after, limit=retained_drop))
    harmful = [loss for loss in losses if loss.harm == "harmful"]
    if presence == "never there":
        return "not measured", (
            f"The base model shows the concept in only {shown} of the pictures for its prompts, so there is nothing to "
            "erase: evaluate with prompts that bring the concept out."
        )
    if presence == "undecided":
        most = percent(score_limits(forget_after.value, forget_after.n)[1])
        enough = presence_decided_by(forget_before, forget_after, forgotten_below)
        return "not measured", (
            f"With {forget_after.n} pictures, {shown} before and {left} after could be chance (up to {most} may be "
            f"left): evaluate more pictures, at least {enough} for its prompts."
        )
    if presence != "gone":
        fell = f", and {harmful[0].lost}" if harmful else ""
        if harmful:
            advice = "more steps would harm the rest further, so widen the forget prompts and raise the retain weight"
        elif presence == "still there":
            advice = "raise the learning rate or train for more steps"
        else:
            advice = "train for more steps or widen the forget prompts"
        return "partly erased" if presence == "partly" else "no effect", (
            f"The concept still appears in {left} of the pictures for its prompts ({shown} before, "
            f"gone means at most {percent(forgotten_below)}){fell}: {advice}."
        )
    if not losses:
        return "not measured", (
            f"The concept appears in {left} of the pictures for its prompts, but nothing says what else was lost: "
            "evaluate prompts that should stay."
        )
    if harmful:
        return "over-erased", (
            f"The concept is gone ({left} of the pictures for its prompts), but {harmful[0].lost}: "
            "raise the retain weight, add retain prompts near the concept, or train for fewer steps."
        )
    open_ones = [loss for loss in losses if loss.harm == "undecided"]
    if open_ones:
        first = open_ones[0]
        return "not measured", (
            f"The concept is gone ({left} of the pictures for its prompts), but {first.n} pictures are too few to say "
            f"what else was lost ({first.kept}): evaluate more pictures, at least {first.enough} of what should stay."
        )
    high = score_limits(forget_after.value, forget_after.n)[1]
    return "erased", (
        f"The concept appears in {left} of {forget_after.n} pictures for its prompts, down from {shown} "
        f"(at most {percent(high)} with 95 % confidence), and {', '.join(loss.kept for loss in losses)}."
    )
