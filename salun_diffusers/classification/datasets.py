"""A data set by name, cut into training, validation and test pictures."""

from __future__ import annotations

import torch

from salun_diffusers.classification.forget_split import Pools
from salun_diffusers.pictures.labelled_pictures import LabelledPictures
from salun_diffusers.pictures.picture_sources import load_pictures
from salun_diffusers.seeds import stream


def load_pools(
    name: str, *, seed: int = 0, image_size: int | None = None, validation: float = 0.0, test: float = 0.2
) -> Pools:
    """Load a data set and cut it into training, validation and test set.

    Args:
        name: ``digits`` (default; 1797 pictures of 8 x 8 pixels), ``shapes`` (drawn here), a name of the Hub's, a
            folder with one folder per class (or with ``train`` and ``test`` above those), or a .safetensors file with
            ``train_pixels``, ``train_labels``, ``test_pixels`` and ``test_labels``.
        seed: Decides which pictures are held out; a model and its unlearning must share it.
        image_size: Side to resize to; None leaves pictures as they are.
        validation: Share of each class's training pictures that is held out, in [0, 1).
        test: Share of each class held out where the data has no test set of its own.

    Raises:
        UserError: If there is no such data, it is damaged, or a package that it needs is missing.
    """
    train, held_out = load_pictures(name, seed=seed)
    if held_out is None:
        train, held_out = cut(train, test, seed, "test")
    train, chosen = cut(train, validation, seed, "validation")
    sets = (train, chosen, held_out)
    if image_size is not None:
        sets = tuple(data.resized(image_size) for data in sets)  # type: ignore[assignment]
    return Pools(*sets)


def cut(data: LabelledPictures, share: float, seed: int, purpose: str) -> tuple[LabelledPictures, LabelledPictures]:
    """Hold out int(share · n_c) pictures of every class c, drawn at random; both parts keep the order."""
    out = torch.zeros(len(data), dtype=torch.bool)
    for number in range(data.num_classes):
        rows = (data.labels == number).nonzero().squeeze(1)
        order = torch.randperm(len(rows), generator=stream(seed, "hold out", purpose, number))
        out[rows[order[: int(share * len(rows))]]] = True
    return data[(~out).nonzero().squeeze(1)], data[out.nonzero().squeeze(1)]
