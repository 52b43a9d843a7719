"""SalUn-soft: instead of a fixed mask, all but the largest changes are taken back after every step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from salun_diffusers.errors import UserError
from salun_diffusers.masks.threshold import largest


@torch.no_grad()
def soft_threshold_(weights: Sequence[Tensor], reference: Sequence[Tensor], share: float, *, others: int = 0) -> float:
    """Shrink every change against `reference` by the size of the r-th smallest one, in place.

        d = θ - θ_ref,   t = the r-th smallest |d|,   r = max(0, int(share · (N + N′)) - N′)
        θ ← θ_ref + sign(d) · max(|d| - t, 0)

    This is the proximal step of t · ‖θ - θ_ref‖₁; r weights at least are exactly `reference` again. With r = 0 nothing
    changes. The rule is that of OPTML-Group/Unlearn-Saliency@a6e89fd, Classification/unlearn/RL_pro.py, with N′ = 0;
    SD/train-scripts/proximal_gradient.py there also counts N′ weights that never move, the VAE's and the text
    encoder's, among the smallest changes, so that a share of 0.5 takes back 38 % of the U-Net.

    Differs from the official code: t is found by counting, without joining or sorting all changes.

    Args:
        weights: θ: float32 tensors of any shape, for example ``SelectedWeights.weights``.
        reference: θ_ref: as many tensors of the same shapes.
        share: The share of the weights to take back, in [0, 1].
        others: N′, weights that never move and count as well.

    Returns:
        The threshold t.

    Raises:
        UserError: If `share` is outside [0, 1], or numbers or shapes of the tensors differ.
    """
    if not 0 <= share <= 1:
        raise UserError(f"share must lie in [0, 1], got {share}; 0.5 takes back the smaller half of the changes.")
    if [tensor.shape for tensor in weights] != [tensor.shape for tensor in reference]:
        raise UserError("soft_threshold_ needs one reference tensor of the same shape for every tensor of weights.")
    changes = [now - then for now, then in zip(weights, reference, strict=True)]
    total = sum(change.numel() for change in changes)
    taken_back = int(share * (total + others)) - others
    if taken_back <= 0:
        return 0.0
    sizes = [change.abs().to("cpu", torch.float32) for change in changes]
    bits, _ = largest(sizes, total - taken_back + 1)  # The r-th smallest is the (N - r + 1)-th largest.
    threshold = torch.tensor(bits, dtype=torch.int32).view(torch.float32).item()
    for now, then, change in zip(weights, reference, changes, strict=True):
        kept = change.abs() > threshold
        # Where nothing is kept, the reference is copied: adding a zero change could round.
        now.copy_(torch.where(kept, now - threshold * change.sign(), then))
    return threshold


def falling_share(start: float, step: float, steps: float) -> float:
    """The share to take back after `step` of `steps` steps: from near `start` linearly down to 0 at the last one."""
    return start * (1 - step / steps)


def official_share(start: float, step: int, steps: int, batches: tuple[int, int]) -> float:
    """The share after a step as OPTML-Group/Unlearn-Saliency@a6e89fd has it, SD/train-scripts/proximal_gradient.py.

        start · (1 - s/S),   S = E (F + R),   s = e (F + R) + i + 1      in step i of epoch e, both from 0

    An epoch has F steps and counts as F + R: the share jumps between epochs, and ends above 0, at start · R / S.

    Args:
        start: The share at the start.
        step: Steps done.
        steps: Steps in all; E are the epochs that they fill, the last one perhaps not whole.
        batches: F and R, batches that the forget and the retain set have.
    """
    forget, retain = batches
    epochs = -(-steps // forget)
    epoch, within = divmod(step - 1, forget)
    return start * (1 - (epoch * (forget + retain) + within + 1) / (epochs * (forget + retain)))
