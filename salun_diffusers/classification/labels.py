"""Labels that are not the true ones."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from salun_diffusers.errors import UserError


def random_labels(
    labels: Tensor, num_classes: int, generator: torch.Generator, draw: Literal["other", "any"] = "other"
) -> Tensor:
    """Draw a label for each picture.

        other:  r ~ U{0 … C-2},  y′ = r + 1[r ≥ y]       uniform over the classes that are not y
        any:    y′ ~ U{0 … C-1}

    SalUn's loss has y′ ≠ y (arXiv 2310.12508).

    Differs from the official code: ``any`` is what OPTML-Group/Unlearn-Saliency@a6e89fd does (Classification/unlearn/
    RL.py); there one label in C is the true one.

    Args:
        labels: y, `(n,)`.
        num_classes: C, at least 2.
        generator: On the CPU.
        draw: Which rule.

    Returns:
        y′, `(n,)` int64, on the device of `labels`.

    Raises:
        UserError: If there is only one class.
    """
    if num_classes < 2:
        raise UserError(f"Another label needs at least 2 classes, got {num_classes}.")
    if draw == "any":
        return torch.randint(num_classes, labels.shape, generator=generator).to(labels.device)
    other = torch.randint(num_classes - 1, labels.shape, generator=generator).to(labels.device)
    return other + (other >= labels).long()
