"""Taking and putting the weights that a mask selects, on a GPU: one pass over the tensor by the mask's own bits.

    take:  out[r(p)] = flat[p]      put:  flat[p] = values[r(p)]      for every p with m[p] = 1

where r(p) = Σ_{q<p} m[q], the number of selected positions before p. Each program of the kernel has `BLOCK`
positions: r at its first one is kept, the rest is a sum within the block. So a step reads and writes each weight once,
and no index of 4 or 8 bytes a weight is made. With torch's own operations (unpacked flags, `nonzero_static`,
`index_select`) gathering and scattering the weights of Stable Diffusion 1.x took longer than the whole forward and
backward pass in bf16 on an H200 (docs/costs.md).
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from salun_diffusers.errors import one_line, tell
from salun_diffusers.masks.packed_bits import ones_before, pack

BLOCK = 1024
"""Positions of one program; a multiple of 8."""


# Triton looks up the names that annotations of a kernel use, and knows `tl` alone.
@triton.jit  # type: ignore[untyped-decorator]
def _take(flat, packed, starts, out, size, block: tl.constexpr):  # type: ignore[no-untyped-def]
    program = tl.program_id(0)
    places = program * block + tl.arange(0, block)
    inside = places < size
    bits = (tl.load(packed + places // 8, mask=inside, other=0).to(tl.int32) >> (places % 8)) & 1
    ranks = tl.load(starts + program) + tl.cumsum(bits, 0) - bits
    tl.store(out + ranks, tl.load(flat + places, mask=bits == 1), mask=bits == 1)


@triton.jit  # type: ignore[untyped-decorator]
def _put(flat, packed, starts, values, size, block: tl.constexpr):  # type: ignore[no-untyped-def]
    program = tl.program_id(0)
    places = program * block + tl.arange(0, block)
    inside = places < size
    bits = (tl.load(packed + places // 8, mask=inside, other=0).to(tl.int32) >> (places % 8)) & 1
    ranks = tl.load(starts + program) + tl.cumsum(bits, 0) - bits
    tl.store(flat + places, tl.load(values + ranks, mask=bits == 1), mask=bits == 1)


class BitKernels:
    """The selected positions of one tensor as bits, and a number for every `BLOCK` of them.

    Args:
        packed: The mask's bytes, on the CPU.
        selected: How many bits are set.
        device: Of the weights.
    """

    def __init__(self, packed: Tensor, selected: int, device: torch.device) -> None:
        self._packed, self._starts = packed.to(device), ones_before(packed, BLOCK // 8).to(device)
        self._selected = selected

    def take(self, flat: Tensor) -> Tensor:
        """flat[m]."""
        out = flat.new_empty(self._selected)
        with _on_the_device_of(flat):
            _take[(len(self._starts),)](flat, self._packed, self._starts, out, len(flat), BLOCK)
        return out

    def put(self, flat: Tensor, values: Tensor) -> None:
        """flat[m] ← values."""
        with _on_the_device_of(flat):
            _put[(len(self._starts),)](flat, self._packed, self._starts, values.contiguous(), len(flat), BLOCK)


def _on_the_device_of(flat: Tensor) -> Any:
    """Kernels start on torch's current device, which need not be that of the weights."""
    return torch.cuda.device(flat.device) if flat.is_cuda else nullcontext()


@cache
def kernels_run(device: torch.device) -> bool:
    """Whether a take and a put on this device do what they say: a machine can lack the compiler that starts them."""
    flags = torch.arange(2 * BLOCK + 5) % 3 == 0
    flat = torch.arange(len(flags), dtype=torch.float32, device=device)
    expected = torch.where(flags, -1.0, torch.arange(len(flags)).float())
    try:
        places = BitKernels(pack(flags), int(flags.sum()), device)
        taken = places.take(flat).cpu()
        places.put(flat, torch.full((int(flags.sum()),), -1.0, device=device))
        put = flat.cpu()
    except Exception as error:  # Whatever is missing, there is another way.
        tell(
            "note", f"Triton runs no kernel on {device} ({one_line(error, 160)}); taking and putting weights is slower."
        )
        return False
    return torch.equal(taken, torch.arange(len(flags)).float()[flags]) and torch.equal(put, expected)
