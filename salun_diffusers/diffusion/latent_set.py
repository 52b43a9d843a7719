"""A latent set: latents with the prompt that each belongs to; of encoded pictures the posterior that draws sample."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from salun_diffusers.diffusion.families.family import Conditions
from salun_diffusers.files.stored_weights import weights_sha256, write_tensors


class Drawn(NamedTuple):
    """Latents of some items.

    Attributes:
        latents: `(b, channels, height, width)`.
        sizes: `(b, 6)` original height and width, corner of the cut, height and width wanted; zeros where a latent was
            generated; `(b, 0)` where no picture is among them.
    """

    latents: Tensor
    sizes: Tensor

    def of(self, rows: Tensor | slice) -> Drawn:
        """Some of them."""
        return Drawn(self.latents[rows], self.sizes[rows])

    def beside(self, other: Drawn) -> Drawn:
        """These, then others."""
        wide = max(self.sizes.shape[1], other.sizes.shape[1])
        sizes = [F.pad(one.sizes, (0, wide - one.sizes.shape[1])) for one in (self, other)]
        return Drawn(torch.cat([self.latents, other.latents]), torch.cat(sizes))

    def told(self, conditions: Conditions) -> Conditions:
        """Conditions that say the sizes of the pictures, where they say sizes at all and a picture has some.

        Args:
            conditions: One row for each latent.
        """
        if "time_ids" not in conditions or not self.sizes.shape[1]:
            return conditions
        sizes = self.sizes.to(conditions["time_ids"])
        return {**conditions, "time_ids": torch.where(sizes[:, :1] > 0, sizes, conditions["time_ids"])}


class Views(NamedTuple):
    """What is known of encoded pictures beside their means. A picture has one view, or two where it may be mirrored.

    Attributes:
        deviations: Of the posterior, in the shape of the latents, in the scale of the denoiser.
        sizes: `(rows, 6)`; see `Drawn`.
        first: `(n,)` row of each item's first view.
        number: `(n,)` views of each item.
    """

    deviations: Tensor
    sizes: Tensor
    first: Tensor
    number: Tensor


_NO_VIEWS = Views(
    torch.empty(0), torch.empty(0, 0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
)


@dataclass(frozen=True)
class LatentSet:
    """Latents and the prompt that made each of them.

    Args:
        latents: `(n, channels, height, width)`, scaled as the denoiser sees them, fp32 on the CPU. Of a set with
            encoded pictures one row for each view, the mean of its posterior.
        prompt_index: `(n,)` row of `prompts` for each item.
        prompts: The distinct prompts.
        views: Of encoded pictures; nothing where all latents were generated.
    """

    latents: Tensor
    prompt_index: Tensor
    prompts: tuple[str, ...]
    views: Views = field(default=_NO_VIEWS)

    def __len__(self) -> int:
        return len(self.prompt_index)

    @property
    def has_pictures(self) -> bool:
        """Whether there are encoded pictures among the items."""
        return len(self.views.first) > 0

    def draw(self, items: Tensor, generator: torch.Generator) -> Drawn:
        """Latents of some items: generated ones are what they are, pictures a sample of their posterior.

            x = μ + σ ε,   ε ~ N(0, 1)

        in the scale of the denoiser, where μ and σ belong to one of the picture's views, each as likely as the other.
        As in diffusers' train_text_to_image every draw is a new sample.

        Args:
            items: `(b,)` rows of the set.
            generator: Is asked only where the set has pictures.
        """
        if not self.has_pictures:
            return Drawn(self.latents[items], torch.empty(len(items), 0))
        views = self.views
        hand = (torch.rand(len(items), generator=generator) * views.number[items]).long()
        rows = views.first[items] + hand
        noise = torch.randn(len(items), *self.latents.shape[1:], generator=generator)
        return Drawn(self.latents[rows] + views.deviations[rows] * noise, views.sizes[rows])

    @property
    def sha256(self) -> str:
        """SHA-256 of latents and rows."""
        return weights_sha256(self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"latents": self.latents, "prompt_index": self.prompt_index}
        return tensors | (self.views._asdict() if self.has_pictures else {})

    @classmethod
    def empty(cls, prompts: Sequence[str]) -> LatentSet:
        """No latents of some prompts."""
        return cls(torch.empty(0), torch.empty(0, dtype=torch.int64), tuple(prompts))

    def distinct(self) -> LatentSet:
        """The same latents with every prompt once, however often the list that was gone round has it."""
        place = {prompt: row for row, prompt in enumerate(dict.fromkeys(self.prompts))}
        rows = torch.tensor([place[prompt] for prompt in self.prompts])
        return replace(self, prompt_index=rows[self.prompt_index], prompts=tuple(place))

    def __add__(self, other: LatentSet) -> LatentSet:
        """Both sets, this one first; row i of both prompt lists stands for the same pair of prompts."""
        latents = torch.cat([self.latents, other.latents]) if len(other) else self.latents
        views = _NO_VIEWS
        if self.has_pictures or other.has_pictures:
            ours, theirs = self._viewed(), other._viewed()
            theirs = theirs._replace(first=theirs.first + len(self.latents))
            # An empty set has no shape that could be joined.
            views = ours if not len(other) else Views(*map(torch.cat, zip(ours, theirs, strict=True)))
        return LatentSet(latents, torch.cat([self.prompt_index, other.prompt_index]), self.prompts, views)

    def _viewed(self) -> Views:
        """The views; generated latents are one each, without deviation or size."""
        if self.has_pictures:
            return self.views
        count = len(self)
        one = torch.ones(count, dtype=torch.int64)
        return Views(torch.zeros_like(self.latents), torch.zeros(count, 6), torch.arange(count), one)

    def save(self, path: Path) -> None:
        """Write latents and manifest as one safetensors file."""
        write_tensors(path, self._tensors(), {"prompts": json.dumps(self.prompts)})

    @classmethod
    def load(cls, path: Path) -> LatentSet:
        """Read a file written by `save`."""
        with safe_open(path, framework="pt") as file:
            prompts = tuple(json.loads(file.metadata()["prompts"]))
            known = set(file.keys())
            views = Views(*map(file.get_tensor, Views._fields)) if "first" in known else _NO_VIEWS
            return cls(file.get_tensor("latents"), file.get_tensor("prompt_index"), prompts, views)
