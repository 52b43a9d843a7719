"""The papers' experiments as resumable cells: one method, one mask, one forget set, one seed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from salun_diffusers.classification.batches import Augmentation
from salun_diffusers.classification.classifier import NormStats
from salun_diffusers.classification.config import TRAINING_FLAGS, TrainConfig
from salun_diffusers.classification.datasets import load_pools
from salun_diffusers.classification.forget_split import (
    ForgetSplit,
    Pools,
    forget_class,
    forget_fraction,
    forget_instances,
)
from salun_diffusers.classification.masks import make_mask
from salun_diffusers.classification.methods import METHODS
from salun_diffusers.classification.metrics import MiaRule, average_gap, measure
from salun_diffusers.classification.models import load_classifier, load_record
from salun_diffusers.classification.presets import UNLEARNING, TrainingPreset
from salun_diffusers.classification.run import recipe_of
from salun_diffusers.classification.train import run_training
from salun_diffusers.classification.training import Task
from salun_diffusers.errors import UserError
from salun_diffusers.files.run_folder import fingerprint
from salun_diffusers.files.whole_files import write_text
from salun_diffusers.progress import Clock
from salun_diffusers.seeds import stream

# Hyper-parameters are chosen on models, forget sets and Retrains that no table contains.
TUNING_SEEDS = (1000, 1001, 1002)
_RATES = (1e-4, 3e-4, 1e-3, 2e-3, 5e-3, 1e-2, 3e-2, 0.1)
_EPOCHS = {"epochs": (4,)}
_BY_RATE = ({**_EPOCHS, "learning_rate": _RATES},)
_RELABEL = (
    {**_EPOCHS, "order": ("together",), "retain_weight": (10.0,), "learning_rate": (2e-4, 5e-4, 1e-3, 3e-3)},
    {**_EPOCHS, "order": ("sequential",), "learning_rate": (5e-4, 1e-3, 2e-3, 1e-2)},
)

# Eight settings for every method: products of lists. What is not named is as the method has it.
GRIDS: dict[str, tuple[dict[str, tuple[Any, ...]], ...]] = {
    "ft": _BY_RATE,
    "ga": _BY_RATE,
    "be": _BY_RATE,
    "bs": _BY_RATE,
    "l1_sparse": ({**_EPOCHS, "learning_rate": (3e-3, 1e-2, 3e-2, 0.1), "penalty": (1e-4, 1e-3)},),
    "rl": _RELABEL,
    "salun": _RELABEL,
    "salun_soft": _RELABEL,
    "iu": ({"step": (0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 5.0)},),
    "ssd": ({"selection": (2.0, 5.0, 10.0, 25.0), "dampening": (0.5, 1.0)},),
    "scrub": ({**_EPOCHS, "learning_rate": (3e-4, 1e-3, 3e-3, 1e-2), "ascent_epochs": (1, 3)},),
}


# For SalUn's Table 1: eight values in the ranges that are said to be the paper's, beside what the preset fixes.
_HUNDREDFOLD = (1.0, 2.0, 4.0, 7.0, 15.0, 30.0, 60.0, 100.0)
_LOWEST_RATES = {"ft": 1e-3, "rl": 1e-3, "salun": 5e-4, "salun_soft": 5e-4, "ga": 1e-5, "be": 1e-6, "bs": 1e-6}
_TABLE1: dict[str, dict[str, tuple[Any, ...]]] = {
    **{method: {"learning_rate": tuple(low * x for x in _HUNDREDFOLD)} for method, low in _LOWEST_RATES.items()},
    "l1_sparse": {"learning_rate": (1e-3, 0.01, 0.03, 0.1), "penalty": (1e-6, 1e-4)},
    "iu": {"step": (1.0, 2.0, 3.0, 5.0, 8.0, 10.0, 15.0, 20.0)},
}


def grids(preset: TrainingPreset) -> dict[str, tuple[dict[str, tuple[Any, ...]], ...]]:
    """The grids of a preset: method → products of lists."""
    if preset == "small":
        return GRIDS
    switches: dict[Any, Any] = {"on": True, "off": False}
    fixed = {
        method: {
            name: (value if isinstance(value, tuple) else switches.get(value, value),) for name, value in own.items()
        }
        for method, own in UNLEARNING[preset].items()
    }
    return {method: ({**fixed[method], **tried},) for method, tried in _TABLE1.items()}


def grid(method: str, preset: TrainingPreset = "small") -> list[tuple[tuple[str, Any], ...]]:
    """All settings that a method is tried with."""
    return [
        tuple(zip(part, chosen, strict=True))
        for part in grids(preset)[method]
        for chosen in itertools.product(*part.values())
    ]


@dataclass(frozen=True)
class Cell:
    """One unlearning.

    Args:
        scenario: ``class``, ``random-0.1`` (a share) or ``instances-16`` (a number of pictures).
        method: Name of the method.
        seed: Of the starting model, the forget set and the method; with ``class`` it also picks the class.
        mask: Kind of the mask.
        mask_ratio: Its density.
        settings: Hyper-parameters that are not the method's own defaults.
        norm_stats: What batch norms do.
    """

    scenario: str
    method: str
    seed: int
    mask: str = "full"
    mask_ratio: float = 0.5
    settings: tuple[tuple[str, Any], ...] = ()
    norm_stats: NormStats = "update"

    @property
    def name(self) -> str:
        """A file name: readable, and different for different cells."""
        mark = fingerprint(**dataclasses.asdict(self))[:10]
        return f"{self.scenario}-{self.method}-{self.mask}-{self.seed}-{mark}"


@dataclass(frozen=True)
class Laboratory:
    """A folder of starting models and results; what is there is not computed again.

    Args:
        folder: Where everything is kept.
        dataset: Name of the data.
        model: Name of the network.
        epochs: Epochs of starting models and of Retrain.
        device: Where models run.
        preset: What else the starting models are trained by, and what decides grids and membership attack.
    """

    folder: Path
    dataset: str = "digits"
    model: str = "resnet_small"
    epochs: int = 60
    device: str = "cpu"
    preset: TrainingPreset = "small"

    @property
    def _name(self) -> str:
        preset = "" if self.preset == "small" else f"-{self.preset}"
        return f"{self.model.replace('/', '-')}-{Path(self.dataset).stem}-{self.epochs}{preset}"

    def start(self, seed: int) -> Path:
        """The folder of a starting model, trained if it is not there."""
        folder = self.folder / "models" / f"{self._name}-{seed}"
        if not folder.exists():
            # Another process that shares the folder may be training the same one.
            mine = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
            run_training(
                TrainConfig(
                    preset=self.preset, model=self.model, dataset=self.dataset, epochs=self.epochs, seed=seed,
                    output_dir=str(mine),
                )
            )  # fmt: skip
            try:
                mine.rename(folder)
            except OSError:
                if not folder.exists():
                    raise
                shutil.rmtree(mine)
        return folder

    def run(self, cell: Cell) -> dict[str, Any]:
        """The result of a cell: scores and seconds, or why it failed."""
        path = self.folder / "cells" / self._name / f"{cell.name}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps({**dataclasses.asdict(cell), **self._unlearn(cell)}, indent=1))
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def _unlearn(self, cell: Cell) -> dict[str, Any]:
        start = self.start(cell.seed)
        classifier, size = load_classifier(start)
        classifier.model.to(self.device)
        record = load_record(start)
        pools = load_pools(
            self.dataset, seed=record["data_seed"], image_size=size, validation=record["validation_share"]
        )
        split = make_split(pools, cell)
        clock = Clock({})
        with clock.stage("mask"):
            mask = make_mask(cell.mask, classifier, split.forget, ratio=cell.mask_ratio, seed=cell.seed)
        augmentation = Augmentation(record["shift"], record["flip"])
        task = Task(classifier, split, mask, cell.seed, cell.norm_stats, augmentation)
        settings = dict(cell.settings)
        training = {name: settings.pop(name) for name in TRAINING_FLAGS if name in settings}
        method = METHODS[cell.method](**settings)
        if cell.method == "retrain":
            method = dataclasses.replace(method, training=recipe_of(record))
        elif training:
            method = dataclasses.replace(method, training=dataclasses.replace(method.training, **training))
        started = time.perf_counter()
        try:
            unlearned = method(task)
            seconds = time.perf_counter() - started
            rule: MiaRule = "drawn" if self.preset == "small" else "official"
            scores = measure(unlearned.classifier, split, seed=cell.seed, mia=rule)
        except UserError as error:  # Also of a model that broke in its last step, and cannot be measured.
            return {"failed": str(error)}
        return {**scores.to_json(), "seconds": seconds, "mask_seconds": clock.seconds["mask"]}

    def gap(self, cell: Cell) -> float:
        """The average gap of a cell to Retrain of the same scenario and seed; infinite if it failed."""
        result = self.run(cell)
        return gap_between(result, self.run(Cell(cell.scenario, "retrain", cell.seed)))

    def tuned(self, scenario: str, method: str, mask: str) -> tuple[tuple[str, Any], ...]:
        """The settings of the method's grid with the smallest mean gap over the tuning seeds."""

        def mean_gap(settings: tuple[tuple[str, Any], ...]) -> float:
            return math.fsum(
                self.gap(Cell(scenario, method, seed, mask, settings=settings)) for seed in TUNING_SEEDS
            ) / len(TUNING_SEEDS)

        return min(grid(method, self.preset), key=mean_gap)


