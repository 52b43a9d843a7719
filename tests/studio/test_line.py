"""The line between two sets of weights, walked in a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from salun_diffusers.errors import UserError
from salun_diffusers.files.stored_weights import bit_patterns, write_tensors
from salun_diffusers.studio.line import STRONGEST, walk

BASE = {"weight": torch.tensor([[1.0, -0.0, 3.0]]), "bias": torch.tensor([0.5])}
ERASED = {"weight": torch.tensor([[2.0, -0.0, 1.0]]), "bias": torch.tensor([0.5])}


def at(folder: Path, strength: float, erased: dict[str, Tensor] = ERASED, base: dict[str, Tensor] = BASE) -> nn.Linear:
    """A network at a strength, having been somewhere else."""
    for name, tensors in (("base", base), ("erased", erased)):
        (folder / name).mkdir(exist_ok=True)
        write_tensors(folder / name / "diffusion_pytorch_model.safetensors", tensors)
    network = nn.Linear(3, 1)
    walk(network, (folder / "base", None), (folder / "erased", None), strength)
    return network


def same(network: nn.Module, weights: dict[str, Tensor]) -> bool:
    return all(torch.equal(bit_patterns(tensor), bit_patterns(weights[name])) for name, tensor in
               network.state_dict().items())  # fmt: skip


def test_the_ends_are_those_of_the_files(tmp_path):
    assert same(at(tmp_path, 0), BASE) and same(at(tmp_path, 1), ERASED)


@pytest.mark.parametrize(("strength", "expected"), [(0.25, [1.25, -0.0, 2.5]), (0.5, [1.5, -0.0, 2.0]),
                                                    (1.5, [2.5, -0.0, 0.0])])  # fmt: skip
def test_between_and_beyond(tmp_path, strength, expected):
    network = at(tmp_path, strength)
    assert network.weight.tolist() == [expected]
    assert torch.signbit(network.weight)[0, 1], "a weight that did not move keeps its bits, the sign of zero as well"
    assert network.bias.item() == 0.5


def test_an_erased_model_in_half_precision(tmp_path):
    """Rounding alone is no move: what was not touched is the base's, in full."""
    base = {"weight": torch.tensor([[1.0001, 2.0, 3.0]]), "bias": torch.tensor([0.5])}
    half = {"weight": torch.tensor([[1.0001, 2.0, 5.0]]).half(), "bias": torch.tensor([0.5]).half()}
    assert at(tmp_path, 0.5, half, base).weight.tolist()[0] == [pytest.approx(1.0001, abs=1e-7), 2.0, 4.0]
    assert torch.equal(at(tmp_path, 1, half, base).weight[0], half["weight"][0].float())


def test_a_network_in_half_precision(tmp_path):
    at(tmp_path, 0)
    network = nn.Linear(3, 1).half()
    walk(network, (tmp_path / "base", None), (tmp_path / "erased", None), 0.25)
    assert network.weight.tolist() == [[1.25, 0.0, 2.5]]


def test_counters_are_not_mixed(tmp_path):
    """Whole numbers have no half way."""
    for name, number in (("base", 4), ("erased", 8)):
        (tmp_path / name).mkdir()
        write_tensors(tmp_path / name / "model.safetensors", {"count": torch.tensor([number])})
    network = nn.Module()
    network.register_buffer("count", torch.tensor([0]))
    walk(network, (tmp_path / "base", None), (tmp_path / "erased", None), 0.5)
    assert network.count.tolist() == [8]


@pytest.mark.parametrize("strength", [-0.1, STRONGEST + 0.01, float("nan")])
def test_refuses_strengths_outside(tmp_path, strength):
    with pytest.raises(UserError, match=r"at least 0 and at most 1\.5"):
        at(tmp_path, strength)


@pytest.mark.parametrize("changed", [{"weight": torch.zeros(2, 3)}, {"other": torch.zeros(1)}])
def test_refuses_what_the_network_has_not(tmp_path, changed):
    with pytest.raises(UserError, match="which the network that draws has not"):
        at(tmp_path, 1, ERASED | changed)
