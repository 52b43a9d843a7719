"""Labelled pictures by name: the digits of scikit-learn, the renderer's shapes, folders, files, and the Hub's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.pictures.labelled_pictures import LabelledPictures
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
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


def load_pictures(name: str, *, seed: int = 0) -> tuple[LabelledPictures, LabelledPictures | None]:
    """Load a data set: its training pictures, and its test pictures where it has some of its own.

    Args:
        name: ``digits`` (1797 pictures of 8 x 8 pixels), ``shapes`` (drawn here), a name of the Hub's, a folder with
            one folder per class (or with ``train`` and ``test`` above those), or a .safetensors file with
            ``train_pixels``, ``train_labels``, ``test_pixels`` and ``test_labels``.
        seed: Of the shapes.

    Raises:
        UserError: If there is no such data, it is damaged, or a package that it needs is missing.
    """
    made: dict[str, Callable[[], LabelledPictures]] = {"digits": _digits, "shapes": lambda: _shapes(seed)}
    if name in made:
        return made[name](), None
    if name in _HUB:
        return _from_hub(name)
    path = Path(name)
    if path.is_dir():
        return _folder(path)
    if path.suffix == ".safetensors" and path.is_file():
        return _file(path)
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


def _folder(root: Path) -> tuple[LabelledPictures, LabelledPictures | None]:
    """Class folders, or those below ``train`` and ``test`` (or ``val``)."""
    if not (root / "train").is_dir():
        return _class_folders(root, None), None
    train = _class_folders(root / "train", None)
    for name in ("test", "val"):
        if (root / name).is_dir():
            return train, _class_folders(root / name, train.class_names)
    return train, None


def _class_folders(root: Path, names: tuple[str, ...] | None) -> LabelledPictures:
    names = names or tuple(sorted(path.name for path in root.iterdir() if path.is_dir()))
    files = [
        (path, number)
        for number, name in enumerate(names)
        for path in sorted((root / name).glob("*"))
        if path.suffix.lower() in _SUFFIXES
    ]
    if not files:
        raise UserError(
            f"The data set {root} must hold one folder of pictures per class, found no picture in such a folder."
        )
    pixels, size = [], None
    for path, _ in files:
        try:
            with Image.open(path) as picture:
                # All pictures get the size of the first one, so that they stack.
                size = size or picture.size
                pixels.append(np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BILINEAR)))
        except OSError as error:
            raise UserError(f"{path} cannot be read as a picture ({error}); repair or remove it.") from error
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return LabelledPictures(stacked, torch.tensor([number for _, number in files]), names)


def _file(path: Path) -> tuple[LabelledPictures, LabelledPictures]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"The data set {path} cannot be read: {error}.") from error
    needed = [f"{part}_{what}" for part in ("train", "test") for what in ("pixels", "labels")]
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise UserError(f"The data set {path} must hold {', '.join(needed)}; {', '.join(missing)} is missing.")
    highest = max((int(tensors[f"{part}_labels"].max()) for part in ("train", "test")), default=-1)
    names = tuple(map(str, range(highest + 1)))
    train, test = (
        LabelledPictures(tensors[f"{part}_pixels"], tensors[f"{part}_labels"].long(), names)
        for part in ("train", "test")
    )
    return train, test


def _from_hub(name: str) -> tuple[LabelledPictures, LabelledPictures]:
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
        pictures = next(key for key, feature in rows.features.items() if isinstance(feature, datasets.Image))
        pixels = np.stack([np.asarray(item.convert("RGB")) for item in rows[pictures]])
        labels = torch.tensor(list(rows[column]))
        names = tuple(map(str, rows.features[column].names))
        parts.append(LabelledPictures(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels, names))
    return parts[0], parts[1]
