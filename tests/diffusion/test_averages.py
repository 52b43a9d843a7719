"""The moving average of the selected weights: by hand, and nothing frozen has one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from salun_diffusers.diffusion.averages import ExponentialAverages, averages_of
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.selected_weights import SelectedWeights


@pytest.fixture
def layer() -> nn.Linear:
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 10.0]]))
        layer.bias.fill_(100.0)
    return layer


@pytest.fixture
def selected(layer) -> SelectedWeights:
    """The first weight and the whole bias, which is not copied."""
    bools = {"weight": torch.tensor([[True, False]]), "bias": torch.tensor([True])}
    return SelectedWeights(dict(layer.named_parameters()), SaliencyMask.from_bools(bools))


def move(selected: SelectedWeights, weight: float, bias: float) -> None:
    with torch.no_grad():
        for name, value in (("weight", weight), ("bias", bias)):
            selected.weights[selected.names.index(name)].fill_(value)
    selected.scatter()


def test_by_hand(layer, selected):
    """β is 0, 2/11 and 3/12: 2; 2 - 9/11 (2 - 13) = 11; 11 - 9/12 (11 - 3) = 5. The base has no part in it."""
    averages = ExponentialAverages(selected)
    for weight, expected in ((2.0, 2.0), (13.0, 11.0), (3.0, 5.0)):
        move(selected, weight, -weight)
        averages.update()
        assert float(averages.state()["weight"]) == pytest.approx(expected)
        assert float(averages.state()["bias"]) == pytest.approx(-expected)
    assert layer.weight.tolist() == [[3.0, 10.0]]
    with averages.in_place():
        assert layer.weight.flatten().tolist() == pytest.approx([5.0, 10.0])
        assert layer.bias.item() == pytest.approx(-5.0)
    assert (layer.weight.tolist(), layer.bias.tolist()) == ([[3.0, 10.0]], [-3.0])
    averages.settle()
    assert layer.weight.flatten().tolist() == pytest.approx([5.0, 10.0])


def test_they_go_on_where_they_were(selected):
    first, second = ExponentialAverages(selected), ExponentialAverages(selected)
    for weight in (2.0, 13.0):
        move(selected, weight, weight)
        first.update()
    second.load({name: value.clone() for name, value in first.state().items()}, steps=2)
    for averages in (first, second):
        move(selected, 3.0, 3.0)
        averages.update()
    assert all(torch.equal(value, second.state()[name]) for name, value in first.state().items())


def test_without_them_weights_are_what_they_are(layer, selected):
    averages = averages_of(selected, wanted=False)
    move(selected, 2.0, 3.0)
    averages.update()
    with averages.in_place():
        assert layer.weight.tolist() == [[2.0, 10.0]]
    averages.settle()
    assert layer.weight.tolist() == [[2.0, 10.0]] and averages.state() == {}


def test_frozen_weights_have_none(trained, tiny_pipeline):
    """Trained with averages: what the mask freezes has the base's bits, and the rest is another average."""
    from safetensors.torch import load_file

    base = load_file(tiny_pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    (rows, averaged), (same, plain) = (trained(use_ema=wanted, learning_rate=1e-3) for wanted in (True, False))
    assert rows == same
    moved = {name: plain[name] != base[name] for name in base}
    assert all(torch.equal(averaged[name][~moved[name]], base[name][~moved[name]]) for name in base)
    assert sum(int((averaged[name] != plain[name])[moved[name]].sum()) for name in base) > 0
