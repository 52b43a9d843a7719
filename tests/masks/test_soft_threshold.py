"""SalUn-soft's proximal step."""

from __future__ import annotations

import pytest
import torch

from salun_diffusers.errors import UserError
from salun_diffusers.masks.soft_threshold import falling_share, official_share, soft_threshold_


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


def test_weights_that_never_move_are_counted_first():
    """Of 4 + 2 weights int(0.5 · 6) = 3 are taken back, 2 of them elsewhere: t is the smallest of the four, 0.1."""
    weights = [torch.tensor([0.1, -0.2, 0.4, -0.8])]
    assert soft_threshold_(weights, [torch.zeros(4)], 0.5, others=2) == pytest.approx(0.1)
    torch.testing.assert_close(weights[0], torch.tensor([0.0, -0.1, 0.3, -0.7]))
    assert soft_threshold_(weights, [torch.zeros(4)], 0.5, others=9) == 0, "all that is taken back lies elsewhere"


@pytest.mark.parametrize(("share", "expected"), [(0.5, 0.380), (0.4, 0.256)])
def test_official_shares_of_stable_diffusion(share, expected):
    """The VAE's 83,653,863 and the text encoder's 123,060,480 weights fill the smallest of all, at 1 / 1000 here."""
    unet, others = 859_520, 83_653 + 123_060
    weights = [torch.arange(1, unet + 1, dtype=torch.float32)]
    threshold = soft_threshold_(weights, [torch.zeros(unet)], share, others=others)
    assert threshold / unet == pytest.approx(expected, abs=5e-4)
    assert (weights[0] == 0).float().mean() == pytest.approx(expected, abs=5e-4)


def test_official_course_by_hand():
    """Two epochs of 2 steps that count as 2 + 3: 1 - 1/10, 1 - 2/10, then 1 - 6/10, and 1 - 7/10 at the end."""
    shares = [official_share(0.5, step, 4, (2, 3)) for step in range(1, 5)]
    assert shares == pytest.approx([0.45, 0.4, 0.2, 0.15])


def test_official_course_of_a_class_ends_at_18_percent():
    """963 forget and 8,506 retain pictures in batches of 8, 5 epochs: r ends at R / (E (F + R))."""
    forget, retain = 121, 1064
    assert official_share(1.0, 5 * forget, 5 * forget, (forget, retain)) == pytest.approx(0.18, abs=5e-4)
