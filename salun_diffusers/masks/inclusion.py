"""Soft masks: for every weight the probability that it may move, from its score at a temperature."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from salun_diffusers.errors import UserError
from salun_diffusers.files.json_files import parse_json, require_regular
from salun_diffusers.files.stored_weights import weights_sha256, write_tensors
from salun_diffusers.files.whole_files import check_whole
from salun_diffusers.masks.mask import SaliencyMask, Scope
from salun_diffusers.masks.mask_file import JSON
from salun_diffusers.masks.packed_bits import pack
from salun_diffusers.masks.saliency import Saliency

FORMAT = "salun_diffusers.inclusion"
_SHIFT = 8  # Scores are told apart by 23 bits, a relative 3e-5: of more there is no list.
_HALVINGS = 60


@final
class Inclusion(Mapping[str, Tensor]):
    """One probability per weight: parameter name → float16 tensor in the parameter's shape, in [0, 1].

        p_i = 1 / (1 + (c / s_i)^(1/T))        Σ_i p_i = ratio · N

    with scores s and temperature T. For T → 0 that is the mask of the ratio·N largest scores, for T → ∞ every weight
    with a score has p = ratio. Scores of another scale give the same p. They are float16 from the start, so that what
    is read from a file is what was made.

    Attributes:
        recipe: How it was made, JSON.
    """

    def __init__(self, probabilities: Mapping[str, Tensor], recipe: Mapping[str, JSON]) -> None:
        """Take over probabilities.

        Raises:
            UserError: If one is no probability; the message names the tensor.
        """
        for name, tensor in probabilities.items():
            if tensor.dtype != torch.float16 or not bool(((tensor >= 0) & (tensor <= 1)).all()):
                raise UserError(f"The probabilities of {name} must be float16 in [0, 1]; make them again.")
        self._probabilities = MappingProxyType(dict(probabilities))
        self.recipe = MappingProxyType(dict(recipe))

    @classmethod
    def from_saliency(
        cls,
        saliency: Saliency,
        ratio: float,
        temperature: float,
        scope: Scope = "global",
        recipe: Mapping[str, JSON] | None = None,
    ) -> Inclusion:
        """Find c, by halving, and with it the probabilities.

        Args:
            saliency: s, one score per weight; a weight of score 0 never moves.
            ratio: The expected share of weights that may move, in (0, 1).
            temperature: T, above 0.
            scope: Whether N counts all weights or those of each tensor, which then has a c of its own.
            recipe: What else to record.

        Raises:
            UserError: If fewer weights than ratio · N have a score above 0.
        """
        record: dict[str, JSON] = {"ratio": ratio, "scope": scope, "temperature": temperature, **(recipe or {})}
        if scope == "per_tensor":
            found = {name: _probabilities([score], ratio, temperature)[0] for name, score in saliency.items()}
        else:
            tensors = _probabilities(list(saliency.values()), ratio, temperature)
            found = dict(zip(saliency, tensors, strict=True))
        return cls(found, record)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Inclusion:
        """Read a file that `save` wrote.

        Raises:
            UserError: If it is missing, damaged, or another file.
        """
        file = Path(path)
        if not file.is_file():
            raise UserError(f"{file} does not exist: a file of inclusion probabilities is required.")
        require_regular(file)
        told = check_whole(file).get("__metadata__", {})
        if not isinstance(told, dict) or told.get("format") != FORMAT:
            raise UserError(f"{file} is no file of inclusion probabilities: its header must say format={FORMAT!r}.")
        try:
            tensors, recipe = load_file(file), dict(parse_json(told["recipe"].encode()))
            order, sha256 = parse_json(told["names"].encode()), told["sha256"]
            same = sorted(order) == sorted(tensors) and _seal(tensors, told["recipe"], told["names"]) == sha256
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OSError, SafetensorError) as error:
            raise UserError(f"{file} is damaged: {error!r}; remove it, and the run makes it again.") from error
        if not same:
            raise UserError(f"{file} has been altered: its sha256 is another; remove it, and the run makes it again.")
        return cls({name: tensors[name] for name in order}, recipe)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as safetensors, whole or not at all; the header holds the recipe and a hash of everything."""
        recipe, names = json.dumps(dict(self.recipe)), json.dumps(list(self))
        told = {"format": FORMAT, "recipe": recipe, "names": names, "sha256": _seal(self, recipe, names)}
        write_tensors(Path(path), self._probabilities, told)

    def __getitem__(self, name: str) -> Tensor:
        return self._probabilities[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._probabilities)

    def __len__(self) -> int:
        return len(self._probabilities)

    def __or__(self, other: Inclusion) -> Inclusion:
        """The probability that a weight is in a draw of this one or in one of `other`: 1 - (1 - p)(1 - q)."""
        found = {}
        for name, mine in self.items():
            theirs = other[name].double()
            found[name] = (1 - (1 - mine.double()) * (1 - theirs)).clamp(0, 1).half()
        return Inclusion(found, {"kind": "or", "of": [dict(self.recipe), dict(other.recipe)]})

    @property
    def density(self) -> float:
        """The expected share of weights that may move."""
        total = sum(tensor.numel() for tensor in self.values())
        return sum(float(tensor.double().sum()) for tensor in self.values()) / max(total, 1)

    def support(self) -> SaliencyMask:
        """The weights that can move at all, p > 0: those outside are frozen whatever is drawn."""
        flags = {name: pack(tensor > 0) for name, tensor in self.items()}
        return self._mask(flags, "support")

    def draw(self, generator: torch.Generator) -> SaliencyMask:
        """A mask that holds every weight with its own probability, independently: m_i ~ Bernoulli(p_i).

        Args:
            generator: Gives the numbers, in the order of the tensors.
        """
        flags = {name: pack(drawn(tensor, generator)) for name, tensor in self.items()}
        return self._mask(flags, "drawn")

    def _mask(self, packed: Mapping[str, Tensor], kind: str) -> SaliencyMask:
        shapes = {name: tensor.shape for name, tensor in self.items()}
        return SaliencyMask(packed, shapes, {**self.recipe, "kind": kind, "expected_density": self.density})


