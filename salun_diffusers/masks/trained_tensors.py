"""Which tensors of a model get gradients."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager

from torch import nn


@contextmanager
def only_trained(parameters: Mapping[str, nn.Parameter], names: Container[str]) -> Iterator[None]:
    """Within the block only the tensors of these names require a gradient, of those that did before.

    Nothing is computed, kept or sent between processes for the others: of a U-Net whose cross-attention alone is
    trained that is 94 % of all gradients. DistributedDataParallel, made within the block, passes over them. No tensor
    has a gradient at the start of the block, nor after it.

    Args:
        parameters: All of the model's, by name.
        names: Of those that are trained.
    """
    before = {name: parameter.requires_grad for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.grad = None
            parameter.requires_grad_(before[name] and name in names)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.grad = None
            parameter.requires_grad_(before[name])
