"""A change of low rank: ΔW = B·A of linear layers and convolutions, which is what a LoRA holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn


@final
@dataclass(frozen=True, eq=False)
class Factors:
    """One layer's change, ΔW = B·A; of a convolution A has its kernel and B is 1 × 1, as PEFT has them.

    Args:
        down: A, `(r, in)` or `(r, in, height, width)`.
        up: B, `(out, r)` or `(out, r, 1, 1)`.
    """

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        """r."""
        return int(self.down.shape[0])

    def change(self) -> Tensor:
        """ΔW in the layer's shape, in float32."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return product.reshape(self.up.shape[0], *self.down.shape[1:])

    def to(self, dtype: torch.dtype) -> Factors:
        """The same in another data type, on the CPU."""
        return Factors(*(one.detach().to("cpu", dtype).contiguous() for one in (self.down, self.up)))


@final
class LowRank(Mapping[str, Factors]):
    """The changes of some layers, by the layer's name; at full strength they are added as they are.

    No scale lies beside them: whoever reads α/r for it finds α = r.
    """

    def __init__(self, layers: Mapping[str, Factors]) -> None:
        """Take over the layers."""
        self._layers = dict(layers)

    def __getitem__(self, name: str) -> Factors:
        return self._layers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def number_of_parameters(self) -> int:
        """Entries of all A and B."""
        return sum(one.down.numel() + one.up.numel() for one in self._layers.values())

    @property
    def rank(self) -> int:
        """The rank that most layers have, of several the largest; 0 of none."""
        ranks = [one.rank for one in self._layers.values()]
        return max(ranks, key=lambda rank: (ranks.count(rank), rank), default=0)

    def to(self, dtype: torch.dtype) -> LowRank:
        """The same in another data type, on the CPU."""
        return LowRank({name: one.to(dtype) for name, one in self._layers.items()})


def layers_of(network: nn.Module) -> dict[str, torch.Size]:
    """Names of the layers that a LoRA can change, with the shapes of their weights: linear, and convolutions of one
    group."""
    found = {}
    for name, module in network.named_modules():
        ungrouped: Any = module
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and ungrouped.groups == 1):
            found[name] = module.weight.shape
    return found


def cost(shape: torch.Size) -> int:
    """Parameters of A and B per rank: out + in · height · width."""
    return int(shape[0] + shape[1:].numel())


def highest_rank(shape: torch.Size) -> int:
    """The rank at which every change of such a weight can be told: min(out, in · height · width)."""
    return int(min(shape[0], shape[1:].numel()))


def truncated(change: Tensor, rank: int) -> Factors:
    """The closest change of some rank: of ΔW = U·Σ·Vᵀ the largest singular values (Eckart and Young, 1936).

        B = U_r √Σ_r        A = √Σ_r V_rᵀ        ‖ΔW - B·A‖² = Σ_{i>r} σ_i²

    U_r are eigenvectors of ΔW·ΔWᵀ (of ΔWᵀ·ΔW, where that is smaller), in float64: of a convolution of 1280 × 11520 half
    a second instead of many.

    Args:
        change: ΔW, `(out, in)` or `(out, in, height, width)`.
        rank: r; no more than the smaller side are kept.

    Returns:
        Factors in float32.
    """
    matrix = change.detach().to("cpu", torch.float64).flatten(1)
    kept = min(rank, *matrix.shape)
    wide = matrix.shape[0] <= matrix.shape[1]
    side = matrix if wide else matrix.T
    squares, vectors = torch.linalg.eigh(side @ side.T)
    largest = vectors[:, -kept:].flip(1)
    roots = squares[-kept:].flip(0).clamp(min=0).sqrt().sqrt()
    one = largest * roots
    other = torch.where(roots > 0, 1 / roots, 0.0)[:, None] * (largest.T @ side)
    up, down = (one, other) if wide else (other.T, one.T)
    ones = (1,) * (change.dim() - 2)
    return Factors(
        down.reshape(kept, *change.shape[1:]).float().contiguous(), up.reshape(-1, kept, *ones).float().contiguous()
    )