def make_split(pools: Pools, cell: Cell) -> ForgetSplit:
    """The forget set of a cell."""
    kind, _, amount = cell.scenario.partition("-")
    if kind == "class":
        return forget_class(pools, str(cell.seed % pools.train.num_classes))
    if kind == "random":
        return forget_fraction(pools, float(amount), cell.seed)
    order = torch.randperm(len(pools.train), generator=stream(cell.seed, "instances"))
    return forget_instances(pools, order[: int(amount)].tolist())


def gap_between(result: dict[str, Any], reference: dict[str, Any]) -> float:
    """`average_gap` of two results; infinite if one of them failed."""
    if "failed" in result or "failed" in reference:
        return math.inf
    names = ("unlearning_accuracy", "retain_accuracy", "test_accuracy", "mia")
    values, goals = (tuple(item[name] for name in names) for item in (result, reference))
    return average_gap(values, goals)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Mean:
    """What several runs came to; those that failed are counted and nothing else.

    Args:
        value: Mean of those that ran; NaN where none did.
        deviation: Their sample deviation; None of fewer than two, which have none.
        ran: How many ran.
        failed: How many did not.
    """

    value: float
    deviation: float | None
    ran: int
    failed: int = 0

    @property
    def runs(self) -> str:
        """How many ran, and how many did not: ``4, 1 failed``."""
        return f"{self.ran}, {self.failed} failed" if self.failed else str(self.ran)

    @property
    def percent(self) -> str:
        """Mean ± deviation in percent; a single run has no ±, and none is ``failed``."""
        if not self.ran:
            return "failed"
        spread = "" if self.deviation is None else f" ± {100 * self.deviation:.2f}"
        return f"{100 * self.value:.2f}{spread}"


def mean_of(values: Iterable[float]) -> Mean:
    """Mean and sample deviation of runs; what is not finite stands for one that failed."""
    found = list(values)
    good = [value for value in found if math.isfinite(value)]
    failed = len(found) - len(good)
    if not good:
        return Mean(math.nan, None, 0, failed)
    mean = math.fsum(good) / len(good)
    if len(good) < 2:
        return Mean(mean, None, 1, failed)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in good) / (len(good) - 1))
    return Mean(mean, deviation, len(good), failed)
