"""What this process holds of a tensor: all of it, or its rows of one that FSDP2 has shared out (a DTensor)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from salun_diffusers.errors import UserError


def held(tensor: Tensor) -> Tensor:
    """The entries that this process holds, `(number held,)`: a view, without history."""
    local: Any = tensor.detach()
    flat: Tensor = (local.to_local() if hasattr(local, "to_local") else local).reshape(-1)
    return flat


def held_range(name: str, tensor: Any) -> range:
    """Which of a tensor's entries, counted as if it lay in one piece, this process holds.

    FSDP2 gives each of n processes ⌈rows / n⌉ rows of the first dimension, as long as there are any.

    Raises:
        UserError: If it is shared out in another way.
    """
    if not hasattr(tensor, "to_local"):
        return range(tensor.numel())
    placement, mesh = tensor.placements[0], tensor.device_mesh
    if len(tensor.placements) != 1 or not placement.is_shard(0):
        raise UserError(
            f"{name} must be whole or shared out by its first dimension (FSDP2 on one axis), got {tensor.placements}."
        )
    rows = tensor.shape[0]
    each = -(-rows // mesh.size())
    first = min(mesh.get_local_rank() * each, rows)
    size = tensor.numel() // max(1, rows)
    found = range(first * size, min(first + each, rows) * size)
    if len(found) != held(tensor).numel():
        raise UserError(f"{name} must be cut evenly by rows, this process holds {held(tensor).numel()} entries of it.")
    return found
