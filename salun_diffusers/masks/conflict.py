"""Two gradients of the selected weights, of which one must not undo the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def without_conflict(forget: Sequence[Tensor], retain: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of forgetting without the part of it that works against retaining.

        g_f - min(0, ⟨g_f, g_r⟩) / ‖g_r‖² · g_r

    over all tensors together. Where the two do not conflict, or nothing is retained, g_f is what it was.

    Source: the projection of PCGrad (arXiv 2001.06782), applied to one side only as in AEGIS (arXiv 2602.06771).

    Args:
        forget: g_f, one tensor per leaf.
        retain: g_r, in the same order and shapes.

    Example:
        >>> without_conflict([torch.tensor([1.0, -1.0])], [torch.tensor([0.0, 2.0])])
        [tensor([1., 0.])]
    """
    product = torch.stack([(one * other).sum() for one, other in zip(forget, retain, strict=True)]).sum()
    square = torch.stack([one.square().sum() for one in retain]).sum()
    # No branch on values: a GPU would have to be waited for. 0/0 is no conflict.
    share = torch.where(product < 0, product / square, torch.zeros_like(product))
    return [one - share * other for one, other in zip(forget, retain, strict=True)]
