"""Someone who trains the concept back, simulated beside a training: where the weights would be by then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from salun_diffusers.diffusion.robustness import Robustness
from salun_diffusers.masks.trained_weights import TrainedWeights


class TrainingBack:
    """The way d of an attacker from the weights θ of a training, which both of them go on moving.

        d ← d - r sign(∇ℓ(θ + d)),    d = 0 every K steps

    with the concept's own noise loss ℓ: one step of the attacker in each step of the training, so that attacks of up to
    K steps cost what one costs. Where nobody trains back there is nothing.

    Attributes:
        robustness: How long and how fast.
        selected: θ.
    """

    def __init__(self, selected: TrainedWeights, robustness: Robustness) -> None:
        """Begin at the weights."""
        self.selected, self.robustness = selected, robustness
        self._away = [torch.zeros_like(leaf) for leaf in selected.weights] if robustness.weight_steps else []

    @contextmanager
    def in_place(self, step: int) -> Iterator[None]:
        """Within the block the network has the attacker's weights; afterwards those of the training, bit for bit.

        Args:
            step: Of the training, from 0.
        """
        kept = [leaf.detach().clone() for leaf in self.selected.weights]
        if step % self.robustness.weight_steps == 0:
            for way in self._away:
                way.zero_()
        try:
            self._add(self._away)
            yield
        finally:
            with torch.no_grad():
                for leaf, value in zip(self.selected.weights, kept, strict=True):
                    leaf.copy_(value)
            self.selected.scatter()

    def go_on(self, gradients: Sequence[Tensor]) -> None:
        """One step of the attacker, within `in_place`.

        Args:
            gradients: ∇ℓ at its weights; what is not a number there moves nothing.
        """
        steps = [gradient.nan_to_num().sign_().mul_(-self.robustness.weight_rate) for gradient in gradients]
        for way, step in zip(self._away, steps, strict=True):
            way.add_(step)
        self._add(steps)

    @torch.no_grad()
    def _add(self, ways: Sequence[Tensor]) -> None:
        for leaf, way in zip(self.selected.weights, ways, strict=True):
            leaf.add_(way)
        self.selected.scatter()

    def state(self) -> dict[str, Tensor]:
        """d by the names of the leaves, live, for a checkpoint."""
        return dict(zip(self.selected.names, self._away, strict=True)) if self._away else {}

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take up what `state` returned."""
        for name, way in self.state().items():
            way.copy_(values[name])
