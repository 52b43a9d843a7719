"""The mask: exact counts, the order among ties, and algebra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from salun_diffusers.errors import UserError
from salun_diffusers.masks import threshold
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.saliency import Saliency

SHAPES = {"conv": (4, 3, 3), "bias": (5,), "scalar": (), "linear": (7, 11)}


def flat(mask: SaliencyMask) -> Tensor:
    return torch.cat([mask[name].flatten() for name in mask])


def random_mask(seed: int, ratio: float = 0.5) -> SaliencyMask:
    return SaliencyMask.random(SHAPES, ratio, torch.Generator().manual_seed(seed))


SCORES = {
    "random": lambda n: torch.rand(n),
    "wide": lambda n: torch.randn(n).mul(20).exp(),
    "all equal": lambda n: torch.full((n,), 0.25),
    "all zero": lambda n: torch.zeros(n),
    "few values": lambda n: torch.randint(4, (n,)).float(),
    "mostly zero": lambda n: torch.rand(n) * (torch.rand(n) < 0.05),
    "subnormal": lambda n: torch.randint(1, 40, (n,)).to(torch.int32).view(torch.float32),
    "negative zeros": lambda n: torch.where(torch.rand(n) < 0.5, 0.0, -0.0) + torch.zeros(n).neg(),
    "same upper bits": lambda n: (torch.randint(1 << 16, (n,)) + (0x3F80 << 16)).to(torch.int32).view(torch.float32),
}


class TestSelection:
    @pytest.mark.parametrize("chunk", [16, 1 << 18])
    @pytest.mark.parametrize("ratio", [0.004, 0.1, 0.5, 0.73, 1.0])
    @pytest.mark.parametrize("kind", SCORES)
    def test_equals_a_stable_sort(self, kind, ratio, chunk, monkeypatch):
        monkeypatch.setattr(threshold, "CHUNK", chunk)
        torch.manual_seed(1)
        scores = {name: SCORES[kind](size).reshape(shape) for name, size, shape in _sizes(301)}
        together = torch.cat([tensor.flatten() for tensor in scores.values()])
        count = int(ratio * together.numel())
        expected = np.zeros(together.numel(), dtype=bool)
        expected[np.argsort(-together.numpy(), kind="stable")[:count]] = True

        mask = SaliencyMask.from_saliency(Saliency(scores), ratio)
        assert mask.number_selected == count
        np.testing.assert_array_equal(flat(mask).numpy(), expected)

    def test_ties_go_to_earlier_tensors_and_positions(self):
        # Three of five: the 2, then the first two of the four ones.
        saliency = Saliency({"b": torch.tensor([1.0, 2.0]), "a": torch.tensor([1.0, 1.0, 1.0])})
        mask = SaliencyMask.from_saliency(saliency, 0.6)
        assert mask["b"].tolist() == [True, True]
        assert mask["a"].tolist() == [True, False, False]

    def test_negative_zero_ties_with_zero(self):
        saliency = Saliency({"w": torch.tensor([-0.0, 0.0, -0.0, 0.0])})
        assert SaliencyMask.from_saliency(saliency, 0.5)["w"].tolist() == [True, True, False, False]

    def test_subnormal_scores_rank_above_zero(self):
        tiny = torch.tensor([0, 1, 0, 2], dtype=torch.int32).view(torch.float32)
        assert SaliencyMask.from_saliency(Saliency({"w": tiny}), 0.5)["w"].tolist() == [False, True, False, True]

    def test_per_tensor_scope_counts_in_each_tensor(self):
        saliency = Saliency({"small": torch.tensor([0.1, 0.2, 0.3]), "large": torch.tensor([5.0, 8.0, 7.0, 6.0])})
        mask = SaliencyMask.from_saliency(saliency, 0.5, "per_tensor")
        assert mask["small"].tolist() == [False, False, True]
        assert mask["large"].tolist() == [False, True, True, False]
        # All four scores that matter are in one tensor, so the global mask is another: int(0.5 * 7) = 3.
        whole = SaliencyMask.from_saliency(saliency, 0.5)
        assert whole["small"].tolist() == [False, False, False]
        assert whole["large"].tolist() == [False, True, True, True]

    def test_counts_as_the_official_code_where_floats_fall_short(self):
        # 0.29 * 100 is 28.999999999999996 in floating point.
        assert SaliencyMask.from_saliency(Saliency({"w": torch.rand(100)}), 0.29).number_selected == 28

    def test_follows_logical_order_whatever_the_memory_layout(self):
        scores = torch.rand(2, 3, 4, 5)
        channels_last = scores.to(memory_format=torch.channels_last)
        expected = SaliencyMask.from_saliency(Saliency({"w": scores}), 0.3)
        assert SaliencyMask.from_saliency(Saliency({"w": channels_last}), 0.3) == expected

    @pytest.mark.parametrize("ratio", [0, -0.1, 50, 1.0001, float("nan")])
    def test_ratio_outside_its_range_is_explained(self, ratio):
        with pytest.raises(UserError, match=rf"ratio must lie in \(0, 1\], got {ratio}. Ratios are fractions: use 0.5"):
            SaliencyMask.from_saliency(Saliency({"w": torch.rand(4)}), ratio)

    @pytest.mark.parametrize(("scope", "ratio"), [("global", 0.1), ("per_tensor", 0.3)])
    def test_selecting_nothing_is_an_error(self, scope, ratio):
        saliency = Saliency({"a": torch.rand(3), "b": torch.rand(3)})
        with pytest.raises(UserError, match=f"ratio {ratio} of 6 weights .* selects none"):
            SaliencyMask.from_saliency(saliency, ratio, scope)

    def test_unknown_scope_is_an_error(self):
        with pytest.raises(UserError, match='scope must be "global" or "per_tensor", got \'layer\''):
            SaliencyMask.from_saliency(Saliency({"a": torch.rand(3)}), 0.5, "layer")

    def test_threshold_needs_that_many_scores(self):
        with pytest.raises(ValueError, match=r"count must lie in \[0, 3\], the number of scores; got 4"):
            threshold.largest([torch.rand(3)], 4)

    def test_recipe_records_how(self):
        mask = SaliencyMask.from_saliency(Saliency({"a": torch.rand(4)}), 0.5, recipe={"concept": "circle"})
        assert dict(mask.recipe) == {"kind": "saliency", "ratio": 0.5, "scope": "global", "concept": "circle"}


def _sizes(total: int) -> list[tuple[str, int, tuple[int, ...]]]:
    return [("one", 120, (8, 15)), ("two", 1, ()), ("three", total - 121, (total - 121,))]


class TestRandom:
    def test_count_is_exact_and_the_seed_decides(self):
        assert random_mask(3, 0.37).number_selected == int(0.37 * 119)
        assert random_mask(3) == random_mask(3)
        assert random_mask(3) != random_mask(4)

    def test_masks_drawn_in_turn_differ(self):
        generator = torch.Generator().manual_seed(0)
        first, second = (SaliencyMask.random({"w": (40_000,)}, 0.5, generator) for _ in range(2))
        # Two independent halves share 1/4 of the weights and touch 3/4: the index is 1/3, give or take 0.005.
        assert first.overlap(second) == pytest.approx(1 / 3, abs=0.02)

    def test_takes_parameters_and_scopes(self):
        parameters = dict(nn.Linear(10, 4).named_parameters())
        mask = SaliencyMask.random(parameters, 0.5, torch.Generator(), "per_tensor")
        assert [(entry.name, entry.selected) for entry in mask.stats()] == [("weight", 20), ("bias", 2)]

    def test_every_position_has_its_share(self):
        generator = torch.Generator().manual_seed(5)
        total = sum(flat(SaliencyMask.random({"a": (3,), "b": (5,)}, 0.5, generator)).int() for _ in range(500))
        # 250 expected at each of the 8 positions, standard deviation 11.
        assert total.sum().item() == 2000
        assert 190 < total.min().item() <= total.max().item() < 310


class TestMapping:
    def test_bools_come_back(self):
        flags = {name: torch.rand(shape) < 0.5 for name, shape in SHAPES.items()}
        mask = SaliencyMask.from_bools(flags, {"source": "by hand"})
        assert list(mask) == list(SHAPES)
        assert len(mask) == 4
        for name, expected in flags.items():
            assert torch.equal(mask[name], expected)
            assert mask.indices(name).tolist() == expected.flatten().nonzero().flatten().tolist()
            assert mask.indices(name).dtype == torch.int32
        assert dict(mask.recipe) == {"kind": "given", "source": "by hand"}

    def test_bits_are_those_of_numpy_packbits(self):
        flags = torch.tensor([True, False, False, True, False, False, False, False, True])
        assert SaliencyMask.from_bools({"w": flags}).packed["w"].tolist() == [0b1001, 0b1]

    def test_full_selects_everything(self):
        mask = SaliencyMask.full(dict(nn.Linear(3, 3).named_parameters()))
        assert mask.number_selected == mask.number_of_weights == 12
        assert mask.density == 1.0
        assert bool(mask["weight"].all())

    def test_other_types_are_refused(self):
        with pytest.raises(UserError, match=r"mask of w must be a bool tensor, got torch.int64"):
            SaliencyMask.from_bools({"w": torch.ones(2, dtype=torch.int64)})

    def test_is_frozen(self):
        mask = random_mask(0)
        with pytest.raises(AttributeError):
            mask.packed = {}
        with pytest.raises(TypeError):
            mask.recipe["ratio"] = 0.1
        with pytest.raises(TypeError):
            hash(mask)

    def test_statistics(self):
        mask = SaliencyMask.from_bools({"a": torch.tensor([True, False, False, False]), "b": torch.tensor([True])})
        assert mask.density == 0.4
        assert [(entry.name, entry.size, entry.selected, entry.density) for entry in mask.stats()] == [
            ("a", 4, 1, 0.25),
            ("b", 1, 1, 1.0),
        ]
        assert repr(mask) == "SaliencyMask(2 of 5 weights in 2 tensors)"


class TestAlgebra:
    def test_laws(self):
        a, b, c = (random_mask(seed, 0.4) for seed in range(3))
        full = SaliencyMask.full(SHAPES)
        assert a & b == b & a
        assert a | b == b | a
        assert a & (b | c) == (a & b) | (a & c)
        assert ~(a & b) == ~a | ~b
        assert ~~a == a
        assert a | ~a == full
        assert (a & ~a).number_selected == 0
        assert a & full == a
        assert (~a).number_selected == a.number_of_weights - a.number_selected

    def test_agrees_with_bools(self):
        a, b = random_mask(0), random_mask(1)
        assert torch.equal(flat(a & b), flat(a) & flat(b))
        assert torch.equal(flat(a | b), flat(a) | flat(b))
        assert torch.equal(flat(~a), ~flat(a))

    def test_overlap_is_the_jaccard_index(self):
        a = SaliencyMask.from_bools({"w": torch.tensor([True, True, False, False])})
        b = SaliencyMask.from_bools({"w": torch.tensor([False, True, True, False])})
        assert a.overlap(b) == pytest.approx(1 / 3)
        assert a.overlap(a) == 1.0
        assert a.overlap(~a) == 0.0
        assert (a & ~a).overlap(a & ~a) == 1.0

    def test_recipes_are_merged(self):
        a, b = random_mask(0), random_mask(1)
        assert (a & b).recipe == {"kind": "and", "of": [dict(a.recipe), dict(b.recipe)]}
        assert (~(a | b)).recipe == {"kind": "not", "of": [{"kind": "or", "of": [dict(a.recipe), dict(b.recipe)]}]}
        assert a.restrict(lambda name: name == "conv").recipe["kept_tensors"] == 1

    def test_restrict_freezes_the_rest(self):
        mask = random_mask(0).restrict(lambda name: "con" in name)
        assert torch.equal(mask["conv"], random_mask(0)["conv"])
        assert not mask["linear"].any()

    def test_restrict_to_nothing_is_an_error(self):
        with pytest.raises(UserError, match=r"of the 4 tensors \(such as conv\) it keeps 0"):
            random_mask(0).restrict(lambda name: "attn2" in name)

    def test_equality_needs_shapes_but_no_order(self):
        first, second = torch.tensor([True, False]), torch.tensor([True])
        mask = SaliencyMask.from_bools({"a": first, "b": second})
        assert mask == SaliencyMask.from_bools({"b": second, "a": first})
        assert mask.sha256 == SaliencyMask.from_bools({"b": second, "a": first}).sha256
        assert mask != SaliencyMask.from_bools({"a": first.reshape(2, 1), "b": second})
        assert mask != SaliencyMask.from_bools({"a": ~first, "b": second})
        assert mask != "a mask"


class TestMatching:
    def test_takes_the_order_of_the_model(self):
        mask = random_mask(0)
        matched = mask.matched_to(dict(reversed(SHAPES.items())))
        assert list(matched) == list(reversed(SHAPES))
        assert matched == mask
        assert matched.recipe == mask.recipe

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"bias": (6,)}, r"bias has shape \(6,\) in the model, .* found shape \(5,\)"),
            ({"extra": (2,)}, r"extra has shape \(2,\) in the model, .* found no such tensor"),
            ({"bias": None}, "expected only tensors of the model, found bias as well"),
        ],
    )
    def test_names_the_first_mismatch(self, change, words):
        shapes = {name: shape for name, shape in {**SHAPES, **change}.items() if shape is not None}
        with pytest.raises(UserError, match=words):
            random_mask(0).matched_to(shapes)

    def test_masks_of_two_models_do_not_combine(self):
        other = SaliencyMask.full({"conv": (1,)})
        for combine in (lambda a, b: a & b, lambda a, b: a | b, lambda a, b: a.overlap(b)):
            with pytest.raises(UserError, match=r"conv has shape \(4, 3, 3\) in the first mask"):
                combine(random_mask(0), other)
