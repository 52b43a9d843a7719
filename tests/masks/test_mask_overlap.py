"""Two masks against chance, by hand."""

from __future__ import annotations

import pytest
import torch

from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.mask_overlap import Overlap, overlaps, require_same_base


def mask(**places: tuple[list[int], int]) -> SaliencyMask:
    flags = {}
    for name, (chosen, size) in places.items():
        flags[name] = torch.zeros(size, dtype=torch.bool)
        flags[name][chosen] = True
    return SaliencyMask.from_bools(flags)


def test_by_hand() -> None:
    """Tensor a: 4 and 2 of 8, 2 in both, chance 4·2/8 = 1. Tensor b: 2 and 3 of 10, 0 in both, chance 2·3/10 = 0.6."""
    first = mask(a=([0, 1, 2, 3], 8), b=([0, 1], 10))
    second = mask(a=([2, 3], 8), b=([7, 8, 9], 10))
    found = overlaps(first, second)
    assert found["a"] == Overlap(8, 4, 2, 2, 1.0) and found["b"] == Overlap(10, 2, 3, 0, pytest.approx(0.6))
    assert (found["a"].either, found["a"].jaccard, found["a"].lift) == (4, 0.5, 2.0)
    assert found["a"].jaccard_by_chance == pytest.approx(1 / 5)
    assert found["b"].lift == 0
    whole = found["a"] + found["b"]
    assert (whole.first, whole.second, whole.both, whole.either) == (6, 5, 2, 9)
    assert whole.jaccard == first.overlap(second)
    assert whole.lift == pytest.approx(2 / 1.6) and whole.jaccard_by_chance == pytest.approx(1.6 / 9.4)
    assert whole.to_json()["both_by_chance"] == pytest.approx(1.6)


def test_a_block_sums_its_tensors() -> None:
    """Chance is that of each tensor: 4·4/4 + 0 = 4, not (4+0)·(4+0)/12."""
    names = ["down_blocks.0.a", "down_blocks.0.b"]
    one = mask(**{names[0]: ([0, 1, 2, 3], 4), names[1]: ([], 8)})
    [block] = overlaps(one, one).values()
    assert block == Overlap(12, 4, 4, 4, 4.0) and block.lift == 1


def test_masks_that_select_nothing_agree() -> None:
    nothing = Overlap(3, 0, 0, 0, 0.0)
    assert (nothing.jaccard, nothing.jaccard_by_chance, nothing.lift) == (1, 1, 1)


def test_random_masks_overlap_by_chance() -> None:
    shapes = {"w": (200, 100), "v": (50, 40)}
    one, two = (SaliencyMask.random(shapes, 0.3, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert all(0.9 < row.lift < 1.1 for row in overlaps(one, two).values())


def test_refuses_two_models() -> None:
    base = {"base": "demo", "base_sha256": "a" * 64}
    one, two = (SaliencyMask.full({"w": (4,)}, recipe) for recipe in (base, {"base": "sd", "base_sha256": "b" * 64}))
    unnamed = SaliencyMask.full({"w": (4,)})
    require_same_base(one, one | unnamed, unnamed)
    with pytest.raises(UserError, match=r"demo \(sha256 a{12}…\) and sd \(sha256 b{12}…\)"):
        require_same_base(unnamed, one, two)
    with pytest.raises(UserError, match="w has shape"):
        overlaps(one, SaliencyMask.full({"w": (5,)}))
