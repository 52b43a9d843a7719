"""Patches in words: what one is and where it acts, and what two of them claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from salun_diffusers.masks.packed_bits import count_ones
from salun_diffusers.masks.patch import UNKNOWN, WeightPatch
from salun_diffusers.masks.patch_stack import claimed_by_both, is_continued, require_one_base
from salun_diffusers.masks.receipt import block_of

_WIDTHS = {1: "8 bits", 2: "16 bits", 4: "32 bits", 8: "64 bits"}


def account(patch: WeightPatch, file: Path) -> str:
    """What a patch is: its base, its size, and how many weights of each block it moves.

    Args:
        patch: The patch.
        file: Where it lies.
    """
    about = {name: value for name, value in patch.about.items() if name not in ("concept", "base")}
    whole = sum(size for _, size in patch.layout.values())
    moved = f"{patch.number_moved:,}" + (f" of {whole:,} ({patch.number_moved / whole:.2%})" if whole else "")
    tensors = f"{len(patch.places):,}" + (f" of {len(patch.layout):,}" if patch.layout else "")
    erased = patch.erased_sha256 if patch.erased_sha256 != UNKNOWN else "as the patches give it, put together"
    rows = {
        "file": f"{file}, {file.stat().st_size:,} bytes",
        "concept": patch.about.get("concept", "not recorded"),
        "made of": patch.about.get("base", "not recorded"),
        **about,
        "base sha256": patch.base_sha256,
        "erased sha256": erased,
        "data type": _dtypes(patch),
        "tensors changed": tensors,
        "weights moved": moved,
    }
    lines = [f"{name:<15}  {value}" for name, value in rows.items()]
    return "\n".join([*lines, "", *_blocks(patch), ""])


def account_of_two(first: WeightPatch, second: WeightPatch) -> str:
    """What each of two patches claims, and what both do, tensor by tensor.

    Raises:
        UserError: If they belong to different bases.
    """
    require_one_base(first, second)
    shared = claimed_by_both(first, second)
    lines = [
        f"{which} patch: {patch.number_moved:,} weights in {len(patch.places):,} tensors"
        for which, patch in (("first", first), ("second", second))
    ]
    lines.append(f"both claim:   {sum(shared.values()):,} weights in {len(shared):,} tensors")
    lines += [f"{count:>14,}  {name}" for name, count in shared.items()]
    if is_continued(first, second):
        lines.append("The second goes on where the first ends: it has the last word on every weight.")
    return "\n".join([*lines, ""])


def _dtypes(patch: WeightPatch) -> str:
    """The data types of the tensors that change; of an older file their widths."""
    if patch.layout:
        return ", ".join(sorted({patch.layout[name][0] for name in patch.places})) or "none"
    return ", ".join(sorted({_WIDTHS[change.element_size()] for change in patch.changes.values()})) or "none"


def _blocks(patch: WeightPatch) -> list[str]:
    """A line per block."""
    moved: Counter[str] = Counter()
    for name, bits in patch.places.items():
        moved[block_of(name)] += count_ones(bits)
    sizes: Counter[str] = Counter()
    for name, (_, size) in patch.layout.items():
        sizes[block_of(name)] += size
    blocks = list(sizes) if sizes else list(moved)
    width = max(map(len, blocks), default=0)
    return [f"{block:<{width}}  {moved[block]:>13,} moved" + _density(moved, sizes, block) for block in blocks]


def _density(moved: Mapping[str, int], sizes: Mapping[str, int], block: str) -> str:
    return f" of {sizes[block]:>13,}  {moved[block] / sizes[block]:7.2%}" if sizes.get(block) else ""
