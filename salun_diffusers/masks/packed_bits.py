"""Booleans as bits: eight to a byte, the first one lowest (the layout of ``numpy.packbits(bitorder="little")``)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_ONES_IN_BYTE = np.array([byte.bit_count() for byte in range(256)], dtype=np.uint8)


def bytes_for(size: int) -> int:
    """Return how many bytes hold `size` bits."""
    return (size + 7) // 8


def pack(flags: Tensor) -> Tensor:
    """Pack a bool tensor of any shape into `(ceil(size / 8),)` bytes; unused high bits of the last byte are 0."""
    return torch.from_numpy(np.packbits(flags.reshape(-1).numpy(), bitorder="little"))


def unpack(packed: Tensor, shape: torch.Size) -> Tensor:
    """Undo `pack`: return the bool tensor of `shape`."""
    flags = np.unpackbits(packed.numpy(), bitorder="little", count=shape.numel())
    return torch.from_numpy(flags).view(torch.bool).reshape(shape)


def count_ones(packed: Tensor) -> int:
    """Count the bits that are set."""
    return int(_ONES_IN_BYTE[packed.numpy()].sum(dtype=np.int64))


def ones_before(packed: Tensor, block: int) -> Tensor:
    """Count the bits that are set before each block of so many bytes, as int32."""
    ones = _ONES_IN_BYTE[packed.numpy()].astype(np.int64)
    each = np.add.reduceat(ones, np.arange(0, len(ones), block))
    return torch.from_numpy((np.cumsum(each) - each).astype(np.int32))


def padding(packed: Tensor, size: int) -> int:
    """Return the bits of the last byte beyond `size`, as a number: 0 for anything `pack` made."""
    used = size % 8
    return int(packed[-1]) >> used if used else 0


def invert(packed: Tensor, size: int) -> Tensor:
    """Flip `size` bits and leave the padding 0."""
    flipped = torch.bitwise_not(packed)
    if size % 8:
        flipped[-1] &= (1 << size % 8) - 1
    return flipped
