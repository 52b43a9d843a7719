"""What two masks have in common, against what two masks of these densities have in common by chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.mask_file import JSON
from salun_diffusers.masks.mask_map import stage_of
from salun_diffusers.masks.packed_bits import count_ones


@final
@dataclass(frozen=True)
class Overlap:
    """How far two masks agree on some weights.

    Args:
        weights: N.
        first: |a|.
        second: |b|.
        both: |a ∩ b|.
        by_chance: E|a ∩ b| of masks drawn with the same number of weights in every tensor, Σ_t |a_t| |b_t| / N_t.
    """

    weights: int
    first: int
    second: int
    both: int
    by_chance: float

    @property
    def either(self) -> int:
        """|a ∪ b|."""
        return self.first + self.second - self.both

    @property
    def jaccard(self) -> float:
        """|a ∩ b| / |a ∪ b|; 1 for two masks that select nothing."""
        return self.both / self.either if self.either else 1.0

    @property
    def jaccard_by_chance(self) -> float:
        """The Jaccard index with E|a ∩ b| in the place of |a ∩ b|."""
        either = self.first + self.second - self.by_chance
        return self.by_chance / either if either else 1.0

    @property
    def lift(self) -> float:
        """|a ∩ b| / E|a ∩ b|: 1 is chance; 1 as well where chance has nothing in common, for there is nothing."""
        return self.both / self.by_chance if self.by_chance else 1.0

    def to_json(self) -> dict[str, float]:
        """All of it by name."""
        return {
            "weights": self.weights,
            "first": self.first,
            "second": self.second,
            "both": self.both,
            "either": self.either,
            "both_by_chance": self.by_chance,
            "jaccard": self.jaccard,
            "jaccard_by_chance": self.jaccard_by_chance,
            "lift": self.lift,
        }

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(
            self.weights + other.weights,
            self.first + other.first,
            self.second + other.second,
            self.both + other.both,
            self.by_chance + other.by_chance,
        )


def overlaps(first: SaliencyMask, second: SaliencyMask) -> dict[str, Overlap]:
    """Compare two masks of one model, block by block.

    Raises:
        UserError: If they are of two models.
    """
    require_same_base(first, second)
    common = first & second  # Refuses other names and shapes.
    found: dict[str, Overlap] = {}
    for name, size, selected in first.stats():
        if size:
            other, both = count_ones(second.packed[name]), count_ones(common.packed[name])
            row = Overlap(size, selected, other, both, selected * other / size)
            block = stage_of(name)
            found[block] = found[block] + row if block in found else row
    return found


def require_same_base(*masks: SaliencyMask) -> None:
    """Refuse masks whose recipes name several base models; one that names none is taken at its word.

    Raises:
        UserError: Naming both.
    """
    named = {digest: base for mask in masks for digest, base in bases_of(mask.recipe).items()}
    if len(named) > 1:
        told = " and ".join(f"{base} (sha256 {digest[:12]}…)" for digest, base in list(named.items())[:2])
        raise UserError(f"The masks are of {told}; masks of one base model are required to go together.")


def bases_of(recipe: object) -> dict[str, str]:
    """The base models that a mask's recipe names, also those of the masks that it was combined of: digest → name."""
    if isinstance(recipe, list):
        return {digest: name for part in recipe for digest, name in bases_of(part).items()}
    if not hasattr(recipe, "items"):
        return {}
    told: dict[str, JSON] = dict(recipe.items())
    deeper = bases_of([told.get("of"), told.get("like")])
    digest = told.get("base_sha256")
    return {str(digest): str(told.get("base", "a base")), **deeper} if digest else deeper


def method_of(recipe: object) -> str:
    """How a mask was made, in a few words: ``saliency of 'circle'``, ``or (saliency of 'a', saliency of 'b')``."""
    if not hasattr(recipe, "items"):
        return "unknown"
    told: dict[str, JSON] = dict(recipe.items())
    kind = str(told.get("scores", told.get("kind", "unknown")))
    parts = told.get("of")
    if isinstance(parts, list):
        return f"{kind} ({', '.join(method_of(part) for part in parts)})"
    concept = told.get("concept")
    names = concept if isinstance(concept, list) else [concept] if concept else []
    return kind + (f" of {', '.join(repr(str(name)) for name in names)}" if names else "")
