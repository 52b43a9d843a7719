"""Gradients for some tensors only, while a block lasts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from salun_diffusers.masks.trained_tensors import only_trained


@pytest.mark.parametrize("fails", [False, True])
def test_only_named_tensors_that_could_before_and_all_as_they_were_afterwards(fails):
    parameters = {name: nn.Parameter(torch.ones(1), requires_grad=name != "frozen") for name in ("a", "b", "frozen")}
    for name in ("a", "b"):
        parameters[name].grad = torch.ones(1)
    try:
        with only_trained(parameters, {"a", "frozen"}):
            assert {name for name, tensor in parameters.items() if tensor.requires_grad} == {"a"}
            assert all(tensor.grad is None for tensor in parameters.values())
            (parameters["a"] * parameters["b"] * parameters["frozen"]).backward()
            assert {name for name, tensor in parameters.items() if tensor.grad is not None} == {"a"}
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert {name for name, tensor in parameters.items() if tensor.requires_grad} == {"a", "b"}
    assert all(tensor.grad is None for tensor in parameters.values())
