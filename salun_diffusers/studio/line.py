"""The line from the base to an erased model, walked in the network that draws: θ(s) = θ₀ + s·(θ - θ₀)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from salun_diffusers.errors import UserError
from salun_diffusers.files.stored_weights import bit_patterns, stored_weights

STRONGEST = 1.5
"""Beyond 1 the line goes on past the erased weights."""


def walk(network: nn.Module, base: tuple[Path, str | None], erased: tuple[Path, str | None], strength: float) -> None:
    """Put a network to θ₀ + s·(θ - θ₀).

    The ends are as their files have them, bit for bit, and so is every weight in which they agree. The weights are read
    anew each time: no second copy of a network stays in memory (task arithmetic, Ilharco et al., arXiv 2212.04089).

    Args:
        network: What draws; on any device, in any data type.
        base: Component folder of θ₀ and variant of its files.
        erased: The same of θ.
        strength: s, from 0 for the base to 1 for the erased model, and on to `STRONGEST`.

    Raises:
        UserError: If the strength is outside, or the files hold a tensor that the network has not.
    """
    if not 0 <= strength <= STRONGEST:
        raise UserError(f"The strength must be at least 0 and at most {STRONGEST}, got {strength:g}.")
    own = network.state_dict()
    before = dict(stored_weights(*base)) if strength != 1 else {}
    after = dict(stored_weights(*erased)) if strength != 0 else before
    with torch.no_grad():
        for name, new in after.items():
            if name not in own or own[name].shape != new.shape:
                raise UserError(f"{erased[0]} holds {name} {tuple(new.shape)}, which the network that draws has not.")
            own[name].copy_(new if strength in (0, 1) else _between(before[name], new, strength))


def _between(old: torch.Tensor, new: torch.Tensor, strength: float) -> torch.Tensor:
    """A place on the line of one tensor, in fp32."""
    if not new.is_floating_point():
        return new
    same = bit_patterns(old.to(new.dtype)) == bit_patterns(new)
    return torch.where(same, old.float(), torch.lerp(old.float(), new.float(), strength))
