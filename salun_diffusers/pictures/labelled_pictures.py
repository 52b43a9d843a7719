"""Labelled pictures in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from salun_diffusers.errors import UserError


def as_float(pixels: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Return pixels as float32 in [0, 1]: uint8 values are divided by 255."""
    moved = pixels.to(device)
    return moved.float() / 255 if moved.dtype == torch.uint8 else moved.float()


@final
@dataclass(frozen=True)
class LabelledPictures:
    """Pictures with their true labels.

    Args:
        pixels: `(n, channels, height, width)`, uint8, or float in [0, 1].
        labels: `(n,)` whole numbers, each in [0, number of classes).
        class_names: One name per class.

    Raises:
        UserError: If numbers differ, a label is missing, no class or a fraction, or pixels are NaN, outside [0, 1], or
            whole numbers of another type than uint8.
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
        if self.labels.is_floating_point():
            raise UserError(f"Labels must be whole numbers (int64), got {self.labels.dtype}; cast them.")
        if not self.pixels.is_floating_point() and self.pixels.dtype != torch.uint8:
            raise UserError(
                f"Pixels must be uint8 in 0 to 255 or floats in [0, 1], got {self.pixels.dtype}; cast them."
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

    def with_channels(self, channels: int) -> LabelledPictures:
        """The same pictures in grey (1 channel; ITU-R 601 luma) or in colour (3 channels).

        Raises:
            UserError: If `channels` is neither, or the pictures have another number.
        """
        have = self.pixels.shape[1]
        if channels == have:
            return self
        if (have, channels) == (1, 3):
            return LabelledPictures(self.pixels.expand(-1, 3, -1, -1).contiguous(), self.labels, self.class_names)
        if (have, channels) != (3, 1):
            raise UserError(f"Pictures of 1 or 3 channels are required, got {have}, asked for {channels}.")
        grey = (as_float(self.pixels) * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        return LabelledPictures((grey * 255).round().to(torch.uint8), self.labels, self.class_names)

    def squared(self) -> LabelledPictures:
        """The centre square of each picture; models have one number for both sides."""
        height, width = self.pixels.shape[-2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        if height == width:
            return self
        cropped = self.pixels[..., top : top + side, left : left + side].contiguous()
        return LabelledPictures(cropped, self.labels, self.class_names)

    def resized(self, size: int) -> LabelledPictures:
        """The centre square of each picture with `size` x `size` pixels, bilinear and antialiased."""
        if self.pixels.shape[-2:] == (size, size):
            return self
        if self.pixels.shape[-2] != self.pixels.shape[-1]:
            return self.squared().resized(size)
        parts = [
            F.interpolate(as_float(part), (size, size), mode="bilinear", align_corners=False, antialias=True)
            for part in self.pixels.split(1024)
        ]
        pixels = torch.cat(parts).clamp(0, 1)
        return LabelledPictures((pixels * 255).round().to(torch.uint8), self.labels, self.class_names)
