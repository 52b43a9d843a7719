"""How a training run goes through labelled pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from salun_diffusers.pictures.labelled_pictures import LabelledPictures, as_float


class Batch(NamedTuple):
    """Pictures of one step.

    Attributes:
        pixels: `(b, channels, height, width)`, float32 in [0, 1].
        labels: `(b,)` int64.
        forget: How many rows, from the first, come from the forget set.
    """

    pixels: Tensor
    labels: Tensor
    forget: int = 0


@dataclass(frozen=True)
class Augmentation:
    """What is done to pictures where a method trains; never where anything is measured.

    Args:
        shift: Pad by so many zeros and crop at random; 0 leaves pictures in place.
        flip: Whether half of the pictures are mirrored left to right.
    """

    shift: int = 0
    flip: bool = False

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed pictures of the same shape."""
        if self.shift:
            height, width = pixels.shape[-2:]
            padded = F.pad(pixels, (self.shift,) * 4)
            offsets = torch.randint(2 * self.shift + 1, (len(pixels), 2), generator=generator).tolist()
            cropped = [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, offsets, strict=True)]
            pixels = torch.stack(cropped)
        if self.flip:
            mirrored = torch.rand(len(pixels), generator=generator) < 0.5
            pixels = torch.where(mirrored.to(pixels.device).view(-1, 1, 1, 1), pixels.flip(-1), pixels)
        return pixels


AS_THEY_ARE = Augmentation()


def in_order(data: LabelledPictures, batch_size: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
    """Yield all pictures in order, unchanged."""
    for rows in torch.arange(len(data)).split(batch_size):
        yield Batch(as_float(data.pixels[rows], device), data.labels[rows].to(device))


def shuffled(
    data: LabelledPictures,
    batch_size: int | list[int],
    generator: torch.Generator,
    *,
    augmentation: Augmentation = AS_THEY_ARE,
    device: torch.device | str = "cpu",
    forget: bool = False,
) -> Iterator[Batch]:
    """Yield all pictures once, in random order.

    Args:
        data: The pictures.
        batch_size: Rows of a batch, the last one may be smaller; or of each batch.
        generator: Gives order and augmentation.
        augmentation: What is done to the pictures.
        device: Where the batches go.
        forget: Whether the rows come from the forget set.
    """
    for rows in torch.randperm(len(data), generator=generator).split(batch_size):
        pixels = as_float(data.pixels[rows], device)
        if len(rows):
            pixels = augmentation(pixels, generator)
        yield Batch(pixels, data.labels[rows].to(device), len(rows) if forget else 0)


def in_order_of_content(data: LabelledPictures, seed: int) -> LabelledPictures:
    """The same pictures in an order as good as random that contents and seed decide, not the order they had."""

    def key(row: int) -> bytes:
        label = f"{seed} {int(data.labels[row])} ".encode()
        return hashlib.sha256(label + data.pixels[row].contiguous().numpy().tobytes()).digest()

    return data[torch.tensor(sorted(range(len(data)), key=key), dtype=torch.int64)]


def even_sizes(count: int, parts: int) -> list[int]:
    """Sizes of `parts` batches that deal out `count` pictures evenly: ⌊(i+1)·n/parts⌋ - ⌊i·n/parts⌋, some of them 0.

    >>> even_sizes(5, 2), even_sizes(2, 5)
    ([2, 3], [0, 0, 1, 0, 1])
    """
    return [(part + 1) * count // parts - part * count // parts for part in range(parts)]


def join(batches: Sequence[Batch]) -> Batch:
    """One batch of several, rows of the forget set first as they come."""
    return Batch(
        torch.cat([batch.pixels for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
        sum(batch.forget for batch in batches),
    )
