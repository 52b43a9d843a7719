"""What is done to the updates of the selected weights beside the mask: nothing, a proximal step, or a scale for each.

They act around the step of whatever optimizer there is, by its own hooks: a step that a loss scaler skips is none here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, final

import torch
from torch import Tensor

from salun_diffusers.masks.inclusion import Inclusion, drawn
from salun_diffusers.masks.selected_weights import SelectedWeights
from salun_diffusers.masks.soft_threshold import falling_share, soft_threshold_
from salun_diffusers.seeds import stream


class SoftUpdates(Protocol):
    """Acts before and after every step of an optimizer."""

    def begin(self, step: int, done: float) -> None:
        """The next step is this one; what it draws depends on its number alone.

        Args:
            step: Counted from 1.
            done: The share of the training that is behind when it is taken, in [0, 1].
        """
        ...

    def before(self) -> None:
        """The optimizer is about to step."""
        ...

    def after(self) -> None:
        """The optimizer has stepped."""
        ...


def attach(updates: SoftUpdates, optimizer: torch.optim.Optimizer) -> None:
    """Have an optimizer call `before` and `after` at each of its steps."""
    optimizer.register_step_pre_hook(lambda *_: updates.before())
    optimizer.register_step_post_hook(lambda *_: updates.after())


@final
class HardUpdates:
    """The mask alone decides."""

    def begin(self, step: int, done: float) -> None:
        """Nothing to know."""

    def before(self) -> None:
        """Nothing to do."""

    def after(self) -> None:
        """Nothing to do."""


@final
class ProximalUpdates:
    """SalUn-soft: after each step all changes are shrunk by the size of the r-th smallest; see `soft_threshold_`.

    Changes are measured from the weights at the start, so make this before weights of a checkpoint are taken up.
    """

    def __init__(self, weights: Sequence[Tensor], share: Callable[[int, float], float], others: int = 0) -> None:
        """Keep a copy of the weights.

        Args:
            weights: The leaves, with the base's values.
            share: Step, and how much of the training is done → the share of changes to take back after it.
            others: Weights beside these that never move and count among the smallest changes, too.
        """
        self._weights, self._share, self._others = weights, share, others
        self._reference = [leaf.detach().clone() for leaf in weights]
        self._now = (1, 0.0)

    def begin(self, step: int, done: float) -> None:
        """The share is that of this step."""
        self._now = (step, done)

    def before(self) -> None:
        """Nothing to do."""

    def after(self) -> None:
        """Shrink."""
        soft_threshold_(self._weights, self._reference, self._share(*self._now), others=self._others)


def falling(start: float) -> Callable[[int, float], float]:
    """The share of `ProximalUpdates` that falls linearly from `start` at the beginning to 0 at the end."""
    return lambda step, done: falling_share(start, done, 1)


@final
class ScaledUpdates:
    """Every weight takes a share of each update: θ ← θ + w ⊙ u, with w in [0, 1], whatever the optimizer's u is.

    Where w is 0 the weight is what it was, bit for bit.
    """

    def __init__(self, weights: Sequence[Tensor], shares: Callable[[int], Sequence[Tensor]]) -> None:
        """Take the weights.

        Args:
            weights: The leaves.
            shares: Step → w of every leaf, in its shape.
        """
        self._weights, self._shares = weights, shares
        self._step, self._before = 1, [torch.empty(0)]

    def begin(self, step: int, done: float) -> None:
        """w is that of this step."""
        self._step = step

    @torch.no_grad()
    def before(self) -> None:
        """Remember where the weights are."""
        self._before = [leaf.detach().clone() for leaf in self._weights]

    @torch.no_grad()
    def after(self) -> None:
        """Take the weights a part of the way."""
        for leaf, start, share in zip(self._weights, self._before, self._shares(self._step), strict=True):
            leaf.copy_(torch.lerp(start, leaf, share.to(leaf)))
        self._before = [torch.empty(0)]


def continuous(selected: SelectedWeights, inclusion: Inclusion) -> ScaledUpdates:
    """Updates scaled by the probabilities themselves: w = p."""
    shares = selected.gather(inclusion)
    return ScaledUpdates(selected.weights, lambda step: shares)


def redrawn(selected: SelectedWeights, inclusion: Inclusion, seed: int) -> ScaledUpdates:
    """A mask drawn anew for every step: w ~ Bernoulli(p), from the seed and the step's number alone.

    Numbers come from the CPU, so that every process and every device draws the same.
    """
    probabilities = [share.cpu() for share in selected.gather(inclusion)]

    def draw(step: int) -> list[Tensor]:
        generator = stream(seed, "soft mask", step)
        return [drawn(share, generator).to(torch.float32) for share in probabilities]

    return ScaledUpdates(selected.weights, draw)
