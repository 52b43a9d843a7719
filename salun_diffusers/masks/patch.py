"""What an erasure changed, as a file of its own: base + patch = erased, erased - patch = base, bit for bit.

A patch holds, for each weight that moved, the exclusive or of its bits before and after. It knows the SHA-256 of both
sets of weights and refuses any other. Whoever has it can bring the concept back: publish it only if that is meant.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.component_files import parts_listing, weight_files
from salun_diffusers.files.pipeline_copy import copy_with_denoiser
from salun_diffusers.files.pipeline_folder import denoiser_folder, model_index
from salun_diffusers.files.stored_weights import bit_patterns, stored_weights, weights_sha256, write_tensors
from salun_diffusers.files.whole_files import check_whole
from salun_diffusers.masks.packed_bits import bytes_for, count_ones, pack, padding, unpack
from salun_diffusers.masks.patch_header import Layout, about_of, layout_of, texts_of

FORMAT, VERSION = "salun_diffusers.patch", "2"  # Version 1 had no hash over its contents.
UNKNOWN = ""
"""The hash of weights that nobody has seen: those that several patches lead to, put together."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class WeightPatch:
    """The weights that differ between two models of one shape.

    Args:
        places: One bit per weight of each changed tensor: where it moved, packed as `packed_bits.pack` does.
        changes: Exclusive or of the bits before and after at those places, in order.
        base_sha256: `weights_sha256` of all weights before.
        erased_sha256: The same after, or `UNKNOWN`.
        layout: Data type and number of weights of every tensor of the model, moved or not; empty in older files.
        about: What the change is, in words, such as ``concept`` and ``base``.

    Example:
        >>> import torch
        >>> base, erased = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([1.0, 3.0])}
        >>> patch = WeightPatch.between(base, erased)
        >>> patch.number_moved, patch.apply(base)["w"].tolist(), patch.revert(erased)["w"].tolist()
        (1, [1.0, 3.0], [1.0, 2.0])
    """

    places: Mapping[str, Tensor]
    changes: Mapping[str, Tensor]
    base_sha256: str
    erased_sha256: str
    layout: Layout = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def between(cls, base: Mapping[str, Tensor], erased: Mapping[str, Tensor]) -> WeightPatch:
        """Compare two sets of weights.

        Raises:
            UserError: If names, shapes or data types differ.
        """
        if names := sorted(base.keys() ^ erased.keys()):
            raise UserError(f"A patch needs two models of one kind; only one of them has {names[0]}.")
        places, changes = {}, {}
        for name, old in base.items():
            new = erased[name]
            if (old.shape, old.dtype) != (new.shape, new.dtype):
                raise UserError(
                    f"A patch needs equal shapes and data types; {name} is {old.dtype} {tuple(old.shape)} in the base "
                    f"and {new.dtype} {tuple(new.shape)} in the erased model (--save_dtype base keeps the type)."
                )
            change = (bit_patterns(old) ^ bit_patterns(new)).flatten()
            if change.any():
                places[name], changes[name] = pack(change != 0), change[change != 0]
        return cls(places, changes, weights_sha256(base), weights_sha256(erased), _layout(base))

    @property
    def number_moved(self) -> int:
        """How many weights differ."""
        return sum(map(count_ones, self.places.values()))

    def apply(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The erased weights of the base's.

        Raises:
            UserError: If these are not the base's.
        """
        self._require(weights, "base", self.base_sha256)
        erased = self._flipped(weights)
        if self.erased_sha256 != UNKNOWN:
            self._require_promised(erased, self.erased_sha256)
        return erased

    def revert(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The base's weights of the erased ones.

        Raises:
            UserError: If these are not the erased ones.
        """
        if self.erased_sha256 != UNKNOWN:
            self._require(weights, "erased", self.erased_sha256)
            base = self._flipped(weights)
            self._require_promised(base, self.base_sha256)
            return base
        # Flipping twice changes nothing: what flips to the base is what the base flips to.
        base = self._flipped(weights) if self.layout in ({}, _layout(weights)) else {}
        if weights_sha256(base) != self.base_sha256:
            raise UserError(
                "The patch needs the weights that it makes of the base; these are "
                f"{'the base itself' if weights_sha256(weights) == self.base_sha256 else self._strangers(weights)}."
            )
        return base

    def scaled(self, weights: Mapping[str, Tensor], strength: float) -> dict[str, Tensor]:
        """Go a part of the way to the erased weights, or beyond: θ(s) = θ₀ + s·(θ - θ₀), on the weights that moved.

        The sum is taken in float32 (float64 for such weights) and rounded once; s = 0 and s = 1 give both ends to the
        bit. Other results have a hash of their own, so `revert` does not take them.

        Args:
            weights: The base's, θ₀.
            strength: s.

        Raises:
            UserError: If these are not the base's weights, or a result is beyond the range of its data type.
        """
        erased = self.apply(weights)
        if strength in (0.0, 1.0):  # As they are: no formula keeps the sign of a zero.
            return erased if strength == 1.0 else dict(weights)
        for name, places in self.places.items():
            old, new = weights[name], erased[name]
            moved = unpack(places, old.shape)
            wide = torch.promote_types(old.dtype, torch.float32)
            ends = old[moved].to(wide), new[moved].to(wide)
            between = torch.lerp(*ends, strength).to(old.dtype)
            if (~between.isfinite() & ends[0].isfinite() & ends[1].isfinite()).any():
                raise UserError(
                    f"Strength {strength:g} puts weights of {name} beyond the range of {old.dtype}; take a smaller one."
                )
            erased[name] = new.clone()
            erased[name][moved] = between
        return erased

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file; under its final name it exists complete or not at all."""
        tensors = {f"places.{name}": bits for name, bits in self.places.items()}
        tensors |= {f"changes.{name}": bits for name, bits in self.changes.items()}
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "base_sha256": self.base_sha256,
            "erased_sha256": self.erased_sha256,
            "sha256": weights_sha256(tensors),
            **texts_of(self.layout, self.about),
        }
        write_tensors(Path(path), tensors, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> WeightPatch:
        """Read a file made by `save`.

        Raises:
            UserError: If it is missing, damaged, or no patch.
        """
        file = Path(path)
        if not file.is_file():
            raise UserError(f"A patch file is required, there is no file {file}.")
        metadata = check_whole(file).get("__metadata__")
        told = metadata if isinstance(metadata, dict) else {}
        if told.get("format") != FORMAT or told.get("version") not in ("1", VERSION):
            raise UserError(
                f"{file} is not a patch of version {VERSION}: its header says {one_line(json.dumps(told), 120)}."
            )
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{file} is damaged ({one_line(error, 120)}); copy it again.") from error
        if told["version"] != "1" and told.get("sha256") != weights_sha256(tensors):
            raise UserError(f"{file} is damaged: the hash over its contents is another; copy it again.")
        places, changes = (
            {name.removeprefix(kind): tensor for name, tensor in tensors.items() if name.startswith(kind)}
            for kind in ("places.", "changes.")
        )
        right = len(places) + len(changes) == len(tensors) and places.keys() == changes.keys()
        right = right and all(bits.dtype == torch.uint8 and bits.ndim == 1 for bits in places.values())
        right = right and all(count_ones(places[name]) == len(x) and x.ndim == 1 for name, x in changes.items())
        if not right or not all(isinstance(told.get(name), str) for name in ("base_sha256", "erased_sha256")):
            raise UserError(f"{file} is damaged: places and changes do not pair up; copy it again.")
        hashes = told["base_sha256"], told["erased_sha256"]
        return cls(places, changes, *hashes, layout_of(told, places, file), about_of(told, file))

    def _require(self, weights: Mapping[str, Tensor], which: Literal["base", "erased"], wanted: str) -> None:
        found = weights_sha256(weights)
        if found != wanted:
            known = {self.base_sha256: "those of the base", self.erased_sha256: "those of the erased model"}
            raise UserError(
                f"The patch needs the {which} weights with SHA-256 {wanted[:16]}…, these have {found[:16]}…: "
                f"they are {known.get(found, self._strangers(weights))}."
            )

    def _strangers(self, weights: Mapping[str, Tensor]) -> str:
        """What weights may be that are neither the base's nor the erased ones."""
        (types, sizes), (own_types, own_sizes) = (
            ({dtype for dtype, _ in layout.values()}, {name: count for name, (_, count) in layout.items()})
            for layout in (_layout(weights), self.layout)
        )
        if sizes == own_sizes and types != own_types:
            stored, needed = (" and ".join(sorted(dtypes)) for dtypes in (types, own_types))
            return f"stored as {stored}, it was made of {needed}: --variant names the files of that type"
        return "those of another model, or were changed since"

    def _require_promised(self, made: Mapping[str, Tensor], promised: str) -> None:
        found = weights_sha256(made)
        if found != promised:
            raise UserError(
                f"The patch is damaged: it promises weights with SHA-256 {promised[:16]}… and gives {found[:16]}…; "
                "copy it again."
            )

    def _flipped(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The exclusive or of weights and changes, at their places."""
        flipped = dict(weights)
        for name, places in self.places.items():
            if name not in weights:
                raise UserError(f"The patch is damaged: it changes {name}, which the weights do not have.")
            tensor = weights[name]
            bits = bit_patterns(tensor).flatten().clone()
            fits = places.numel() == bytes_for(bits.numel()) and padding(places, bits.numel()) == 0
            if not fits or self.changes[name].dtype != bits.dtype:
                raise UserError(f"The patch is damaged: {name} has another size or data type in it.")
            bits[unpack(places, bits.shape)] ^= self.changes[name]
            flipped[name] = bits.view(tensor.dtype).reshape(tensor.shape)
        return flipped


def _layout(weights: Mapping[str, Tensor]) -> Layout:
    """Data type and number of weights of every tensor."""
    return {name: (str(tensor.dtype).removeprefix("torch."), tensor.numel()) for name, tensor in weights.items()}


def patch_folder(
    source: Path,
    target: Path,
    change: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
    *,
    variant: str | None = None,
    link: bool = False,
) -> None:
    """Copy a pipeline folder with changed denoiser weights; all other files stay byte-identical.

    Args:
        source: The pipeline folder.
        target: A folder that is new or empty; under this name it is there complete or not at all.
        change: Such as `WeightPatch.apply`.
        variant: Variant of the weight files.
        link: Link the other files instead of copying them, for a folder that is used at once and thrown away.

    Raises:
        UserError: If the source is no pipeline, the target is in use, or `change` refuses the weights.
    """
    denoiser = denoiser_folder(model_index(source), source)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} must be empty or new: nothing is overwritten.")
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{target} must lie outside of {source}, which it would be a copy of.")
    changed = change(dict(stored_weights(source / denoiser, variant)))

    def write(folder: Path) -> None:
        for path in weight_files(source / denoiser, variant):
            with safe_open(path, framework="pt") as file:
                names, metadata = list(file.keys()), file.metadata()
            write_tensors(folder / path.name, {name: changed[name] for name in names}, metadata)
        if listing := parts_listing(source / denoiser, variant):
            shutil.copyfile(listing, folder / listing.name)

    copy_with_denoiser(source, target, write, variant=variant, link=link)


def patch_between(base: Path, erased: Path, variants: tuple[str | None, str | None] = (None, None)) -> WeightPatch:
    """The patch between two pipeline folders.

    Args:
        base: The base.
        erased: What was made of it.
        variants: Variant of the base's weight files, and of the erased one's.

    Raises:
        UserError: If one is no pipeline, or they are not of one kind.
    """
    before, after = (
        dict(stored_weights(folder / denoiser_folder(model_index(folder), folder), variant))
        for folder, variant in zip((base, erased), variants, strict=True)
    )
    return WeightPatch.between(before, after)
