"""Labelled pictures in memory, and how a training run goes through them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor

from salun_diffusers.classification.classifier import as_float
from salun_diffusers.errors import UserError


@final
@dataclass(frozen=True)
class LabelledPictures:
    """Pictures with their true labels.

    Args:
        pixels: `(n, channels, height, width)`, uint8, or float in [0, 1].
        labels: `(n,)` int64, each in [0, number of classes).
        class_names: One name per class.

    Raises:
        UserError: If numbers differ, a label is missing or no class, or pixels are NaN or outside [0, 1].
    """

    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.pixels.ndim != 4:
            raise UserError(f"Pictures must have shape (n, channels, height, width), got {tuple(self.pixels.shape)}.")
        if self.labels.shape != self.pixels.shape[:1]:
            raise UserError(
                f"Every picture needs one label, got {len(self.pixels)} pictures and labels of shape "
                f"{tuple(self.labels.shape)}."
            )
        if self.pixels.is_floating_point() and len(self.pixels):
            wrong = ~(self.pixels.flatten(1).isfinite().all(1))
            if wrong.any():
                first = int(wrong.nonzero()[0])
                raise UserError(
                    f"Pictures must be finite; {int(wrong.sum())} hold NaN or infinity, first number {first}."
                )
            low, high = self.pixels.aminmax()
            if low < 0 or high > 1:
                raise UserError(f"Float pixels must lie in [0, 1], got {low:g} to {high:g}; divide by 255.")
        if len(self.labels) and not (int(self.labels.min()) >= 0 and int(self.labels.max()) < len(self.class_names)):
            raise UserError(
                f"Labels must lie in [0, {len(self.class_names)}), got {int(self.labels.min())} to "
                f"{int(self.labels.max())}; -1 often means that the labels are missing."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: Tensor) -> LabelledPictures:
        """The pictures at some positions, in that order."""
        return LabelledPictures(self.pixels[indices], self.labels[indices], self.class_names)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def resized(self, size: int) -> LabelledPictures:
        """The same pictures with `size` x `size` pixels, bilinear and antialiased."""
        if self.pixels.shape[-2:] == (size, size):
            return self
        parts = [
            F.interpolate(as_float(part), (size, size), mode="bilinear", align_corners=False, antialias=True)
            for part in self.pixels.split(1024)
        ]
        pixels = torch.cat(parts).clamp(0, 1)
        return LabelledPictures((pixels * 255).round().to(torch.uint8), self.labels, self.class_names)


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
    batch_size: int,
    generator: torch.Generator,
    *,
    augmentation: Augmentation = AS_THEY_ARE,
    device: torch.device | str = "cpu",
    forget: bool = False,
) -> Iterator[Batch]:
    """Yield all pictures once, in random order.

    Args:
        data: The pictures.
        batch_size: Rows of a batch; the last one may be smaller.
        generator: Gives order and augmentation.
        augmentation: What is done to the pictures.
        device: Where the batches go.
        forget: Whether the rows come from the forget set.
    """
    for rows in torch.randperm(len(data), generator=generator).split(batch_size):
        pixels = augmentation(as_float(data.pixels[rows], device), generator)
        yield Batch(pixels, data.labels[rows].to(device), len(rows) if forget else 0)


def join(batches: Sequence[Batch]) -> Batch:
    """One batch of several, rows of the forget set first as they come."""
    return Batch(
        torch.cat([batch.pixels for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
        sum(batch.forget for batch in batches),
    )
