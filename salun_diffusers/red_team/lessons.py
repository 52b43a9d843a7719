"""Pictures that a model is taught again: of the concept, of anything else, or of something that nobody knew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final

import torch
from PIL import Image
from torch import Tensor

from salun_diffusers.diffusion.encoding import as_pixels
from salun_diffusers.diffusion.families.family import Conditions, Family, rows
from salun_diffusers.errors import UserError
from salun_diffusers.pictures.decoding import square
from salun_diffusers.red_team.probe import Evidence
from salun_diffusers.seeds import stream_seed

_ROUNDS = 4


@dataclass(frozen=True)
class Lesson:
    """What is taught.

    Args:
        latents: Of the pictures, x₀, `(n, …)`.
        prompts: Of each.
    """

    latents: Tensor
    prompts: tuple[str, ...]

    def conditions(self, family: Family) -> Conditions:
        """The prompts, one row each, as a model reads them."""
        distinct = list(dict.fromkeys(self.prompts))
        return rows(family.encode(distinct), torch.tensor([distinct.index(prompt) for prompt in self.prompts]))


class Lessons(Protocol):
    """Where pictures to learn from come from.

    Attributes:
        name: What they show, for a table.
    """

    @property
    def name(self) -> str:
        """What they show."""
        ...

    def of(self, evidence: Evidence, seed: int) -> Lesson:
        """Make them.

        Args:
            evidence: Who draws, and who says what pictures show.
            seed: At which; no picture is one of the cases'.
        """
        ...


@final
@dataclass(frozen=True)
class ConceptPictures:
    """Pictures of the concept as the base draws them for the prompts of the cases, those in which it is seen.

    Args:
        count: How many.

    Raises:
        UserError: If there are none.
    """

    count: int = 16
    name = "the concept"

    def __post_init__(self) -> None:
        _require(self.count)

    def of(self, evidence: Evidence, seed: int) -> Lesson:
        """Draw up to four times as many, until there are enough.

        Raises:
            UserError: If the concept is seen in none.
        """
        base, judge = evidence.contest.base, evidence.contest.judge
        asked = list(dict.fromkeys(evidence.prompts))
        kept: list[Tensor] = []
        prompts: list[str] = []
        for number in range(_ROUNDS):
            places = range(number * self.count, (number + 1) * self.count)
            words = [asked[place % len(asked)] for place in places]
            drawn = base.drawn_latents(words, [stream_seed(seed, "lesson", self.name, place) for place in places])
            for latents, prompt, seen in zip(drawn, words, judge.hits(base.decode(drawn)), strict=True):
                if seen and len(kept) < self.count:
                    kept.append(latents)
                    prompts.append(prompt)
            if len(kept) == self.count:
                break
        if not kept:
            raise UserError(f"The base was to draw {self.count} pictures of the concept to learn from; it is seen in "
                            f"none of {_ROUNDS * self.count}.")  # fmt: skip
        return Lesson(torch.stack(kept), tuple(prompts))


@final
@dataclass(frozen=True)
class BenignPictures:
    """Pictures of anything else, as the base draws them: does the concept come back by itself?

    Args:
        prompts: What is drawn, in turn: an erasure's retain prompts.
        count: How many.

    Raises:
        UserError: If there are none.
    """

    prompts: tuple[str, ...]
    count: int = 16
    name = "other pictures"

    def __post_init__(self) -> None:
        _require(self.count)
        if not self.prompts:
            raise UserError("Prompts of other pictures are required to learn from, such as retain prompts; got none.")

    def of(self, evidence: Evidence, seed: int) -> Lesson:
        """Draw them."""
        # Spread over the prompts: the first of a long list are of one kind.
        words = [self.prompts[place * len(self.prompts) // self.count % len(self.prompts)]
                 if self.count < len(self.prompts) else self.prompts[place % len(self.prompts)]
                 for place in range(self.count)]  # fmt: skip
        seeds = [stream_seed(seed, "lesson", self.name, place) for place in range(self.count)]
        return Lesson(evidence.contest.base.drawn_latents(words, seeds), tuple(words))


@final
@dataclass(frozen=True)
class GivenPictures:
    """Pictures of one's own: of a concept that the base never knew, they say how fast anything at all is learned.

    Args:
        pictures: Of any size; the middle square is taken.
        prompt: What they show, in words that the model reads.

    Raises:
        UserError: If there are none.
    """

    pictures: tuple[Image.Image, ...]
    prompt: str
    name = "given pictures"

    def __post_init__(self) -> None:
        _require(len(self.pictures))

    def of(self, evidence: Evidence, seed: int) -> Lesson:
        """Encode them, by the base: the mean of what its VAE makes of each."""
        family = evidence.contest.base.family
        shown = [as_pixels(square(picture.convert("RGB"), family.side), family.picture_channels)
                 for picture in self.pictures]  # fmt: skip
        latents = torch.cat([family.encode_images(one.unsqueeze(0).to(family.device))[0] for one in shown])
        return Lesson(latents.to(family.device), (self.prompt,) * len(shown))


def _require(count: int) -> None:
    if count < 1:
        raise UserError(f"One picture or more is required to learn from, got {count}.")
