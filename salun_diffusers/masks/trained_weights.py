"""What a training loop asks of the weights that move, be they selected entries of tensors or a LoRA beside them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn


class TrainedWeights(Protocol):
    """The leaves of an optimizer, and how they and the network's gradients find each other; see `SelectedWeights`.

    Attributes:
        weights: The leaves.
        names: What each belongs to.
    """

    weights: list[nn.Parameter]
    names: list[str]

    def in_training(self, *, gather_as_they_come: bool) -> AbstractContextManager[None]:
        """Within the block nothing else gets a gradient."""
        ...

    def gather_gradients(self) -> None:
        """Bring the gradients of the network to the leaves."""
        ...

    def scatter(self) -> None:
        """Bring the leaves to the network."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The leaves by name, live."""
        ...

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take up values that `state` returned."""
        ...
