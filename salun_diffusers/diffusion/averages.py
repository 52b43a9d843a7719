"""The exponential moving average of the selected weights, as diffusers' scripts keep one of all weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from salun_diffusers.masks.trained_weights import TrainedWeights


class Averages(Protocol):
    """What is kept beside the weights while they move, and takes their place when they are saved or looked at."""

    def update(self) -> None:
        """Take in the weights after a step."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it."""
        ...

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Take up what `state` returned after so many steps."""
        ...

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages are the weights while the block runs."""
        ...

    def settle(self) -> None:
        """The averages are the weights from now on."""
        ...


class NoAverages:
    """The weights are what they are."""

    def update(self) -> None:
        """Nothing to do."""

    def state(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Nothing to take up."""

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Nothing changes."""
        yield

    def settle(self) -> None:
        """Nothing changes."""


class ExponentialAverages:
    """The moving average of the selected weights; all others are frozen, and so are their own average.

        θ̄ ← θ̄ - (1 - β_n)(θ̄ - θ_S)     β_n = min(0.9999, (1 + n) / (10 + n)) for the n-th step after the first, β_0 = 0

    That is diffusers' `EMAModel` as `train_text_to_image.py --use_ema` makes it. The base's own weights never enter.
    """

    def __init__(self, selected: TrainedWeights) -> None:
        """Begin with the present weights.

        Args:
            selected: The weights that may move.
        """
        self._selected = selected
        self._model = EMAModel(selected.weights)

    def update(self) -> None:
        """Take in the weights after a step."""
        self._model.step(self._selected.weights)

    def state(self) -> dict[str, Tensor]:
        """The averages by the name of their parameter."""
        return dict(zip(self._selected.names, self._model.shadow_params, strict=True))

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Take up what `state` returned after so many steps.

        Raises:
            KeyError: If there is none of a parameter that has selected weights.
        """
        for name, average in zip(self._selected.names, self._model.shadow_params, strict=True):
            average.copy_(tensors[name])
        self._model.optimization_step = steps

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averages are the weights while the block runs."""
        trained = {name: leaf.cpu().clone() for name, leaf in self._selected.state().items()}
        self.settle()
        try:
            yield
        finally:
            self._selected.load(trained)

    def settle(self) -> None:
        """The averages are the weights from now on."""
        self._selected.load(self.state())


def averages_of(selected: TrainedWeights, wanted: bool) -> Averages:
    """The averages of a training.

    Args:
        selected: The weights that may move.
        wanted: Whether there are any.
    """
    with torch.no_grad():
        return ExponentialAverages(selected) if wanted else NoAverages()
