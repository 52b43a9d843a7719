"""Every setting of training and unlearning a classifier; light enough for `--help`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from salun_diffusers.arguments import setting

MethodName = Literal[
    "salun", "salun_soft", "rl", "ft", "ga", "iu", "be", "bs", "l1_sparse", "l2ul", "ssd", "scrub", "retrain"
]
_DATA, _FORGET, _MASK, _METHOD, _TRAIN, _RUN = (
    "Model and data", "What to forget", "Saliency mask", "Method", "Training", "Run",
)  # fmt: skip
_DATASETS = "digits, shapes, cifar10, cifar100, svhn, tiny-imagenet, an image folder or a .safetensors file."


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a starting model."""

    model: str = setting("resnet_small", "resnet_small, resnet18, resnet50, vgg16_bn, vit, or timm/NAME.", group=_DATA)
    dataset: str = setting("digits", _DATASETS, group=_DATA)
    data_seed: int = setting(0, "Seed of what is held out; unlearning takes it over.", group=_DATA, minimum=0)
    image_size: int | None = setting(None, "Side to resize to; by default as the model needs.", group=_DATA, minimum=1)
    validation_share: float = setting(
        0.0, "Share of each class held out beside the test set.", group=_DATA, minimum=0, maximum=0.9
    )
    epochs: int = setting(60, "Passes over the training set.", group=_TRAIN, minimum=1)
    learning_rate: float = setting(0.05, "Step size of SGD.", group=_TRAIN, above=0)
    momentum: float = setting(0.9, "Momentum.", group=_TRAIN, minimum=0, maximum=0.999)
    weight_decay: float = setting(5e-4, "L2 penalty.", group=_TRAIN, minimum=0)
    batch_size: int = setting(64, "Pictures a batch.", group=_TRAIN, minimum=1)
    schedule: Literal["constant", "cosine"] = setting("cosine", "Course of the learning rate.", group=_TRAIN)
    shift: int = setting(0, "Augmentation: pixels to pad and crop by.", group=_TRAIN, minimum=0)
    flip: bool = setting(False, "Augmentation: mirror half of the pictures.", group=_TRAIN)
    output_dir: str = setting("runs/classifier", "Folder of the model.", group=_RUN)
    seed: int = setting(0, "Seed of weights and batches.", group=_RUN, minimum=0, maximum=2**31 - 1)


