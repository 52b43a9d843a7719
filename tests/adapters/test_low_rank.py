"""The closest change of a rank, and where ranks go."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from salun_diffusers.adapters.fused import Fused
from salun_diffusers.adapters.low_rank import Factors, LowRank, cost, highest_rank, layers_of, truncated
from salun_diffusers.adapters.ranks import ranks_by_saliency, salient_layers
from salun_diffusers.errors import UserError


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestTruncated:
    @pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 4, 3, 3), (40, 2, 3, 3), (7, 5, 1, 1)])
    def test_lacks_the_smaller_singular_values_and_nothing_else(self, shape: tuple[int, ...]) -> None:
        change = drawn(*shape)
        values = torch.linalg.svdvals(change.double().flatten(1))
        for rank in range(1, len(values) + 1):
            kept = truncated(change, rank)
            lacking = float((change - kept.change()).double().square().sum())
            assert math.isclose(lacking, float(values[rank:].square().sum()), abs_tol=1e-9, rel_tol=1e-5)

    def test_has_the_shapes_of_peft(self) -> None:
        kept = truncated(drawn(6, 4, 3, 3), 2)
        assert (tuple(kept.down.shape), tuple(kept.up.shape), kept.rank) == ((2, 4, 3, 3), (6, 2, 1, 1), 2)
        assert truncated(drawn(6, 4), 99).rank == 4

    def test_both_factors_are_of_one_size(self) -> None:
        kept = truncated(100 * drawn(6, 9), 3)
        assert torch.allclose(kept.down.norm(), kept.up.norm(), rtol=1e-4)

    def test_a_change_of_a_lower_rank_is_told_exactly(self) -> None:
        change = torch.outer(drawn(6), drawn(9, seed=1))
        kept = truncated(change, 4)
        assert torch.allclose(kept.change(), change, atol=1e-6)
        assert kept.down.isfinite().all() and kept.up.isfinite().all()


class TestLayers:
    def test_linear_and_ungrouped_convolutions(self) -> None:
        network = nn.Sequential(
            nn.Linear(3, 4), nn.Conv2d(4, 6, 3), nn.GroupNorm(2, 6), nn.Conv2d(6, 6, 3, groups=2), nn.Embedding(4, 4)
        )
        assert {name: tuple(shape) for name, shape in layers_of(network).items()} == {"0": (4, 3), "1": (6, 4, 3, 3)}

    def test_cost_and_highest_rank(self) -> None:
        shape = torch.Size((6, 4, 3, 3))
        assert (cost(shape), highest_rank(shape)) == (6 + 4 * 9, 6)


class TestRanks:
    SHAPES = {"a": torch.Size((16, 16)), "b": torch.Size((64, 64)), "c": torch.Size((8, 4, 3, 3))}  # noqa: RUF012

    def test_layers_are_taken_by_saliency_per_weight_as_far_as_they_fit(self) -> None:
        scores = {"a": 256.0, "b": 4096.0 * 2, "c": 288.0 * 3}  # 1, 2 and 3 a weight
        assert salient_layers(scores, self.SHAPES, 288) == ["c"]
        assert salient_layers(scores, self.SHAPES, 288 + 4096) == ["b", "c"]
        assert salient_layers(scores, self.SHAPES, 288 + 4095) == ["a", "c"]  # The next one still fits.
        assert salient_layers(scores, self.SHAPES, 287) == ["a"]
        assert salient_layers(scores, self.SHAPES, 255) == []

    def test_parameters_are_in_proportion_to_saliency(self) -> None:
        shapes = {"a": torch.Size((100, 100)), "b": torch.Size((100, 300))}
        ranks = ranks_by_saliency({"a": 1.0, "b": 4.0}, shapes, 5000)
        assert ranks == {"a": 5, "b": 10}
        used = {layer: ranks[layer] * cost(shapes[layer]) for layer in shapes}
        assert used["b"] / used["a"] == 4 and sum(used.values()) <= 5000

    def test_a_rank_is_the_whole_number_below(self) -> None:
        """Of 4 ranks in all, 1 and ⌊1.6 · 1.9⌋; to the nearest it would be 2 and 2 at the largest scale that fits."""
        shapes = {name: torch.Size((5, 5)) for name in "ab"}
        assert ranks_by_saliency({"a": 1.0, "b": 1.6}, shapes, 40) == {"a": 1, "b": 3}

    @pytest.mark.parametrize("budget", [170, 171, 400, 999, 10**6])
    def test_the_budget_holds_and_every_layer_has_a_rank(self, budget: int) -> None:
        scores = {"a": 1.0, "b": 0.0, "c": 1e6}
        ranks = ranks_by_saliency(scores, self.SHAPES, max(budget, sum(map(cost, self.SHAPES.values()))))
        assert all(1 <= rank <= highest_rank(self.SHAPES[layer]) for layer, rank in ranks.items())
        assert sum(rank * cost(self.SHAPES[layer]) for layer, rank in ranks.items()) <= max(budget, 204)

    def test_what_one_layer_cannot_use_goes_to_the_others(self) -> None:
        shapes = {"small": torch.Size((2, 50)), "large": torch.Size((50, 50))}
        ranks = ranks_by_saliency({"small": 1000.0, "large": 1.0}, shapes, 52 * 2 + 100 * 20)
        assert ranks == {"small": 2, "large": 20}

    def test_without_saliency_all_are_alike(self) -> None:
        ranks = ranks_by_saliency(dict.fromkeys("ab", 0.0), {name: torch.Size((30, 30)) for name in "ab"}, 60 * 8)
        assert ranks == {"a": 4, "b": 4}


class TestFused:
    def test_adds_the_change_and_leaves_the_rest(self) -> None:
        weights = {"a.weight": drawn(4, 3), "a.bias": drawn(4), "b": drawn(2)}
        one = Factors(drawn(2, 3, seed=1), drawn(4, 2, seed=2))
        fused = Fused(weights, LowRank({"a": one}))
        assert torch.allclose(fused["a.weight"], weights["a.weight"] + one.up @ one.down)
        assert fused["a.bias"] is weights["a.bias"] and list(fused) == list(weights)

    @pytest.mark.parametrize("layer", ["a", "c"])
    def test_refuses_another_model(self, layer: str) -> None:
        with pytest.raises(UserError, match="of another model: it changes"):
            Fused({"a.weight": drawn(4, 5)}, LowRank({layer: Factors(drawn(2, 3), drawn(4, 2))}))
