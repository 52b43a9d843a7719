"""Frozen weights stay bit for bit, whatever the optimizer does, and selected ones move as in a dense optimizer."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.selected_weights import SelectedWeights

WAYS = ["bits", "indices", *(["kernels"] if find_spec("triton") else [])]
OPTIMIZERS = {
    "SGD momentum decay": lambda leaves: torch.optim.SGD(leaves, lr=0.05, momentum=0.9, weight_decay=5e-4),
    "SGD plain": lambda leaves: torch.optim.SGD(leaves, lr=0.05),
    "Adam L2": lambda leaves: torch.optim.Adam(leaves, lr=0.01, weight_decay=1e-2),
    "AdamW": lambda leaves: torch.optim.AdamW(leaves, lr=0.01),
    "AdamW fused": lambda leaves: torch.optim.AdamW(leaves, lr=0.01, fused=True),
}


def make_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(64, 3))


def named(net: nn.Module) -> dict[str, nn.Parameter]:
    return dict(net.named_parameters())


def values(net: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


def loss_of(net: nn.Module, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(8, 1, 6, 6, generator=generator), torch.randint(3, (8,), generator=generator)
    return nn.functional.cross_entropy(net(images), labels)


def half_mask(net: nn.Module) -> SaliencyMask:
    """A random half, but the linear weight whole and the norm's weight not at all."""
    mask = SaliencyMask.random(named(net), 0.5, torch.Generator().manual_seed(1))
    whole = {name: torch.full(tensor.shape, name == "4.weight") for name, tensor in mask.items()}
    none = {name: torch.full(tensor.shape, name != "1.weight") for name, tensor in mask.items()}
    return (mask | SaliencyMask.from_bools(whole)) & SaliencyMask.from_bools(none)


def train(
    net, mask, make_optimizer, steps=6, accumulate=1, max_norm=None, keep=None, at_once=None
) -> tuple[SelectedWeights, list]:
    """Train with gradients gathered after backward, or (`at_once`) as they come; by default with no block at all."""
    selected = SelectedWeights(named(net), mask, keep=keep)
    optimizer = make_optimizer(selected.weights)
    norms = []
    with nullcontext() if at_once is None else selected.in_training(gather_as_they_come=at_once):
        for step in range(steps):
            for part in range(accumulate):
                loss_of(net, 100 * step + part).backward()
            selected.gather_gradients()
            if max_norm is not None:
                norms.append(nn.utils.clip_grad_norm_(selected.weights, max_norm))
            optimizer.step()
            optimizer.zero_grad()
            selected.scatter()
    return selected, norms


def assert_only_selected_moved(before: dict[str, Tensor], net: nn.Module, mask: SaliencyMask) -> None:
    for name, parameter in net.named_parameters():
        moved = parameter.detach() != before[name]
        assert not (moved & ~mask[name]).any(), f"{name} has moved where it is frozen"
        if mask[name].any():
            assert (moved & mask[name]).any(), f"{name} has not moved at all"


class TestFrozen:
    @pytest.mark.parametrize("kind", OPTIMIZERS)
    @pytest.mark.parametrize(("accumulate", "max_norm"), [(1, None), (3, None), (1, 0.1), (2, 0.1)])
    def test_bit_identical_after_training(self, kind, accumulate, max_norm):
        net = make_net()
        before, mask = values(net), half_mask(net)
        train(net, mask, OPTIMIZERS[kind], accumulate=accumulate, max_norm=max_norm)
        assert_only_selected_moved(before, net, mask)

    @pytest.mark.parametrize("kind", ["SGD momentum decay", "Adam L2", "AdamW", "AdamW fused"])
    def test_zeroed_gradients_would_have_moved_them(self, kind):
        """The official way under weight decay: a known defect, and the reason for this class."""
        net = make_net()
        before, mask = values(net), half_mask(net)
        optimizer = OPTIMIZERS[kind](net.parameters())
        for step in range(6):
            optimizer.zero_grad()
            loss_of(net, 100 * step).backward()
            for name, parameter in net.named_parameters():
                parameter.grad *= mask[name]
            optimizer.step()
        frozen = ~mask["0.weight"]
        assert (net[0].weight.detach() != before["0.weight"])[frozen].any()

        guarded = make_net()
        train(guarded, mask, OPTIMIZERS[kind])
        assert torch.equal(guarded[0].weight.detach()[frozen], before["0.weight"][frozen])

    def test_signed_zeros_and_nan_stay_as_they_are(self):
        weight = nn.Parameter(torch.tensor([-0.0, float("nan"), 1.0, float("-inf")]))
        before = weight.detach().clone().view(torch.int32)
        selected = SelectedWeights({"w": weight}, SaliencyMask.from_bools({"w": torch.arange(4) == 2}))
        weight.grad = torch.full((4,), float("nan"))
        weight.grad[2] = 1.0
        selected.gather_gradients()
        torch.optim.SGD(selected.weights, lr=0.5).step()
        selected.scatter()
        after = weight.detach().view(torch.int32)
        assert after[[0, 1, 3]].tolist() == before[[0, 1, 3]].tolist()
        assert weight[2].item() == 0.5

    def test_low_precision_parameters_keep_their_frozen_bits(self):
        net = make_net().to(torch.bfloat16)
        before, mask = values(net), half_mask(net)
        selected = SelectedWeights(named(net), mask)
        assert {leaf.dtype for leaf in selected.weights} == {torch.float32}
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        selected.gather_gradients()
        torch.optim.AdamW(selected.weights, lr=0.1).step()
        selected.scatter()
        assert_only_selected_moved(before, net, mask)


