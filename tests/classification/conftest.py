"""A small world: pictures whose bright row is their class, and a network that learns them in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from salun_diffusers.classification.classifier import Classifier
from salun_diffusers.classification.forget_split import ForgetSplit, Pools, forget_class
from salun_diffusers.classification.training import Task
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.pictures.labelled_pictures import LabelledPictures


def pictures(count: int, classes: int = 4, *, seed: int = 0, size: int = 4) -> LabelledPictures:
    """Noise with one bright row; the row is the class."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand((count, 1, size, size), generator=generator) * 0.4
    labels = torch.arange(count) % classes
    for number, label in enumerate(labels.tolist()):
        pixels[number, 0, label] += 0.5
    return LabelledPictures(pixels, labels, tuple(map(str, range(classes))))


def network(classes: int = 4, *, norm: bool = True, seed: int = 0) -> Classifier:
    """A convolution, batch norm, and a linear head."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        middle: list[nn.Module] = [nn.BatchNorm2d(3)] if norm else []
        model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), *middle, nn.ReLU(), nn.Flatten(), nn.Linear(48, classes))
    return Classifier(model, classes, (0.5,), (0.5,))


@pytest.fixture
def make_network() -> Callable[..., Classifier]:
    return network


@pytest.fixture
def pools() -> Pools:
    return Pools(pictures(48), pictures(8, seed=1), pictures(24, seed=2))


@pytest.fixture
def split(pools: Pools) -> ForgetSplit:
    return forget_class(pools, "2")


@pytest.fixture
def make_task(split: ForgetSplit) -> Callable[..., Task]:
    """A task on the small network; half of the weights may move unless a mask is given."""

    def make(mask: SaliencyMask | None = None, **settings: object) -> Task:
        classifier = network()
        shapes = classifier.parameters
        half = SaliencyMask.random(shapes, 0.5, torch.Generator().manual_seed(1))
        return Task(classifier, split, mask or half, **settings)  # type: ignore[arg-type]

    return make


@pytest.fixture
def snapshot() -> Callable[[Classifier], dict[str, Tensor]]:
    return lambda classifier: {name: weight.detach().clone() for name, weight in classifier.parameters.items()}


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world as a data set on disk."""
    path = tmp_path_factory.mktemp("data") / "rows.safetensors"
    train, test = pictures(80, size=8), pictures(40, seed=2, size=8)
    save_file(
        {
            "train_pixels": train.pixels,
            "train_labels": train.labels,
            "test_pixels": test.pixels,
            "test_labels": test.labels,
        },
        path,
    )
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, data_file: Path) -> Path:
    """A starting model, trained by the program."""
    from salun_diffusers.programs.train_classifier import main

    folder = tmp_path_factory.mktemp("models") / "start"
    words = ["--dataset", data_file, "--epochs", "6", "--image_size", "16", "--batch_size", "16"]
    assert main([*map(str, words), "--output_dir", str(folder)]) == 0
    return folder
