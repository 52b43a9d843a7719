"""Which weights may move: a frozen set of bits, closed under restriction, union, intersection and complement."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias, final

import torch
from torch import Tensor

from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask_file import JSON, bits_sha256, read_mask, write_mask
from salun_diffusers.masks.packed_bits import bytes_for, count_ones, invert, pack, unpack
from salun_diffusers.masks.saliency import Saliency
from salun_diffusers.masks.threshold import top_bits

Scope: TypeAlias = Literal["global", "per_tensor"]
Shapes: TypeAlias = Mapping[str, Tensor] | Mapping[str, torch.nn.Parameter] | Mapping[str, tuple[int, ...]]


class TensorStats(NamedTuple):
    """How many of a tensor's `size` weights are `selected`."""

    name: str
    size: int
    selected: int

    @property
    def density(self) -> float:
        """The share of selected weights, in [0, 1]."""
        return self.selected / self.size if self.size else 0.0


@final
@dataclass(frozen=True, eq=False, repr=False)
class SaliencyMask(Mapping[str, Tensor]):
    """One boolean per weight, True where it may move, and the recipe that made it.

    ``mask[name]`` is the bool tensor of the parameter's shape, unpacked anew at every access; the mask itself keeps one
    bit per weight. Make masks with the class methods; "no mask" is `full`.

    Attributes:
        packed: The bits by parameter name, `(ceil(size / 8),)` uint8 each, as ``numpy.packbits(bitorder="little")``.
        shapes: The shape of every parameter.
        recipe: How the mask was made, JSON; of a combined mask it holds the recipes of its parts.

    Example:
        >>> saliency = Saliency({"weight": torch.tensor([[0.1, 0.4], [0.3, 0.2]])})
        >>> SaliencyMask.from_saliency(saliency, 0.5)["weight"]
        tensor([[False,  True],
                [ True, False]])
    """

    packed: Mapping[str, Tensor]
    shapes: Mapping[str, torch.Size]
    recipe: Mapping[str, JSON] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for attribute in ("packed", "shapes", "recipe"):
            object.__setattr__(self, attribute, MappingProxyType(dict(getattr(self, attribute))))

    @classmethod
    def from_saliency(
        cls, saliency: Saliency, ratio: float, scope: Scope = "global", recipe: Mapping[str, JSON] | None = None
    ) -> SaliencyMask:
        """Select the largest scores: m = 1[s among the int(ratio · N) largest].

        N counts the weights of the whole model (scope "global") or of each tensor by itself ("per_tensor"). Exactly
        int(ratio · N) weights are selected; of equal scores those in earlier tensors and positions.

        Differs from the official code: ties there are broken by an unstable argsort (OPTML-Group/Unlearn-Saliency
        @a6e89fd, SD/train-scripts/generate_mask.py); the number selected is the same.

        Args:
            saliency: One score per weight.
            ratio: The share of weights that may move, in (0, 1].
            scope: Whether tensors compete with each other.
            recipe: What else to record: the loss, the concept, the base model.

        Raises:
            UserError: If `ratio` is not in (0, 1] or selects nothing, or `scope` is neither word.
        """
        record: dict[str, JSON] = {"kind": "saliency", "ratio": ratio, "scope": scope, **(recipe or {})}
        return cls(_select(saliency.shapes, saliency.values(), ratio, scope), saliency.shapes, record)

    @classmethod
    def random(
        cls,
        parameters: Shapes,
        ratio: float,
        generator: torch.Generator,
        scope: Scope = "global",
        recipe: Mapping[str, JSON] | None = None,
    ) -> SaliencyMask:
        """Select exactly int(ratio · N) weights at random, every set of that size alike: the control experiment.

        Args:
            parameters: Parameters or shapes by name.
            ratio: The share of weights that may move, in (0, 1].
            generator: Gives the seed; it advances by one draw.
            scope: Whether N counts all weights or those of each tensor.
            recipe: What else to record: the concept, the base model.

        Raises:
            UserError: If `ratio` is not in (0, 1] or selects nothing, or `scope` is neither word.
        """
        shapes = _shapes(parameters)
        seed = int(torch.randint(2**32, (), generator=generator, device=generator.device))
        record: dict[str, JSON] = {**(recipe or {}), "kind": "random", "ratio": ratio, "scope": scope, "seed": seed}
        return cls(_select(shapes, _RandomScores(list(shapes.values()), seed), ratio, scope), shapes, record)

    @classmethod
    def random_like(cls, mask: SaliencyMask, generator: torch.Generator) -> SaliencyMask:
        """Select at random as many weights of every tensor as `mask` does: the control for where a mask lies.

        Args:
            mask: Gives the number of selected weights per tensor.
            generator: Gives the seed; it advances by one draw.
        """
        seed = int(torch.randint(2**32, (), generator=generator, device=generator.device))
        counts = [row.selected for row in mask.stats()]
        scores = _RandomScores(list(mask.shapes.values()), seed)
        packed = {}
        # One tensor at a time: `top_bits` runs through its scores three times.
        for name, tensor, count in zip(mask, scores, counts, strict=True):
            packed[name] = next(iter(top_bits([tensor], count)))
        return cls(packed, mask.shapes, {"kind": "random", "scope": "like", "seed": seed, "like": dict(mask.recipe)})

    @classmethod
    def full(cls, parameters: Shapes, recipe: Mapping[str, JSON] | None = None) -> SaliencyMask:
        """Select every weight: what "no mask" means. Takes parameters or shapes by name, and what else to record."""
        shapes = _shapes(parameters)
        none = {name: torch.zeros(bytes_for(shape.numel()), dtype=torch.uint8) for name, shape in shapes.items()}
        packed = {name: invert(none[name], shape.numel()) for name, shape in shapes.items()}
        return cls(packed, shapes, {**(recipe or {}), "kind": "full", "ratio": 1.0})

    @classmethod
    def from_bools(cls, flags: Mapping[str, Tensor], recipe: Mapping[str, JSON] | None = None) -> SaliencyMask:
        """Take a mask made elsewhere: bool tensors in the parameters' shapes.

        Raises:
            UserError: If a tensor is not bool; the message names it.
        """
        for name, tensor in flags.items():
            if tensor.dtype != torch.bool:
                raise UserError(f"The mask of {name} must be a bool tensor, got {tensor.dtype}; use `tensor != 0`.")
        packed = {name: pack(tensor.cpu()) for name, tensor in flags.items()}
        return cls(packed, _shapes(flags), {"kind": "given", **(recipe or {})})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SaliencyMask:
        """Read a file that `save` wrote.

        Raises:
            UserError: If it is missing, no mask or damaged; see `mask_file.read_mask`.
        """
        return cls(*read_mask(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the mask as safetensors, whole or not at all; the format is described in `mask_file`."""
        write_mask(path, self.packed, self.shapes, self.recipe)

    def __getitem__(self, name: str) -> Tensor:
        return unpack(self.packed[name], self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.packed)

    def __len__(self) -> int:
        return len(self.packed)

    def __repr__(self) -> str:
        return f"SaliencyMask({self.number_selected} of {self.number_of_weights} weights in {len(self)} tensors)"

    @property
    def number_of_weights(self) -> int:
        """How many weights the mask speaks about."""
        return sum(shape.numel() for shape in self.shapes.values())

    @property
    def number_selected(self) -> int:
        """How many weights may move."""
        return sum(count_ones(bits) for bits in self.packed.values())

    @property
    def density(self) -> float:
        """The share of weights that may move, in [0, 1]."""
        return self.number_selected / max(self.number_of_weights, 1)

    @property
    def sha256(self) -> str:
        """The hash of names and bits; equal masks have equal hashes."""
        return bits_sha256(self.packed)

    def stats(self) -> list[TensorStats]:
        """Count the selected weights of every tensor."""
        return [TensorStats(name, self.shapes[name].numel(), count_ones(bits)) for name, bits in self.packed.items()]

    def indices(self, name: str) -> Tensor:
        """Return the flat, ascending positions of a tensor's selected weights, int32 wherever that can count them."""
        dtype = torch.int32 if self.shapes[name].numel() <= torch.iinfo(torch.int32).max else torch.int64
        return self[name].reshape(-1).nonzero().squeeze(1).to(dtype)

    def restrict(self, predicate: Callable[[str], bool]) -> SaliencyMask:
        """Freeze all tensors whose name fails `predicate`: cross-attention only, say.

        Raises:
            UserError: If nothing is left selected.
        """
        kept = {name for name in self if predicate(name)}
        packed = {name: bits if name in kept else torch.zeros_like(bits) for name, bits in self.packed.items()}
        mask = SaliencyMask(packed, self.shapes, self._combined("restrict", kept_tensors=len(kept)))
        if mask.number_selected == 0:
            raise UserError(
                f"The restriction must leave a selected weight, but of the {len(self)} tensors (such as "
                f"{next(iter(self), 'none')}) it keeps {len(kept)}, which hold none; check the names it asks for."
            )
        return mask

    def extended_to(self, parameters: Shapes) -> SaliencyMask:
        """Add the tensors of `parameters` that this mask lacks, frozen; in the order of `parameters`."""
        shapes = _shapes(parameters)
        packed = {
            name: self.packed[name] if name in self else torch.zeros(bytes_for(shape.numel()), dtype=torch.uint8)
            for name, shape in shapes.items()
        }
        return SaliencyMask(packed, shapes | dict(self.shapes), self.recipe).matched_to(parameters)

    def matched_to(self, parameters: Shapes) -> SaliencyMask:
        """Return this mask in the order of `parameters`, sure to have exactly their names and shapes.

        Raises:
            UserError: At the first name or shape that differs; the message says what was expected and found.
        """
        expected = _shapes(parameters)
        _check_same(expected, self.shapes, "the model")
        return SaliencyMask({name: self.packed[name] for name in expected}, expected, self.recipe)

    def overlap(self, other: SaliencyMask) -> float:
        """Return the Jaccard index |a ∩ b| / |a ∪ b|, in [0, 1]; 1 for two masks that select nothing."""
        either = (self | other).number_selected
        return (self & other).number_selected / either if either else 1.0

    def __and__(self, other: SaliencyMask) -> SaliencyMask:
        _check_same(self.shapes, other.shapes, "the first mask")
        packed = {name: bits & other.packed[name] for name, bits in self.packed.items()}
        return SaliencyMask(packed, self.shapes, self._combined("and", other))

    def __or__(self, other: SaliencyMask) -> SaliencyMask:
        _check_same(self.shapes, other.shapes, "the first mask")
        packed = {name: bits | other.packed[name] for name, bits in self.packed.items()}
        return SaliencyMask(packed, self.shapes, self._combined("or", other))

    def __invert__(self) -> SaliencyMask:
        packed = {name: invert(bits, self.shapes[name].numel()) for name, bits in self.packed.items()}
        return SaliencyMask(packed, self.shapes, self._combined("not"))

    def __eq__(self, other: object) -> bool:
        """Tell whether names, shapes and bits are the same; order and recipe do not matter."""
        if not isinstance(other, SaliencyMask):
            return NotImplemented
        if dict(self.shapes) != dict(other.shapes):
            return False
        return all(torch.equal(bits, other.packed[name]) for name, bits in self.packed.items())

    # No hash, as for every Mapping: use `sha256` as a key.
    __hash__ = None  # type: ignore[assignment]

    def _combined(self, operation: str, *others: SaliencyMask, **details: JSON) -> dict[str, JSON]:
        return {"kind": operation, "of": [dict(mask.recipe) for mask in (self, *others)], **details}


class _RandomScores:
    """Independent uniform 31-bit scores that are drawn anew, and alike, at every iteration: they need no memory."""

    def __init__(self, shapes: list[torch.Size], seed: int) -> None:
        self._shapes, self._seed = shapes, seed

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self._seed)
        for shape in self._shapes:
            yield torch.empty(shape, dtype=torch.int32).random_(generator=generator)


def _select(
    shapes: Mapping[str, torch.Size], scores: Iterable[Tensor], ratio: float, scope: Scope
) -> dict[str, Tensor]:
    if not 0 < ratio <= 1:
        raise UserError(
            f"ratio must lie in (0, 1], got {ratio}. Ratios are fractions: use 0.5 to let half of the weights move."
        )
    sizes = [shape.numel() for shape in shapes.values()]
    match scope:
        case "global":
            # int(ratio * N), as the official code has it, also where the product falls short of a whole number.
            selected = int(ratio * sum(sizes))
            packed = top_bits(scores, selected)
        case "per_tensor":
            selected = sum(int(ratio * size) for size in sizes)
            packed = (bits for tensor in scores for bits in top_bits([tensor], int(ratio * tensor.numel())))
        case _:
            raise UserError(f'scope must be "global" or "per_tensor", got {scope!r}.')
    if selected == 0:
        raise UserError(f"ratio {ratio} of {sum(sizes)} weights (scope {scope}) selects none; use a larger ratio.")
    return dict(zip(shapes, packed, strict=True))


def _shapes(tensors: Shapes) -> dict[str, torch.Size]:
    return {name: value.shape if isinstance(value, Tensor) else torch.Size(value) for name, value in tensors.items()}


def _check_same(expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size], whose: str) -> None:
    for name, shape in expected.items():
        if found.get(name) != shape:
            got = f"shape {tuple(found[name])}" if name in found else "no such tensor"
            raise UserError(
                f"The mask does not fit: {name} has shape {tuple(shape)} in {whose}, expected the same in the mask, "
                f"found {got}; use a mask made for this model."
            )
    for name in found:
        if name not in expected:
            raise UserError(
                f"The mask does not fit: expected only tensors of {whose}, found {name} as well; "
                "use a mask made for this model."
            )