@dataclass(frozen=True)
class UnlearnConfig:
    """Settings of one unlearning. `None` means: as the method has it."""

    model: str = setting("runs/classifier", "Folder of the trained classifier.", group=_DATA)
    dataset: str | None = setting(None, f"{_DATASETS} By default what the model was trained on.", group=_DATA)
    data_seed: int | None = setting(None, "Seed of what is held out; by default the model's.", group=_DATA, minimum=0)

    forget_class: str | None = setting(None, "A class, by name or number.", group=_FORGET)
    forget_ratio: float | None = setting(
        None, "A share of the training set, drawn from all classes.", group=_FORGET, above=0, maximum=1
    )
    forget_indices: str | None = setting(None, "File with positions in the training set.", group=_FORGET)

    mask: str | None = setting(
        None, "saliency, random, random_like, magnitude, full, or a file (salun: saliency, others: full).", group=_MASK
    )
    mask_ratio: float = setting(0.5, "Share of the weights that may move.", group=_MASK, above=0, maximum=1)
    mask_scope: Literal["global", "per_tensor"] = setting(
        "global", "Rank weights over the whole model or within each tensor.", group=_MASK
    )

    method: MethodName = setting("salun", "How to unlearn.", group=_METHOD)
    retain_weight: float | None = setting(None, "rl, salun, salun_soft, scrub: α.", group=_METHOD, minimum=0)
    order: Literal["together", "sequential", "mixed"] | None = setting(
        None, "rl, salun, salun_soft: together as in the paper; the others as in the official code.", group=_METHOD
    )
    labels: Literal["other", "any"] | None = setting(
        None, "rl, salun, salun_soft: whether a drawn label may be the true one.", group=_METHOD
    )
    frozen_share: float | None = setting(
        None, "salun_soft: share of changes taken back at the start.", group=_METHOD, minimum=0, maximum=1
    )
    penalty: float | None = setting(None, "l1_sparse: γ.", group=_METHOD, minimum=0)
    step: float | None = setting(None, "iu: α.", group=_METHOD)
    inverse: Literal["official", "diag", "cg"] | None = setting(None, "iu: how the inverse is taken.", group=_METHOD)
    damping: float | None = setting(None, "iu: λ of diag and cg.", group=_METHOD, above=0)
    fgsm_step: float | None = setting(None, "bs: step per pixel.", group=_METHOD, above=0)
    keep_output: Literal["on", "off"] | None = setting(None, "be: keep the extra class.", group=_METHOD)
    goal: Literal["misclassify", "relabel"] | None = setting(None, "l2ul: what the forget set becomes.", group=_METHOD)
    adversarial: Literal["on", "off"] | None = setting(None, "l2ul: use adversarial pictures.", group=_METHOD)
    importance: Literal["on", "off"] | None = setting(None, "l2ul: hold weights by importance.", group=_METHOD)
    radius: float | None = setting(None, "l2ul: ε of the attack, L2 over pixels in [0, 1].", group=_METHOD, above=0)
    copies: int | None = setting(None, "l2ul: adversarial pictures per forget picture.", group=_METHOD, minimum=1)
    attack_steps: int | None = setting(None, "l2ul: steps of the attack.", group=_METHOD, minimum=1)
    holding: float | None = setting(None, "l2ul: λ of the importance penalty.", group=_METHOD, minimum=0)
    selection: float | None = setting(None, "ssd: α.", group=_METHOD, minimum=0)
    dampening: float | None = setting(None, "ssd: λ.", group=_METHOD, minimum=0)
    ascent_epochs: int | None = setting(None, "scrub: epochs with the forget set.", group=_METHOD, minimum=0)
    distillation: float | None = setting(None, "scrub: α.", group=_METHOD, minimum=0)

    epochs: int | None = setting(None, "Passes over the data.", group=_TRAIN, minimum=1)
    learning_rate: float | None = setting(None, "Step size of SGD.", group=_TRAIN, above=0)
    momentum: float | None = setting(None, "Momentum.", group=_TRAIN, minimum=0, maximum=0.999)
    weight_decay: float | None = setting(None, "L2 penalty of the selected weights.", group=_TRAIN, minimum=0)
    batch_size: int | None = setting(None, "Pictures a batch.", group=_TRAIN, minimum=1)
    schedule: Literal["constant", "cosine"] | None = setting(None, "Course of the learning rate.", group=_TRAIN)
    norm_stats: Literal["update", "freeze"] = setting(
        "update", "Whether batch norms update their statistics; no mask covers those.", group=_TRAIN
    )
    shift: int = setting(0, "Augmentation: pixels to pad and crop by.", group=_TRAIN, minimum=0)
    flip: bool = setting(False, "Augmentation: mirror half of the pictures.", group=_TRAIN)

    retrain: bool = setting(False, "Also retrain from new weights by the model's own recipe, and compare.", group=_RUN)
    output_dir: str | None = setting(None, "Folder of the run (default: runs/NNNN-<forgotten>-…).", group=_RUN)
    seed: int = setting(0, "Seed of everything random.", group=_RUN, minimum=0, maximum=2**31 - 1)


METHOD_SETTINGS = (
    "retain_weight", "order", "labels", "frozen_share", "penalty", "step", "inverse", "damping", "fgsm_step",
    "keep_output", "goal", "adversarial", "importance", "radius", "copies", "attack_steps", "holding", "selection",
    "dampening", "ascent_epochs", "distillation",
)  # fmt: skip
TRAINING_SETTINGS = ("epochs", "learning_rate", "momentum", "weight_decay", "batch_size", "schedule")
