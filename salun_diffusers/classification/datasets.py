"""A data set by name, cut into training, validation and test pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from salun_diffusers.classification.forget_split import Pools
from salun_diffusers.errors import UserError
from salun_diffusers.pictures.labelled_pictures import LabelledPictures
from salun_diffusers.pictures.picture_sources import load_pictures
from salun_diffusers.seeds import stream

_CIFAR10_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_CIFAR10_RECORD = 1 + 3 * 32 * 32


def load_pools(
    name: str, *, seed: int = 0, image_size: int | None = None, validation: float = 0.0, test: float = 0.2
) -> Pools:
    """Load a data set and cut it into training, validation and test set.

    Args:
        name: ``digits`` (default; 1797 pictures of 8 x 8 pixels), ``shapes`` (drawn here), a name of the Hub's, a
            folder with one folder per class (or with ``train`` and ``test`` above those), the unpacked folder of
            CIFAR-10's binary version (``cifar-10-batches-bin``), or a .safetensors file with ``train_pixels``,
            ``train_labels``, ``test_pixels`` and ``test_labels``.
        seed: Decides which pictures are held out; a model and its unlearning must share it.
        image_size: Side to resize to; None leaves pictures as they are.
        validation: Share of each class's training pictures that is held out, in [0, 1).
        test: Share of each class held out where the data has no test set of its own.

    Raises:
        UserError: If there is no such data, it is damaged, or a package that it needs is missing.
    """
    binary = Path(name) / _CIFAR10_TRAIN[0]
    train, held_out = _cifar10_binary(Path(name)) if binary.is_file() else load_pictures(name, seed=seed)
    if held_out is None:
        train, held_out = cut(train, test, seed, "test")
    train, chosen = cut(train, validation, seed, "validation")
    sets = (train, chosen, held_out)
    if image_size is not None:
        sets = tuple(data.resized(image_size) for data in sets)  # type: ignore[assignment]
    return Pools(*sets)


def _cifar10_binary(folder: Path) -> tuple[LabelledPictures, LabelledPictures]:
    """CIFAR-10 as its authors give it for C: files of records of a label and 3 x 32 x 32 pixels, a byte each.

    https://www.cs.toronto.edu/~kriz/cifar.html. The version for Python is a pickle, which is not opened here.

    Raises:
        UserError: If a file is missing or damaged.
    """

    def read(names: tuple[str, ...], classes: tuple[str, ...]) -> LabelledPictures:
        try:
            parts = [np.fromfile(folder / name, dtype=np.uint8) for name in names]
        except OSError as error:
            raise UserError(f"CIFAR-10's binary version needs {', '.join(names)} in {folder}: {error}.") from error
        for name, part in zip(names, parts, strict=True):
            if len(part) == 0 or len(part) % _CIFAR10_RECORD:
                raise UserError(f"{folder / name} is damaged: it must hold records of {_CIFAR10_RECORD} bytes.")
        records = torch.from_numpy(np.concatenate(parts).reshape(-1, _CIFAR10_RECORD))
        pixels = records[:, 1:].reshape(-1, 3, 32, 32).contiguous()
        return LabelledPictures(pixels, records[:, 0].long(), classes)

    try:
        classes = tuple((folder / "batches.meta.txt").read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"CIFAR-10's binary version needs batches.meta.txt in {folder}: {error}.") from error
    return read(_CIFAR10_TRAIN, classes), read(("test_batch.bin",), classes)


def cut(data: LabelledPictures, share: float, seed: int, purpose: str) -> tuple[LabelledPictures, LabelledPictures]:
    """Hold out int(share · n_c) pictures of every class c, drawn at random; both parts keep the order."""
    out = torch.zeros(len(data), dtype=torch.bool)
    for number in range(data.num_classes):
        rows = (data.labels == number).nonzero().squeeze(1)
        order = torch.randperm(len(rows), generator=stream(seed, "hold out", purpose, number))
        out[rows[order[: int(share * len(rows))]]] = True
    return data[(~out).nonzero().squeeze(1)], data[out.nonzero().squeeze(1)]