class TestSelected:
    @pytest.mark.parametrize("kind", OPTIMIZERS)
    def test_full_mask_is_dense_training(self, kind):
        dense, net = make_net(), make_net()
        optimizer = OPTIMIZERS[kind](dense.parameters())
        for step in range(6):
            optimizer.zero_grad()
            loss_of(dense, 100 * step).backward()
            optimizer.step()
        train(net, SaliencyMask.full(named(net)), OPTIMIZERS[kind])
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(parameter, dense.get_parameter(name))

    def test_one_step_by_hand(self):
        # theta - lr * (gradient + decay * theta): 4 - 0.5 * (2 + 0.1 * 4) = 2.8.
        weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
        selected = SelectedWeights({"w": weight}, SaliencyMask.from_bools({"w": torch.tensor([[False, True]])}))
        weight.grad = torch.tensor([[1.0, 2.0]])
        selected.gather_gradients()
        assert weight.grad is None
        assert selected.weights[0].grad.tolist() == [2.0]
        torch.optim.SGD(selected.weights, lr=0.5, weight_decay=0.1).step()
        assert weight.tolist() == [[3.0, 4.0]]
        selected.scatter()
        assert weight[0, 1].item() == pytest.approx(2.8)
        assert weight[0, 0].item() == 3.0

    @pytest.mark.parametrize("whole", [True, False])
    def test_gathering_per_micro_batch_accumulates(self, whole):
        weight = nn.Parameter(torch.zeros(2))
        selected = SelectedWeights({"w": weight}, SaliencyMask.from_bools({"w": torch.tensor([True, whole])}))
        for gradient in ([1.0, 10.0], [2.0, 20.0]):
            weight.grad = torch.tensor(gradient)
            selected.gather_gradients()
        assert selected.weights[0].grad.tolist() == ([3.0, 30.0] if whole else [3.0])

    def test_clipping_sees_the_selected_gradient_only(self):
        weight = nn.Parameter(torch.zeros(3))
        selected = SelectedWeights({"w": weight}, SaliencyMask.from_bools({"w": torch.tensor([True, True, False])}))
        weight.grad = torch.tensor([3.0, 4.0, 1e6])
        selected.gather_gradients()
        assert nn.utils.clip_grad_norm_(selected.weights, 1.0).item() == pytest.approx(5.0)

    def test_parameter_without_gradient_is_skipped(self):
        first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        parameters = {"first": first, "second": second}
        selected = SelectedWeights(parameters, SaliencyMask.full(parameters))
        first.sum().backward()
        selected.gather_gradients()
        assert selected.weights[1].grad is None
        torch.optim.AdamW(selected.weights, lr=0.1).step()
        selected.scatter()
        assert second.tolist() == [1.0, 1.0]
        assert first[0].item() < 1.0

    def test_drops_the_gradients_of_unselected_parameters_too(self):
        net = make_net()
        selected = SelectedWeights(named(net), half_mask(net).restrict(lambda name: name == "0.weight"))
        loss_of(net, 0).backward()
        selected.gather_gradients()
        assert all(parameter.grad is None for parameter in net.parameters())
        assert selected.names == ["0.weight"]

    @pytest.mark.parametrize(("kind", "moments"), [("Adam L2", 2), ("AdamW fused", 2), ("SGD momentum decay", 1)])
    def test_optimizer_state_is_that_of_the_selected_weights(self, kind, moments):
        net = make_net()
        mask = half_mask(net)
        optimizers = []

        def make_optimizer(leaves):
            optimizers.append(OPTIMIZERS[kind](leaves))
            return optimizers[0]

        selected, _ = train(net, mask, make_optimizer, steps=1)
        tensors = [tensor for state in optimizers[0].state.values() for tensor in state.values()]
        assert sum(tensor.numel() for tensor in tensors if tensor.ndim == 1) == moments * mask.number_selected
        assert selected.number_selected == mask.number_selected

    def test_whole_tensors_are_views_of_their_parameters(self):
        net = make_net()
        selected = SelectedWeights(named(net), half_mask(net))
        leaf = selected.weights[selected.names.index("4.weight")]
        assert leaf.data_ptr() == net[4].weight.data_ptr()
        assert repr(selected) == f"SelectedWeights({selected.number_selected} weights in {len(selected.names)} tensors)"


