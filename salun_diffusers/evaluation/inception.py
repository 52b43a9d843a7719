"""The Inception-v3 that every published FID is computed with, as a plain torch module.

The network is the 2015 TensorFlow graph that Heusel et al. used (arXiv 1706.08500), whose weights torch-fidelity
republished. It differs from torchvision's Inception-v3 in its pooling and resizing, so FIDs made with that one do not
compare. Weights are read from safetensors only; torchvision and torch-fidelity are not needed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from salun_diffusers.errors import UserError, one_line

_CONVERT = (
    "python -c \"import torch, safetensors.torch as s; s.save_file(torch.load('weights-inception-2015-12-05-"
    "6726825d.pth', weights_only=True), 'inception.safetensors')\""
)


class ConvBlock(nn.Module):
    """Convolution without bias, batch norm with ε = 0.001, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Features `(n, outputs, h, w)`."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _average(x: Tensor) -> Tensor:
    """3 × 3 mean that leaves the border out of its count, as TensorFlow does."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """35 × 35: 1×1, 5×5, double 3×3 and pooled branch."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = ConvBlock(inputs, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = ConvBlock(inputs, 48, 1), ConvBlock(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvBlock(inputs, 64, 1)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = ConvBlock(64, 96, 3, padding=1), ConvBlock(96, 96, 3, padding=1)
        self.branch_pool = ConvBlock(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The branches, one after another."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_average(x))], 1)


class BlockB(nn.Module):
    """35 × 35 to 17 × 17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = ConvBlock(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = ConvBlock(inputs, 64, 1), ConvBlock(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvBlock(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """The branches, one after another."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    """17 × 17: 7×7 in two halves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        along: dict[str, Any] = {"kernel": (1, 7), "padding": (0, 3)}
        across: dict[str, Any] = {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = ConvBlock(768, 192, 1)
        self.branch7x7_1 = ConvBlock(768, width, 1)
        self.branch7x7_2, self.branch7x7_3 = ConvBlock(width, width, **along), ConvBlock(width, 192, **across)
        self.branch7x7dbl_1 = ConvBlock(768, width, 1)
        self.branch7x7dbl_2, self.branch7x7dbl_3 = ConvBlock(width, width, **across), ConvBlock(width, width, **along)
        self.branch7x7dbl_4, self.branch7x7dbl_5 = ConvBlock(width, width, **across), ConvBlock(width, 192, **along)
        self.branch_pool = ConvBlock(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The branches, one after another."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], 1)


class BlockD(nn.Module):
    """17 × 17 to 8 × 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = ConvBlock(768, 192, 1), ConvBlock(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvBlock(768, 192, 1)
        self.branch7x7x3_2 = ConvBlock(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvBlock(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvBlock(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """The branches, one after another."""
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    """8 × 8; the second one pools by the maximum, a slip of the 2015 graph that FID depends on."""

    def __init__(self, inputs: int, largest: bool) -> None:
        super().__init__()
        self._largest = largest
        self.branch1x1 = ConvBlock(inputs, 320, 1)
        self.branch3x3_1 = ConvBlock(inputs, 384, 1)
        self.branch3x3_2a = ConvBlock(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = ConvBlock(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = ConvBlock(inputs, 448, 1), ConvBlock(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvBlock(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = ConvBlock(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = ConvBlock(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The branches, one after another."""
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self._largest else _average(x)
        threes = [self.branch3x3_2a(three), self.branch3x3_2b(three)]
        doubles = [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([self.branch1x1(x), *threes, *doubles, self.branch_pool(pooled)], 1)


class FidInception(nn.Module):
    """From uint8 pictures to the 2,048 pool features of FID; names as in torch-fidelity's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvBlock(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3, self.Conv2d_2b_3x3 = ConvBlock(32, 32, 3), ConvBlock(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = ConvBlock(64, 80, 1), ConvBlock(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a, self.Mixed_6b = BlockB(288), BlockC(128)
        self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = BlockC(160), BlockC(160), BlockC(192)
        self.Mixed_7a, self.Mixed_7b, self.Mixed_7c = BlockD(), BlockE(1280, False), BlockE(2048, True)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features `(n, 2048)` of uint8 pixels `(n, 3, height, width)`."""
        x = (resize_as_tensorflow(pixels.float(), 299) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        pooled: Tensor = x.mean(dim=(2, 3))
        return pooled


def resize_as_tensorflow(images: Tensor, size: int) -> Tensor:
    """Bilinear resizing of TensorFlow 1: source position = target position · (old / new), no half-pixel shift.

        y(i) = (1 - f) x(⌊p⌋) + f x(min(⌊p⌋ + 1, old - 1)),   p = i · old / new,   f = p - ⌊p⌋

    Args:
        images: `(n, 3, height, width)` floats.
        size: Side of the result.
    """
    for axis in (2, 3):
        old = images.shape[axis]
        places = torch.arange(size, device=images.device, dtype=images.dtype) * (old / size)
        low = places.floor().long().clamp(max=old - 1)
        share = (places - low).view((-1, 1) if axis == 2 else (-1,))
        left, right = images.index_select(axis, low), images.index_select(axis, (low + 1).clamp(max=old - 1))
        images = left + (right - left) * share
    return images


def load_inception(weights: str | None) -> tuple[FidInception, str]:
    """Load the network with torch-fidelity's weights from a safetensors file.

    Args:
        weights: The file; the published one is a pickle, which this package never reads, so it is converted once.

    Returns:
        The network in eval mode, and the file's SHA-256.

    Raises:
        UserError: If no file is given, it is a pickle, or its tensors are not those of the network.
    """
    path = Path(weights or "").expanduser()
    if weights is None or not path.is_file():
        found = "none is named" if weights is None else f"there is no file {path}"
        raise UserError(
            f"The extractor inception needs --extractor_weights FILE.safetensors, {found}. torch-fidelity's release "
            f"v0.2.0 has the weights as a pickle; convert it once: {_CONVERT}"
        )
    if path.suffix != ".safetensors":
        raise UserError(
            f"--extractor_weights must be a safetensors file, {path} is not: pickles can run code and are "
            f"never read here. Convert it once: {_CONVERT}"
        )
    network = FidInception()
    try:
        tensors = load_file(path)
        # The last layer's classes do not matter for FID.
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(("fc.", "AuxLogits."))}
        missing, unexpected = network.load_state_dict(kept, strict=False)
    except Exception as error:  # safetensors and torch each have an error of their own.
        raise UserError(f"{path} does not fit the FID Inception: {one_line(error, 160)}") from error
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise UserError(
            f"{path} does not fit the FID Inception: it lacks {missing[:2]}, has too many {unexpected[:2]}."
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return network.eval().requires_grad_(False), digest
