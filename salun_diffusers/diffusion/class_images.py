"""Real pictures with class labels: scikit-learn's digits, a folder with one folder per class, or a `datasets` name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from salun_diffusers.errors import UserError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_ON_THE_HUB = {"cifar10": ("uoft-cs/cifar10", "img", "label"), "stl10": ("tanganke/stl10", "image", "label")}


@dataclass(frozen=True)
class ClassImages:
    """Pictures and their classes.

    Args:
        pixels: `(n, channels, size, size)`, uint8.
        labels: `(n,)` class ids.
        names: Name of each class by id.
    """

    pixels: Tensor
    labels: Tensor
    names: tuple[str, ...]


def load_class_images(source: str, *, size: int, channels: int) -> ClassImages:
    """Read labelled pictures, scaled to `size` and with `channels` channels (1 grey, 3 colour).

    Args:
        source: ``digits``, a folder with one folder of pictures per class, or a `datasets` name (``cifar10``,
            ``stl10``, or a hub id whose train split has image and label columns).
        size: Height and width.
        channels: 1 or 3.

    Raises:
        UserError: If there are no such pictures, one cannot be read, or a package is missing.
    """
    if source == "digits":
        pictures, labels, names = _digits()
    elif Path(source).expanduser().is_dir():
        pictures, labels, names = _folder(Path(source).expanduser())
    else:
        pictures, labels, names = _hub(source)
    mode = {1: "L", 3: "RGB"}[channels]
    scaled = [picture.convert(mode).resize((size, size), Image.Resampling.BICUBIC) for picture in pictures]
    arrays = np.stack([np.asarray(picture).reshape(size, size, channels) for picture in scaled])
    return ClassImages(torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels), names)


def _digits() -> tuple[list[Image.Image], list[int], tuple[str, ...]]:
    """The 1,797 handwritten digits of scikit-learn (8 x 8, 17 grey levels), white on black."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("The digits come with scikit-learn: pip install 'salun-diffusers[classification]'.") from error
    data: Any = load_digits()
    pictures = [Image.fromarray((image * (255 / 16)).round().astype(np.uint8)) for image in data.images]
    return pictures, [int(label) for label in data.target], tuple(map(str, range(10)))


def _folder(folder: Path) -> tuple[list[Image.Image], list[int], tuple[str, ...]]:
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    pictures, labels = [], []
    for number, name in enumerate(names):
        for path in sorted((folder / name).rglob("*")):
            if path.suffix.lower() not in _SUFFIXES:
                continue
            try:
                with Image.open(path) as picture:
                    pictures.append(picture.convert("RGB"))
            except OSError as error:
                raise UserError(f"{path} cannot be read as a picture ({error}); remove or replace it.") from error
            labels.append(number)
    if not pictures:
        raise UserError(f"A folder with one folder of pictures per class is required, {folder} holds none.")
    return pictures, labels, names


def _hub(source: str) -> tuple[list[Image.Image], list[int], tuple[str, ...]]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"There is no folder {source}, and data set names need the package datasets: pip install datasets."
        ) from error
    name, image, label = _ON_THE_HUB.get(source, (source, "image", "label"))
    try:
        data = datasets.load_dataset(name, split="train")
        pictures, labels = list(data[image]), [int(number) for number in data[label]]
        return pictures, labels, tuple(data.features[label].names)
    except Exception as error:  # The hub raises a dozen unrelated types; the user needs one sentence of any.
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{source} is neither a folder nor a data set that could be had ({reason}). Required: `digits`, a folder "
            "with one folder of pictures per class, or a `datasets` name with image and label columns."
        ) from error