class TestMemory:
    @pytest.mark.parametrize("kind", ["SGD momentum decay", "AdamW fused"])
    @pytest.mark.parametrize(("accumulate", "max_norm"), [(1, None), (3, None), (2, 0.1)])
    @pytest.mark.parametrize("at_once", [False, True])
    @pytest.mark.parametrize("keep", WAYS)
    def test_every_way_gives_the_same_bits(self, kind, accumulate, max_norm, at_once, keep):
        plain, net = make_net(), make_net()
        mask, how = half_mask(net), {"accumulate": accumulate, "max_norm": max_norm}
        _, expected = train(plain, mask, OPTIMIZERS[kind], **how)
        before = values(net)
        _, norms = train(net, mask, OPTIMIZERS[kind], keep=keep, at_once=at_once, **how)
        assert norms == expected
        assert all(torch.equal(parameter, plain.get_parameter(name)) for name, parameter in net.named_parameters())
        assert_only_selected_moved(before, net, mask)

    @pytest.mark.parametrize("size", [1, 7, 8, 9, 1000, 1024, 1025, 3 * 1024 + 13])
    @pytest.mark.parametrize("keep", WAYS)
    def test_positions_at_the_edges(self, size, keep):
        """The last byte of the bits is not full; the first and the last weight are selected."""
        flags = torch.arange(size) % 3 == 0
        flags[-1] = True
        weight = nn.Parameter(torch.arange(size, dtype=torch.float32))
        selected = SelectedWeights({"w": weight}, SaliencyMask.from_bools({"w": flags}), keep=keep)
        assert torch.equal(selected.weights[0].detach(), weight.detach()[flags])
        with torch.no_grad():
            selected.weights[0].add_(0.5)
        selected.scatter()
        assert torch.equal(weight.detach(), torch.arange(size) + 0.5 * flags)

    def test_bits_are_kept_as_bits(self):
        """An eighth of a byte a weight, where indices are four bytes for each that is selected."""
        weight = nn.Parameter(torch.zeros(8000))
        mask = SaliencyMask.random({"w": weight}, 0.5, torch.Generator().manual_seed(0))

        def kept(keep) -> int:
            (positions,) = SelectedWeights({"w": weight}, mask, keep=keep)._positions
            tensors = [value for value in vars(positions).values() if isinstance(value, Tensor)]
            return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

        assert (kept("bits"), kept("indices"), kept(None)) == (1000 + 8, 4 * 4000, 4 * 4000)

    def test_dense_gradients_never_exist_together(self):
        net = make_net()
        selected, alive = SelectedWeights(named(net), half_mask(net)), []
        with selected.in_training(gather_as_they_come=True):
            for parameter in net.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(
                        lambda _: alive.append(sum(p.grad is not None for p in net.parameters()))
                    )
            loss_of(net, 0).backward()
        assert alive == [0] * len(selected.names)

    @pytest.mark.parametrize("at_once", [False, True])
    def test_only_tensors_with_a_selected_weight_get_gradients(self, at_once):
        net = make_net()
        net[4].bias.requires_grad_(False)
        loss_of(net, 0).backward()
        mask = half_mask(net).restrict(lambda name: name in ("0.bias", "4.weight"))
        selected, got = SelectedWeights(named(net), mask), []
        for name, parameter in net.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda _, name=name: got.append(name))
        with selected.in_training(gather_as_they_come=at_once):
            assert {name for name, p in net.named_parameters() if p.requires_grad} == set(selected.names)
            assert all(parameter.grad is None for parameter in net.parameters())
            loss_of(net, 0).backward()
            assert {name for name, p in net.named_parameters() if p.grad is not None} == (
                set() if at_once else set(selected.names)
            )
        assert sorted(got) == sorted(selected.names) == ["0.bias", "4.weight"]
        assert all(parameter.grad is None for parameter in net.parameters())
        assert {name for name, p in net.named_parameters() if not p.requires_grad} == {"4.bias"}
        loss_of(net, 0).backward()  # No hook is left.
        assert net[0].bias.grad is not None

    @pytest.mark.parametrize("at_once", [False, True])
    def test_a_loss_scaler_unscales_and_checks_the_leaves(self, at_once):
        """4 times the loss, then a quarter of the gradient; a gradient with inf is no step and halves the scale."""
        weight = nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))
        selected = SelectedWeights({"w": weight}, SaliencyMask.from_bools({"w": torch.arange(3) > 0}))
        optimizer, scaler = torch.optim.SGD(selected.weights, lr=0.5), torch.amp.GradScaler("cpu", init_scale=4.0)
        with selected.in_training(gather_as_they_come=at_once):
            for gradient in ([9.0, 1.0, 2.0], [9.0, math.inf, 2.0]):
                scaler.scale((weight * torch.tensor(gradient)).sum()).backward()
                selected.gather_gradients()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                selected.scatter()
                assert weight.tolist() == [1.0, 0.5, 0.0]
        assert scaler.get_scale() == 2.0


