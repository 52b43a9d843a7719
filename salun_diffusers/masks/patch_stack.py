"""Two patches as one: which weights both of them claim, and the patch that does what both do, in one go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from salun_diffusers.errors import UserError
from salun_diffusers.masks.packed_bits import count_ones, pack, unpack
from salun_diffusers.masks.patch import UNKNOWN, WeightPatch

Order: TypeAlias = Literal["refuse", "first", "last"]
"""Who decides of weights that two patches claim: nobody, the first of them, or the last."""


def claimed_by_both(first: WeightPatch, second: WeightPatch) -> dict[str, int]:
    """How many weights of each tensor two patches of one model move, the most first.

    Raises:
        UserError: If they are not of one model.
    """
    for name in first.places.keys() & second.places.keys():
        ours, theirs = ((one.places[name].shape, one.changes[name].dtype) for one in (first, second))
        if ours != theirs:
            raise UserError(
                f"Patches of one model are required; {name} has another size or data type in the second than in the "
                "first."
            )
    shared = {
        name: count_ones(bits & second.places[name]) for name, bits in first.places.items() if name in second.places
    }
    return {name: count for name, count in sorted(shared.items(), key=lambda row: (-row[1], row[0])) if count}


def is_continued(first: WeightPatch, second: WeightPatch) -> bool:
    """Whether the second patch goes on where the first one ends."""
    return first.erased_sha256 == second.base_sha256 != first.base_sha256


def stacked(first: WeightPatch, second: WeightPatch, order: Order = "refuse") -> WeightPatch:
    """Put two patches together: base + result does what both do, and result undoes it, bit for bit.

    Of two patches of one base each weight gets the value that the patch gives it which claims it; where both do,
    `order` says whose. A patch that was made of what the first one makes goes on from there: it is the last word on
    every weight, and the hash of its result is known.

    Args:
        first: A patch.
        second: One of the same base, or of what the first one makes.
        order: Whose value a weight gets that both claim, if they are of the same base.

    Raises:
        UserError: If they belong to different bases, or claim weights in common and nobody shall decide.
    """
    shared = claimed_by_both(first, second)
    continued = is_continued(first, second)
    require_one_base(first, second)
    if not continued and shared and order == "refuse":
        raise UserError(
            f"Both patches claim {sum(shared.values()):,} weights, in {_most(shared)}. Say whose they are: --order "
            "first or --order last; or erase the second concept from what the first erasure left and stack that."
        )
    places, changes = {}, {}
    for name in dict.fromkeys((*first.places, *second.places)):
        change = _combined(_spread(first, name), _spread(second, name), continued, order)
        if change.any():
            places[name], changes[name] = pack(change != 0), change[change != 0]
    return WeightPatch(
        places,
        changes,
        first.base_sha256,
        second.erased_sha256 if continued else UNKNOWN,
        {**second.layout, **first.layout},
        _joined(first.about, second.about),
    )


def _combined(first: Tensor | None, second: Tensor | None, continued: bool, order: Order) -> Tensor:
    """The changes of one tensor; a change of zero bits is none."""
    if first is None or second is None:
        return second if first is None else first  # type: ignore[return-value]  # One of them names the tensor.
    if continued:
        return first ^ second
    stronger, weaker = (first, second) if order == "first" else (second, first)
    return torch.where(stronger != 0, stronger, weaker)


def _spread(patch: WeightPatch, name: str) -> Tensor | None:
    """The changes of a tensor at their places, zero elsewhere."""
    if name not in patch.places:
        return None
    bits, values = patch.places[name], patch.changes[name]
    flags = unpack(bits, torch.Size([8 * bits.numel()]))
    spread = torch.zeros(flags.shape, dtype=values.dtype)
    spread[flags] = values
    return spread


def require_one_base(first: WeightPatch, second: WeightPatch) -> None:
    """Refuse patches that have nothing to do with each other: what both claim are not the same weights.

    Raises:
        UserError: If neither both are of one base, nor the second of what the first makes.
    """
    if first.base_sha256 == second.base_sha256 or is_continued(first, second):
        return
    if is_continued(second, first):
        raise UserError("The first patch goes on where the second one ends: give them in the other order.")
    raise UserError(
        f"Patches of one base are required: the first is for weights with SHA-256 {first.base_sha256[:16]}…, the "
        f"second for {second.base_sha256[:16]}…."
    )


def _joined(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    names = dict.fromkeys((*first, *second))
    told = {name: [one[name] for one in (first, second) if name in one] for name in names}
    return {name: " + ".join(dict.fromkeys(values)) for name, values in told.items()}


def _most(shared: Mapping[str, int]) -> str:
    """The tensors with the most of them, and how many others there are."""
    named = ", ".join(f"{name} ({count:,})" for name, count in [*shared.items()][:3])
    return named + (f" and {len(shared) - 3} other tensors" if len(shared) > 3 else "")
