"""What is done to updates beside the mask, around the step of any optimizer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from salun_diffusers.errors import UserError
from salun_diffusers.masks.inclusion import Inclusion
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.selected_weights import SelectedWeights
from salun_diffusers.masks.soft_updates import (
    HardUpdates,
    ProximalUpdates,
    ScaledUpdates,
    SoftUpdates,
    attach,
    continuous,
    falling,
    redrawn,
)

OPTIMIZERS = [
    pytest.param(lambda leaves: torch.optim.SGD(leaves, 0.5), id="sgd"),
    pytest.param(lambda leaves: torch.optim.SGD(leaves, 0.5, momentum=0.9, weight_decay=0.1), id="momentum"),
    pytest.param(lambda leaves: torch.optim.AdamW(leaves, 0.5, weight_decay=0.1, fused=True), id="adamw"),
]


def step(leaves: list[nn.Parameter], updates: SoftUpdates, gradients: list[float]) -> None:
    """One step of SGD at rate 1, which subtracts the gradients."""
    optimizer = torch.optim.SGD(leaves, 1.0)
    attach(updates, optimizer)
    leaves[0].grad = torch.tensor(gradients)
    optimizer.step()


class TestProximal:
    def test_by_hand(self) -> None:
        """Steps of -0.1, 0.2, -0.4, 0.8 from 1; half is taken back: t = 0.2 and what is left is 0, 0, +0.2, -0.6."""
        leaf = nn.Parameter(torch.ones(4))
        updates = ProximalUpdates([leaf], lambda step, done: 0.5)
        step([leaf], updates, [-0.1, 0.2, -0.4, 0.8])
        torch.testing.assert_close(leaf.detach(), torch.tensor([1.0, 1.0, 1.2, 0.4]))
        assert leaf[:2].tolist() == [1.0, 1.0], "bit for bit"

    def test_changes_are_measured_from_the_start_not_from_the_step_before(self) -> None:
        """Two steps of 0.1 and 0.4 each; after the second the changes are 0.2 and 0.7 (0.4-0.1 then +0.4), t = 0.2."""
        leaf = nn.Parameter(torch.zeros(2))
        updates = ProximalUpdates([leaf], lambda step, done: 0.5)
        step([leaf], updates, [-0.1, -0.4])
        torch.testing.assert_close(leaf.detach(), torch.tensor([0.0, 0.3]))
        optimizer = torch.optim.SGD([leaf], 1.0)
        attach(updates, optimizer)
        leaf.grad = torch.tensor([-0.1, -0.4])
        optimizer.step()
        torch.testing.assert_close(leaf.detach(), torch.tensor([0.0, 0.6]))

    def test_the_share_falls_to_nothing(self) -> None:
        leaf = nn.Parameter(torch.zeros(4))
        updates = ProximalUpdates([leaf], falling(0.5))
        optimizer = torch.optim.SGD([leaf], 1.0)
        attach(updates, optimizer)
        left = []
        for number in range(1, 5):
            updates.begin(number, number / 4)
            leaf.data.zero_()  # Each step leads to 1, 2, 3, 4.
            leaf.grad = torch.tensor([-1.0, -2.0, -3.0, -4.0])
            optimizer.step()
            left.append(int((leaf == 0).sum()))
        assert left == [1, 1, 0, 0], "int(4 · 0.375), int(4 · 0.25), int(4 · 0.125), 0"
        assert leaf.tolist() == [1, 2, 3, 4], "the last step takes nothing back"

    def test_others_count_as_unchanged(self) -> None:
        """Of 4 + 4 weights 5 are taken back, 4 of which are the others: the smallest change of the four, 0.1."""
        leaf = nn.Parameter(torch.zeros(4))
        updates = ProximalUpdates([leaf], lambda step, done: 5 / 8, others=4)
        step([leaf], updates, [-0.1, 0.2, -0.4, 0.8])
        torch.testing.assert_close(leaf.detach(), torch.tensor([0.0, -0.1, 0.3, -0.7]))


class TestScaled:
    def test_by_hand(self) -> None:
        """Updates -0.4 of shares 0, 1/4, 1/2 and 1."""
        leaf = nn.Parameter(torch.ones(4))
        step([leaf], ScaledUpdates([leaf], lambda step: [torch.tensor([0.0, 0.25, 0.5, 1.0])]), [0.4] * 4)
        torch.testing.assert_close(leaf.detach(), torch.tensor([1.0, 0.9, 0.8, 0.6]))

    @pytest.mark.parametrize("make", OPTIMIZERS)
    def test_nothing_and_all_are_exact(self, make) -> None:
        """Where w = 0 the weight stays to the bit, where w = 1 it goes as without, whatever decays or carries on."""
        torch.manual_seed(0)
        start = torch.randn(50)
        free, scaled = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        shares = torch.arange(50) % 2
        optimizers = [make([free]), make([scaled])]
        attach(ScaledUpdates([scaled], lambda step: [shares]), optimizers[1])
        for _ in range(5):
            free.grad = scaled.grad = torch.randn(50)
            for optimizer in optimizers:
                optimizer.step()
        assert torch.equal(scaled[shares == 0], start[shares == 0])
        assert not torch.equal(free[shares == 0], start[shares == 0])
        assert torch.equal(scaled[shares == 1], free[shares == 1])

    def test_hard_updates_change_nothing(self) -> None:
        free, hard = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        step([hard], HardUpdates(), [0.1, 0.2, 0.3])
        step([free], ScaledUpdates([free], lambda step: [torch.ones(3)]), [0.1, 0.2, 0.3])
        assert torch.equal(free, hard) and hard[2].item() == pytest.approx(0.7)


class TestOfAMask:
    """The probabilities of selected weights, whatever part of a tensor they are."""

    @pytest.fixture
    def layer(self) -> nn.Linear:
        torch.manual_seed(0)
        return nn.Linear(3, 2)

    INCLUSION = Inclusion(
        {"weight": torch.tensor([[0.0, 0.25, 0.5], [1.0, 0.0, 0.125]]).half(), "bias": torch.tensor([0.5, 0.5]).half()},
        {},
    )

    def test_gathered_in_order(self, layer: nn.Linear) -> None:
        selected = SelectedWeights(dict(layer.named_parameters()), self.INCLUSION.support())
        taken = selected.gather(self.INCLUSION)
        assert [values.tolist() for values in taken] == [[0.25, 0.5, 1.0, 0.125], [0.5, 0.5]]

    @pytest.mark.parametrize("keep", ["bits", "indices"])
    def test_kept_in_either_way(self, layer: nn.Linear, keep: str) -> None:
        selected = SelectedWeights(dict(layer.named_parameters()), self.INCLUSION.support(), keep=keep)  # type: ignore[arg-type]
        assert selected.gather(self.INCLUSION)[0].tolist() == [0.25, 0.5, 1.0, 0.125]

    def test_refuses_another_model(self, layer: nn.Linear) -> None:
        selected = SelectedWeights(dict(layer.named_parameters()), SaliencyMask.full({"weight": (2, 3), "bias": (2,)}))
        with pytest.raises(UserError, match=r"each weight of bias \(2,\) is required, got nothing"):
            selected.gather({"weight": torch.ones(2, 3)})
        with pytest.raises(UserError, match=r"weight \(2, 3\) is required, got \(3, 2\)"):
            selected.gather({"weight": torch.ones(3, 2), "bias": torch.ones(2)})

    def test_continuous(self, layer: nn.Linear) -> None:
        """All gradients 1 at rate 1: every weight falls by its probability."""
        base = layer.weight.detach().clone()
        selected = SelectedWeights(dict(layer.named_parameters()), self.INCLUSION.support())
        optimizer = torch.optim.SGD(selected.weights, 1.0)
        attach(continuous(selected, self.INCLUSION), optimizer)
        for leaf in selected.weights:
            leaf.grad = torch.ones_like(leaf)
        optimizer.step()
        selected.scatter()
        torch.testing.assert_close(base - layer.weight.detach(), self.INCLUSION["weight"].float())
        assert torch.equal(layer.weight[0, 0], base[0, 0])

    def test_redrawn_by_the_step_alone(self, layer: nn.Linear) -> None:
        """Which weights move in a step does not depend on the steps before; over many it is as often as p says."""
        start = {name: value.clone() for name, value in layer.state_dict().items()}

        def moved(steps: list[int], seed: int = 0) -> list[list[bool]]:
            layer.load_state_dict(start)
            selected = SelectedWeights(dict(layer.named_parameters()), self.INCLUSION.support())
            optimizer, updates = torch.optim.SGD(selected.weights, 1.0), redrawn(selected, self.INCLUSION, seed)
            attach(updates, optimizer)
            found = []
            for number in steps:
                updates.begin(number, 0.0)
                before = selected.weights[0].detach().clone()
                for leaf in selected.weights:
                    leaf.grad = torch.ones_like(leaf)
                optimizer.step()
                found.append((selected.weights[0] != before).tolist())
            return found

        draws = moved(list(range(1, 301)))
        assert moved([8, 9]) == draws[7:9] and moved(list(range(1, 20)), seed=1) != draws[:19]
        shares = torch.tensor(draws).float().mean(0)
        assert shares.tolist() == pytest.approx([0.25, 0.5, 1.0, 0.125], abs=0.15) and shares[2] == 1