def drawn(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """Independent flags, True with the probabilities of a tensor.

    Args:
        probabilities: Any shape, on the CPU.
        generator: Gives one number for each.
    """
    return torch.rand(probabilities.shape, generator=generator) < probabilities


def _seal(tensors: Mapping[str, Tensor], recipe: str, names: str) -> str:
    told = torch.frombuffer(bytearray(f"{recipe}\0{names}".encode()), dtype=torch.uint8)
    return weights_sha256({**tensors, "": told})


def _probabilities(scores: list[Tensor], ratio: float, temperature: float) -> list[Tensor]:
    """p of every score, for one c over all of them."""
    logarithms, counts = _counted(scores)
    total = sum(score.numel() for score in scores)
    if int(counts.sum()) < ratio * total:
        raise UserError(
            f"Only {int(counts.sum()):,} of {total:,} weights have a score above 0, a ratio of {ratio:g} needs more: "
            "use a smaller --mask_ratio, or --mask_scope global."
        )
    low, high = float(logarithms.min()) - 60 * temperature, float(logarithms.max()) + 60 * temperature
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        expected = (counts * torch.sigmoid((logarithms - middle) / temperature)).sum()
        low, high = (middle, high) if float(expected) > ratio * total else (low, middle)
    # log 0 is -∞, and its p is 0.
    return [torch.sigmoid((score.double().log() - (low + high) / 2) / temperature).half() for score in scores]


def _counted(scores: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The logarithms of the scores above 0, as far as they are told apart, and how many there are of each."""
    # Non-negative floats order like the integers that their bits spell.
    histogram = torch.zeros((0x7F800000 >> _SHIFT) + 1, dtype=torch.float64)
    for score in scores:
        above = score.reshape(-1)[score.reshape(-1) > 0]
        for chunk in above.view(torch.int32).split(1 << 22):
            histogram.index_add_(0, (chunk >> _SHIFT).long(), torch.ones(len(chunk), dtype=torch.float64))
    places = histogram.nonzero().squeeze(1)
    middles = ((places << _SHIFT) + (1 << (_SHIFT - 1))).to(torch.int32).view(torch.float32)
    return middles.double().log(), histogram[places]
