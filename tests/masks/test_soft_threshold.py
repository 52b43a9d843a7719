"""SalUn-soft's proximal step."""

from __future__ import annotations

import pytest
import torch

from salun_diffusers.errors import UserError
from salun_diffusers.masks.soft_threshold import falling_share, soft_threshold_


def test_by_hand():
    """Changes 0.1, -0.2, 0.4, -0.8 with share 0.5: t is the 2nd smallest size, 0.2; 0.2 and -0.6 remain."""
    reference = [torch.zeros(2), torch.ones(2)]
    weights = [torch.tensor([0.1, -0.2]), torch.tensor([1.4, 0.2])]
    assert soft_threshold_(weights, reference, 0.5) == pytest.approx(0.2)
    torch.testing.assert_close(weights, [torch.zeros(2), torch.tensor([1.2, 0.4])])
    assert torch.equal(weights[0], reference[0])


def test_equals_the_official_rule():
    """RL_pro.py at OPTML-Group/Unlearn-Saliency@a6e89fd: d > t → θ - t, d < -t → θ + t, else θ₀, t by sorting."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(1000, generator=generator)
    weights = reference + torch.randn(1000, generator=generator)
    difference = weights - reference
    threshold = difference.abs().sort().values[int(0.37 * 1000) - 1]
    expected = reference.clone()
    expected[difference > threshold] = (weights - threshold)[difference > threshold]
    expected[difference < -threshold] = (weights + threshold)[difference < -threshold]
    soft_threshold_([weights], [reference], 0.37)
    assert torch.equal(weights, expected)
    assert (weights == reference).sum() >= 370


def test_share_of_nothing_changes_nothing():
    weights = torch.tensor([1.0, 2.0])
    assert soft_threshold_([weights], [torch.zeros(2)], 0.0) == 0.0
    assert weights.tolist() == [1.0, 2.0]


def test_share_of_all_gives_the_reference_back():
    weights = torch.tensor([1.0, -2.0])
    soft_threshold_([weights], [torch.tensor([0.3, 0.7])], 1.0)
    assert torch.equal(weights, torch.tensor([0.3, 0.7]))


def test_refuses():
    with pytest.raises(UserError, match=r"share must lie in \[0, 1\], got 50"):
        soft_threshold_([torch.zeros(1)], [torch.zeros(1)], 50)
    with pytest.raises(UserError, match="one reference tensor of the same shape"):
        soft_threshold_([torch.zeros(1)], [torch.zeros(2)], 0.5)


def test_falling_share():
    assert [falling_share(0.5, step, 4) for step in range(5)] == [0.5, 0.375, 0.25, 0.125, 0.0]
