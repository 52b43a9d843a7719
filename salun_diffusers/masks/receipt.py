"""The mask receipt: does an erased pipeline differ from its base only where the mask allows it?"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from salun_diffusers.errors import UserError
from salun_diffusers.files.base_card import CARD, KEPT, is_card
from salun_diffusers.files.component_files import parts_listing, pipeline_files, unreadable_parts, weight_files
from salun_diffusers.files.pipeline_copy import index_without, kept_files
from salun_diffusers.files.pipeline_folder import OWN_CODE, components, denoiser_folder, model_index
from salun_diffusers.files.stored_weights import bit_patterns, stored_weights
from salun_diffusers.masks.mask import SaliencyMask


@dataclass(frozen=True)
class BlockChange:
    """What happened in one block of a network; `selected` and `moved` count weights."""

    block: str
    weights: int
    selected: int
    moved: int


@dataclass(frozen=True)
class MaskReceipt:
    """Outcome of the comparison.

    Args:
        weights: Weights of the network.
        selected: Weights that the mask lets move.
        moved: Weights that differ from the base.
        violations: Weights that differ although the mask freezes them.
        first_violation: Name of the first tensor with a violation, or empty.
        changed_files: Files beside the network's that differ from the base's.
        blocks: The same counts per block.
    """

    weights: int
    selected: int
    moved: int
    violations: int
    first_violation: str
    changed_files: tuple[str, ...]
    blocks: tuple[BlockChange, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing moved that must not move."""
        return self.violations == 0 and not self.changed_files

    def sentence(self) -> str:
        """The receipt in words."""
        if self.holds:
            return (
                f"{self.moved:,} of {self.selected:,} selected weights moved; the other "
                f"{self.weights - self.selected:,} are bit-identical to the base."
            )
        if self.violations:
            where = self.first_violation
            return f"{self.violations:,} weights outside the mask differ from the base, the first in {where}."
        return f"Files beside the denoiser differ from the base: {', '.join(self.changed_files)}."

    def to_json(self) -> dict[str, object]:
        """Plain values for `report.json`."""
        return asdict(self)


def block_of(name: str) -> str:
    """The block that a parameter belongs to: ``down_blocks.0``, ``mid_block``, ``conv_in`` …

    >>> block_of("up_blocks.1.attentions.0.proj_in.weight"), block_of("conv_in.bias")
    ('up_blocks.1', 'conv_in')
    """
    parts = name.split(".")
    return ".".join(parts[:2]) if len(parts) > 1 and parts[1].isdigit() else parts[0]


def count_moves(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    mask: Mapping[str, Tensor],
    block: Callable[[str], str] = block_of,
) -> MaskReceipt:
    """Compare weights with those they come from, bit for bit.

    Args:
        before: Weights by name, in the order of the blocks; rounded to the data type of `after` first.
        after: Weights of the same names and shapes.
        mask: Which weights were allowed to move; none of a tensor that it does not name.
        block: Name of a weight → the block that it is counted in.
    """
    counts: dict[str, list[int]] = {}
    violations, first = 0, ""
    for name, old in before.items():
        new = after[name]
        moved = bit_patterns(old.to(new.dtype)) != bit_patterns(new)
        allowed = mask[name] if name in mask else torch.zeros_like(moved)
        wrong = int((moved & ~allowed).sum())
        first = first or (name if wrong else "")
        violations += wrong
        row = counts.setdefault(block(name), [0, 0, 0])
        for column, count in enumerate((moved.numel(), int(allowed.sum()), int(moved.sum()))):
            row[column] += count
    blocks = tuple(BlockChange(block_name, *row) for block_name, row in counts.items())
    weights, selected, moves = (sum(column) for column in zip(*counts.values(), strict=True))
    return MaskReceipt(
        weights=weights,
        selected=selected,
        moved=moves,
        violations=violations,
        first_violation=first,
        changed_files=(),
        blocks=blocks,
    )


def compare(
    base: Path, erased: Path, mask: SaliencyMask, variants: tuple[str | None, str | None] = (None, None)
) -> MaskReceipt:
    """Compare an erased pipeline folder with its base, weight by weight and file by file.

    A base stored in another data type is compared after rounding to the erased one's.

    Args:
        base: The base.
        erased: What was made of it.
        mask: Which weights were allowed to move.
        variants: Variant of the base's weight files, and of the erased one's.

    Raises:
        UserError: If a folder is no pipeline, or mask and denoiser do not belong together.
    """
    index = model_index(base)
    model_index(erased)
    denoiser = denoiser_folder(index, base)
    before, after = (dict(stored_weights(f / denoiser, v)) for f, v in zip((base, erased), variants, strict=True))
    for name in mask:
        for where, tensors in ((base, before), (erased, after)):
            if name not in tensors:
                raise UserError(
                    f"The mask names {name}, which {where / denoiser} does not have: they do not belong together."
                )
            if tuple(tensors[name].shape) != tuple(mask.shapes[name]):
                raise UserError(
                    f"{name} has shape {tuple(mask.shapes[name])} in the mask and "
                    f"{tuple(tensors[name].shape)} in {where / denoiser}: they do not belong together."
                )
    if first := next(iter(sorted(before.keys() ^ after.keys())), ""):
        lacking, having = (erased, base) if first in before else (base, erased)
        raise UserError(f"{lacking / denoiser} lacks {first}, which {having / denoiser} has: they are not one model.")
    for name, old in before.items():
        if old.shape != after[name].shape:
            raise UserError(
                f"{name} has shape {tuple(old.shape)} in {base / denoiser} and {tuple(after[name].shape)} in "
                f"{erased / denoiser}: they are not one model."
            )
    changed = tuple(_changed_files(base, erased, variants))
    return dataclasses.replace(count_moves(before, after, mask), changed_files=changed)


def _changed_files(base: Path, erased: Path, variants: tuple[str | None, str | None]) -> Iterator[str]:
    """What is not as it must be beside the denoiser's weights: changed, missing and added files, links.

    Named exceptions: a README beside the components may be written anew and the base's kept under its own name there
    (`files/base_card.py`), and optional parts that could not be loaded without a pickle may be entered as absent in
    `model_index.json`.
    """
    denoiser, absent = denoiser_folder(model_index(base), base), unreadable_parts(base, variants[0])
    read = {path.name for path in weight_files(erased / denoiser, variants[1])}
    if listing := parts_listing(erased / denoiser, variants[1]):
        read.add(listing.name)
    weights = {f"{denoiser}/{name}" for name in read}
    ours = {file.name: file.path for file in kept_files(pipeline_files(base), denoiser, absent)}
    theirs = {file.name: file.path for file in pipeline_files(erased) if file.name not in weights}
    for component in components(model_index(erased)):
        if (erased / component).is_symlink():
            yield f"{component} (a link)"
    for name in sorted({*ours, *theirs}):
        if is_card(name):
            kept = ours.get(name.removeprefix(KEPT))  # The hub's cache may lack it.
            if name in theirs and name != CARD and kept and _digest(kept) != _digest(theirs[name]):
                yield f"{name} (not the base's)"
        elif name not in theirs:
            yield f"{name} (missing)"
        elif name not in ours:
            yield f"{name} (added)"
        elif name == "model_index.json" and absent:
            if theirs[name].read_text(encoding="utf-8") != index_without(base, absent):
                yield f"{name} (changed)"
        elif _digest(theirs[name]) not in (
            _digest(ours[name]),
            *([_digest(OWN_CODE)] if name == OWN_CODE.name else []),
        ):
            yield f"{name} (changed)"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
