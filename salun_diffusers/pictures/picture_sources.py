"""Labelled pictures by name: the digits of scikit-learn, the renderer's shapes, folders, files, and the Hub's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.pictures.class_folders import read_class_folders, stacked
from salun_diffusers.pictures.decoding import picture_of, read_picture
from salun_diffusers.pictures.labelled_pictures import LabelledPictures
from salun_diffusers.pictures.picture_files import tell_once
from salun_diffusers.pictures.stored_pictures import read_stored_pictures
from salun_diffusers.seeds import stream_seed

# Hub id, configuration, label column, names of the training and test split.
_HUB = {
    "cifar10": ("uoft-cs/cifar10", None, "label", ("train", "test")),
    "cifar100": ("uoft-cs/cifar100", None, "fine_label", ("train", "test")),
    "stl10": ("tanganke/stl10", None, "label", ("train", "test")),
    "svhn": ("ufldl-stanford/svhn", "cropped_digits", "label", ("train", "test")),
    "tiny-imagenet": ("zh-plus/tiny-imagenet", None, "label", ("train", "valid")),
}
DATASETS = ("digits", "shapes", *_HUB)


def load_pictures(
    name: str, *, seed: int = 0, image_size: int | None = None
) -> tuple[LabelledPictures, LabelledPictures | None]:
    """Load a data set: its training pictures, and its test pictures where it has some of its own.

    All are uint8 and square, whatever they are made from, so that training, unlearning and measuring see the same:
    of pictures that are not square the centre is taken.

    Args:
        name: ``digits`` (1797 pictures of 8 x 8 pixels), ``shapes`` (drawn here), a name of the Hub's, a folder with
            one folder per class (or with ``train`` and ``test`` above those), or a .safetensors file with
            ``train_pixels``, ``train_labels``, ``test_pixels`` and ``test_labels``.
        seed: Of the shapes.
        image_size: Side of all pictures; None keeps theirs, which for a folder is the most frequent one.

    Raises:
        UserError: If there is no such data, it is damaged, or a package that it needs is missing.
    """
    if name in DATASETS and Path(name).is_dir():
        tell_once(f"{name} is the data set of that name; your folder is ./{name}.")
    train, test = _load(name, seed, image_size)

    def shaped(part: LabelledPictures) -> LabelledPictures:
        return part.squared() if image_size is None else part.resized(image_size)

    return shaped(train), None if test is None else shaped(test)


def _load(name: str, seed: int, image_size: int | None) -> tuple[LabelledPictures, LabelledPictures | None]:
    """Pictures as their source has them."""
    made: dict[str, Callable[[], LabelledPictures]] = {"digits": _digits, "shapes": lambda: _shapes(seed)}
    if name in made:
        return made[name](), None
    if name in _HUB:
        return _from_hub(name, image_size)
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return read_class_folders(path, image_size)
        if path.suffix.lower() == ".safetensors" and path.is_file():
            return read_stored_pictures(path)
    except (OSError, RuntimeError) as error:  # A name that is too long, the home of nobody, …
        raise UserError(f"The data set {name[:200]!r} cannot be read ({error}); name a folder or a file.") from error
    raise UserError(
        f"The data set must be one of {', '.join(DATASETS)}, an image folder or a .safetensors file, got {name!r}."
    )


def _digits() -> LabelledPictures:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            "The data set digits needs scikit-learn: pip install 'salun-diffusers[classification]'."
        ) from error
    found: Any = load_digits()
    pixels = torch.from_numpy(np.round(found.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    return LabelledPictures(pixels, torch.from_numpy(found.target.astype(np.int64)), tuple(map(str, range(10))))


def _shapes(seed: int, count: int = 2000, size: int = 32) -> LabelledPictures:
    from salun_diffusers.demo.renderer import render, sample_scene
    from salun_diffusers.demo.vocabulary import SHAPES

    rng = np.random.default_rng(stream_seed(seed, "shapes"))
    scenes = [sample_scene(rng, shape=SHAPES[number % len(SHAPES)]) for number in range(count)]
    pixels = np.stack([np.asarray(render(scene, size)) for scene in scenes])
    labels = torch.tensor([SHAPES.index(scene.shape) for scene in scenes])
    return LabelledPictures(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels, SHAPES)


def _of_cell(cell: Any, name: str) -> Image.Image:
    """The picture of a cell, which has the bytes of a file or says where it lies."""
    data = cell["bytes"]
    return read_picture(Path(cell["path"])) if data is None else picture_of(data, name)


def _from_hub(name: str, image_size: int | None) -> tuple[LabelledPictures, LabelledPictures]:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"The data set {name} needs the datasets package: pip install 'salun-diffusers[hub-data]'."
        ) from error
    hub_id, configuration, column, splits = _HUB[name]
    parts = []
    for split in splits:
        try:
            rows: Any = datasets.load_dataset(hub_id, configuration, split=split)
        except Exception as error:  # Network, cache and server raise many kinds.
            raise UserError(f"The data set {name} ({hub_id}) could not be loaded: {one_line(error, 160)}") from error
        try:
            key = next(key for key, feature in rows.features.items() if isinstance(feature, datasets.Image))
            # As files, for our own decoder: that of the package opens any format, and shows no orientation.
            cells = rows.cast_column(key, datasets.Image(decode=False))[key]
            decoded = [_of_cell(cell, f"Picture {number} of {name} ({split})") for number, cell in enumerate(cells)]
            names, labels = tuple(map(str, rows.features[column].names)), torch.tensor(list(rows[column]))
        except UserError:
            raise
        except Exception as error:  # The data may be of another make by now, or its tables damaged.
            what = one_line(error, 160) or type(error).__name__
            raise UserError(f"The data set {name} ({hub_id}) is not as it was known, or damaged: {what}") from error
        parts.append(LabelledPictures(stacked(hub_id, decoded, image_size), labels, names))
    if parts[0].pixels.shape[1:] != parts[1].pixels.shape[1:]:
        parts[1] = parts[1].resized(parts[0].squared().pixels.shape[-1])
    return parts[0], parts[1]