class TestState:
    def test_round_trip_resumes_bit_for_bit(self):
        net = make_net()
        mask, start = half_mask(net), copy.deepcopy(make_net())
        selected, _ = train(net, mask, OPTIMIZERS["AdamW"])
        resumed = SelectedWeights(named(start), mask)
        resumed.load({name: tensor.clone() for name, tensor in selected.state().items()})
        for name, parameter in start.named_parameters():
            assert torch.equal(parameter, net.get_parameter(name))
        for leaf, expected in zip(resumed.weights, selected.weights, strict=True):
            assert torch.equal(leaf, expected)

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({}, r"selected weights of w must have shape \(2,\), got nothing"),
            ({"w": torch.ones(3)}, r"selected weights of w must have shape \(2,\), got \(3,\)"),
            ({"w": torch.ones(2), "v": torch.ones(1)}, "values for v, where this mask selects nothing"),
        ],
    )
    def test_values_of_another_mask_are_refused(self, values, words):
        weight = nn.Parameter(torch.zeros(3))
        selected = SelectedWeights({"w": weight}, SaliencyMask.from_bools({"w": torch.arange(3) > 0}))
        with pytest.raises(UserError, match=words):
            selected.load(values)
        assert weight.tolist() == [0.0, 0.0, 0.0]


class TestErrors:
    def test_mask_of_another_model(self):
        with pytest.raises(UserError, match=r"w has shape \(3,\) in the model"):
            SelectedWeights({"w": nn.Parameter(torch.zeros(3))}, SaliencyMask.full({"w": (4,)}))

    def test_mask_that_selects_nothing(self):
        weight = nn.Parameter(torch.zeros(3))
        with pytest.raises(UserError, match="selects no weight at all"):
            SelectedWeights({"w": weight}, ~SaliencyMask.full({"w": weight}))

    @pytest.mark.parametrize(
        ("parameter", "words"),
        [
            (nn.Parameter(torch.zeros(3), requires_grad=False), "w has selected weights but does not require"),
            (
                nn.Parameter(torch.zeros(3, dtype=torch.int32), requires_grad=False),
                r"w must be floating point to be trained, got torch.int32",
            ),
            (nn.Parameter(torch.zeros(2, 3).T), r"w must be contiguous, got strides \(1, 3\) for shape \(3, 2\)"),
        ],
    )
    def test_parameters_that_cannot_be_trained(self, parameter, words):
        with pytest.raises(UserError, match=words):
            SelectedWeights({"w": parameter}, SaliencyMask.full({"w": parameter}))

    def test_frozen_parameters_need_no_gradient(self):
        parameters = {"w": nn.Parameter(torch.zeros(2)), "v": nn.Parameter(torch.zeros(2), requires_grad=False)}
        mask = SaliencyMask.full(parameters).restrict(lambda name: name == "w")
        assert SelectedWeights(parameters, mask).names == ["w"]
