"""How many weights a ratio selects, away from one half, where the selected and the others are as many."""

from __future__ import annotations

import pytest
import torch

from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.saliency import Saliency


@pytest.mark.parametrize(("ratio", "counts"), [(0.2, [2, 4]), (0.7, [7, 14]), (1.0, [10, 20])])
def test_each_tensor_by_itself(ratio: float, counts: list[int]) -> None:
    """int(ratio · n) of 10 and of 20, the largest of each."""
    scores = {"small": torch.arange(10.0), "large": torch.arange(20.0) + 100}
    mask = SaliencyMask.from_saliency(Saliency(scores), ratio, "per_tensor")
    assert [int(mask[name].sum()) for name in scores] == counts
    for name, count in zip(scores, counts, strict=True):
        assert mask[name].tolist() == [position >= len(scores[name]) - count for position in range(len(scores[name]))]


@pytest.mark.parametrize(("ratio", "counts"), [(0.2, [0, 6]), (0.7, [1, 20]), (1.0, [10, 20])])
def test_all_tensors_together(ratio: float, counts: list[int]) -> None:
    """int(ratio · 30), of which the larger scores are all in one tensor."""
    scores = {"small": torch.arange(10.0), "large": torch.arange(20.0) + 100}
    mask = SaliencyMask.from_saliency(Saliency(scores), ratio)
    assert [int(mask[name].sum()) for name in scores] == counts
