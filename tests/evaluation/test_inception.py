"""The FID Inception against its description, written out anew in float64: padding, pooling, scaling and all branches.

The weights are random: any weights tell one network from another.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from salun_diffusers.evaluation.inception import FidInception, resize_as_tensorflow


def windows(x: Tensor, padding: int, value: float, stride: int = 1) -> Tensor:
    """3 x 3 windows in the last two axes of a frame filled with `value`."""
    return F.pad(x, (padding,) * 4, value=value).unfold(2, 3, stride).unfold(3, 3, stride)


def mean_of_what_is_there(x: Tensor) -> Tensor:
    """The 3 x 3 mean whose count leaves out what lies beyond the border."""
    return windows(x, 1, 0.0).sum((4, 5)) / windows(torch.ones_like(x), 1, 0.0).sum((4, 5))


def largest(x: Tensor, padding: int = 0, stride: int = 2) -> Tensor:
    return windows(x, padding, -torch.inf, stride).amax((4, 5))


class Described:
    """The 2015 graph: each convolution is followed by a norm with ε = 0.001 and a ReLU."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = {name: tensor.double() for name, tensor in weights.items()}

    def conv(self, x: Tensor, name: str, stride: int = 1, same: bool = True) -> Tensor:
        kernel = self.weights[f"{name}.conv.weight"]
        padding = tuple((side - 1) // 2 for side in kernel.shape[2:]) if same else 0
        x = F.conv2d(x, kernel, stride=stride, padding=padding)
        mean, variance, scale, shift = (
            self.weights[f"{name}.bn.{part}"].view(-1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / (variance + 0.001).sqrt() * scale + shift).clamp_min(0)

    def chain(self, x: Tensor, *names: str) -> Tensor:
        for name in names:
            x = self.conv(x, name)
        return x

    def block(self, x: Tensor, name: str, branches: list[list[str]], pooled: Tensor) -> Tensor:
        parts = [self.chain(x, *(f"{name}.{layer}" for layer in branch)) for branch in branches]
        return torch.cat([*parts, self.conv(pooled, f"{name}.branch_pool")], 1)

    def shrinking(self, x: Tensor, name: str, branches: list[list[str]]) -> Tensor:
        parts = []
        for *before, last in branches:
            inner = self.chain(x, *(f"{name}.{layer}" for layer in before))
            parts.append(self.conv(inner, f"{name}.{last}", stride=2, same=False))
        return torch.cat([*parts, largest(x)], 1)

    def last(self, x: Tensor, name: str, pooled: Tensor) -> Tensor:
        three, double = (
            self.chain(x, *(f"{name}.{layer}" for layer in branch))
            for branch in (["branch3x3_1"], ["branch3x3dbl_1", "branch3x3dbl_2"])
        )
        ends = [
            (three, "branch3x3_2a"),
            (three, "branch3x3_2b"),
            (double, "branch3x3dbl_3a"),
            (double, "branch3x3dbl_3b"),
        ]
        parts = [self.conv(inner, f"{name}.{layer}") for inner, layer in ends]
        return torch.cat([self.conv(x, f"{name}.branch1x1"), *parts, self.conv(pooled, f"{name}.branch_pool")], 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features of pictures of 299 x 299 pixels: nothing is resized."""
        x = pixels.double() / 128 - 1
        x = self.conv(x, "Conv2d_1a_3x3", stride=2, same=False)
        x = self.conv(self.conv(x, "Conv2d_2a_3x3", same=False), "Conv2d_2b_3x3")
        x = self.conv(self.conv(largest(x), "Conv2d_3b_1x1"), "Conv2d_4a_3x3", same=False)
        x = largest(x)
        first = [["branch1x1"], ["branch5x5_1", "branch5x5_2"], [f"branch3x3dbl_{n}" for n in (1, 2, 3)]]
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self.block(x, name, first, mean_of_what_is_there(x))
        x = self.shrinking(x, "Mixed_6a", [["branch3x3"], [f"branch3x3dbl_{n}" for n in (1, 2, 3)]])
        seven = [["branch1x1"], [f"branch7x7_{n}" for n in (1, 2, 3)], [f"branch7x7dbl_{n}" for n in (1, 2, 3, 4, 5)]]
        for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            x = self.block(x, name, seven, mean_of_what_is_there(x))
        x = self.shrinking(x, "Mixed_7a", [["branch3x3_1", "branch3x3_2"], [f"branch7x7x3_{n}" for n in (1, 2, 3, 4)]])
        x = self.last(x, "Mixed_7b", mean_of_what_is_there(x))
        x = self.last(x, "Mixed_7c", largest(x, padding=1, stride=1))
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def network() -> FidInception:
    """Random weights, spread so that the features of two pictures differ, and random statistics of the norms."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FidInception().eval().requires_grad_(False)
        for name, tensor in network.state_dict().items():
            if name.endswith("conv.weight"):
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
            elif name.endswith(("running_mean", "bn.bias")):
                tensor.uniform_(-0.2, 0.2)
            elif name.endswith(("running_var", "bn.weight")):
                tensor.uniform_(0.6, 1.4)
    return network


def test_features_are_those_of_the_description(network: FidInception) -> None:
    pixels = torch.randint(0, 256, (1, 3, 299, 299), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found, expected = network(pixels).double(), Described(network.state_dict())(pixels)
    assert found.shape == (1, 2048)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=2e-4 * float(expected.abs().max()), rtol=0)


def test_kernels_are_those_of_the_graph(network: FidInception) -> None:
    """The 7 x 7 convolutions come in halves, first along or first across, and the norms have their ε."""
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    sides = {
        "Mixed_6b.branch7x7_2": (1, 7), "Mixed_6b.branch7x7_3": (7, 1), "Mixed_6b.branch7x7dbl_2": (7, 1),
        "Mixed_6b.branch7x7dbl_5": (1, 7), "Mixed_7a.branch7x7x3_2": (1, 7), "Mixed_7c.branch3x3_2a": (1, 3),
        "Mixed_7c.branch3x3_2b": (3, 1), "Mixed_5b.branch5x5_2": (5, 5),
    }  # fmt: skip
    assert {name: shapes[f"{name}.conv.weight"][2:] for name in sides} == sides
    assert {module.eps for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {0.001}


def test_pictures_are_resized_as_tensorflow_does() -> None:
    """2 → 4 columns: sources 0, 0.5, 1, 1.5 without a half-pixel shift, the last one held at the border."""
    row = torch.tensor([0.0, 8.0]).view(1, 1, 1, 2).expand(1, 3, 2, 2)
    assert resize_as_tensorflow(row, 4)[0, 0, 0].tolist() == [0.0, 4.0, 8.0, 8.0]
