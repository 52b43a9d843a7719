"""Settings that belong together, by name: those of a small net, and those of SalUn's Table 1.

Table 1 of arXiv 2310.12508 is ResNet-18 on CIFAR-10. Its settings are those of OPTML-Group/Unlearn-Saliency@a6e89fd,
Classification/ (`arg_parser.py`, `main_train.py`, README). What it does not say, the rates of most methods, is taken
from the ranges that are said to be the paper's and marked so below: they were searched, the winners are not published.

Differs from the official code: the model of the last epoch is kept (there the best on the validation set); what is held
out is drawn by another generator, and the same for training and unlearning (there two seeds give two splits).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, TypeVar

from salun_diffusers.errors import UserError

T = TypeVar("T")
TrainingPreset: TypeAlias = Literal["small", "salun-table1"]
UnlearningPreset: TypeAlias = Literal["salun-table1"]
Normalisation: TypeAlias = Literal["half", "cifar10"]

# Mean and deviation of each channel; one number stands for every channel.
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "half": ((0.5,), (0.5,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}
_SGD = {"momentum": 0.9, "weight_decay": 5e-4}
TRAINING: dict[str, dict[str, Any]] = {
    "small": {
        "model": "resnet_small", "dataset": "digits", "validation_share": 0.0, "normalisation": "half",
        "epochs": 60, "learning_rate": 0.05, "batch_size": 64, "schedule": "cosine", "milestones": ("91", "136"),
        **_SGD, "shift": 0, "flip": "off",
    },
    "salun-table1": {
        "model": "resnet18", "dataset": "cifar10", "validation_share": 0.1, "normalisation": "cifar10",
        "epochs": 182, "learning_rate": 0.1, "batch_size": 256, "schedule": "multistep", "milestones": ("91", "136"),
        **_SGD, "shift": 4, "flip": "on",
    },
}  # fmt: skip

# A schedule with milestones beyond the last epoch is a constant one, as it is there.
_TEN_EPOCHS = {"epochs": 10, "batch_size": 256, "schedule": "multistep", "milestones": ("91", "136"), **_SGD}
_OFFICIAL_LABELS = {"labels": "any", "learning_rate": 0.013}
UNLEARNING: dict[str, dict[str, dict[str, Any]]] = {
    "salun-table1": {
        "salun": {**_TEN_EPOCHS, **_OFFICIAL_LABELS, "order": "sequential"},
        "rl": {**_TEN_EPOCHS, **_OFFICIAL_LABELS, "order": "sequential"},
        "salun_soft": {**_TEN_EPOCHS, **_OFFICIAL_LABELS, "order": "mixed", "anchor": "epoch"},
        "ft": {**_TEN_EPOCHS, "learning_rate": 0.01},
        "ga": {**_TEN_EPOCHS, "epochs": 5, "learning_rate": 1e-4},
        "l1_sparse": {**_TEN_EPOCHS, "learning_rate": 0.01, "penalty": 1e-5},  # γ: range 1e-6 to 1e-4
        "iu": {"inverse": "official", "samples": 1000, "step": 5.0},  # α: range 1 to 20
        "be": {**_TEN_EPOCHS, "learning_rate": 1e-5, "keep_output": "on"},  # rate: range 1e-6 to 1e-4
        "bs": {**_TEN_EPOCHS, "learning_rate": 1e-5, "exclude_true": "off"},  # rate: range 1e-6 to 1e-4
        "retrain": {},  # The model's own recipe.
    }
}
"""By preset and method; beside them the official membership attack."""


def filled(config: T, values: Mapping[str, Any]) -> T:
    """The settings with `values` for those that are None: a flag comes before a preset."""
    left_open = {name: value for name, value in values.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **left_open)  # type: ignore[type-var]


def unlearning_preset(preset: str | None, method: str) -> Mapping[str, Any]:
    """What a preset says of a method; nothing without a preset.

    Raises:
        UserError: If the preset does not have the method.
    """
    if preset is None:
        return {"mia": "drawn"}
    known = UNLEARNING[preset]
    if method not in known:
        raise UserError(
            f"--preset {preset} has the methods {', '.join(known)}; got --method {method}: leave --preset out."
        )
    return {**known[method], "mia": "official"}
