"""Every setting of training and unlearning a classifier; light enough for `--help`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar, get_type_hints

from salun_diffusers.arguments import ANY_SEED, setting
from salun_diffusers.classification.hyper_parameters import HYPER_PARAMETERS, Training
from salun_diffusers.classification.presets import Normalisation, TrainingPreset, UnlearningPreset

T = TypeVar("T")
Flag: TypeAlias = "tuple[Any, Any]"  # a type and a field of that type
MethodName = Literal[
    "salun", "salun_soft", "rl", "ft", "ga", "iu", "be", "bs", "l1_sparse", "l2ul", "ssd", "scrub", "retrain"
]
_DATA, _FORGET, _MASK = "Model and data", "What to forget", "Saliency mask"
_METHOD, _TRAIN, _RUN = "Method", "Training", "Run"
_DATASETS = "digits, shapes, cifar10, cifar100, svhn, tiny-imagenet, an image folder or a .safetensors file."


def _flag(hint: Any, declared: dataclasses.Field[Any], **metadata: str) -> Flag:
    """A hyper-parameter as a flag that is left open; what is on or off then says so."""
    hint = (Literal["on", "off"] if hint is bool else hint) | None
    return hint, dataclasses.field(default=None, metadata={**declared.metadata, **metadata})


def _training_flags() -> dict[str, Flag]:
    """The settings of SGD as flags, all left open."""
    hints = get_type_hints(Training)
    return {
        declared.name: _flag(hints[declared.name], declared, group=_TRAIN) for declared in dataclasses.fields(Training)
    }


def _method_flags() -> dict[str, Flag]:
    """The hyper-parameters with a help text, all left open; each says which methods have it."""
    flags: dict[str, Flag] = {}
    meanings: dict[str, dict[str, list[str]]] = {}  # flag → help text → methods that mean this by it
    for method, kind in HYPER_PARAMETERS.items():
        hints = get_type_hints(kind)
        for declared in dataclasses.fields(kind):
            name, text = declared.name, declared.metadata.get("help")
            if text:
                meanings.setdefault(name, {}).setdefault(text.rstrip("."), []).append(method)
                told = "; ".join(f"{', '.join(methods)}: {meaning}" for meaning, methods in meanings[name].items())
                flags[name] = _flag(hints[name], declared, group=_METHOD, help=f"{told}.")
    return flags


METHOD_FLAGS, TRAINING_FLAGS = _method_flags(), _training_flags()


def _with_flags(flags: Mapping[str, Flag], *, after: str) -> Callable[[type[T]], type[T]]:
    """Give a class that is about to become a dataclass further fields, after one of its own."""

    def add(kind: type[T]) -> type[T]:
        own, kind.__annotations__ = kind.__annotations__, {}
        for name, hint in own.items():
            kind.__annotations__[name] = hint
            for flag, (flag_hint, declared) in flags.items() if name == after else ():
                kind.__annotations__[flag] = flag_hint
                setattr(kind, flag, declared)
        return kind

    return add


@dataclass(frozen=True)
@_with_flags(TRAINING_FLAGS, after="validation_share")
class TrainConfig:
    """Settings of a starting model, those of SGD (`Training`) among them. `None` means: as the preset has it."""

    preset: TrainingPreset = setting(
        "small", "small: a small net on digits; salun-table1: ResNet-18 on CIFAR-10 as in SalUn's Table 1.", group=_DATA
    )
    model: str | None = setting(None, "resnet_small, resnet18, resnet50, vgg16_bn, vit, or timm/NAME.", group=_DATA)
    dataset: str | None = setting(None, _DATASETS, group=_DATA)
    data_seed: int = setting(
        0, "Seed of what is held out; unlearning takes it over.", group=_DATA, minimum=0, maximum=ANY_SEED
    )
    image_size: int | None = setting(
        None, "Side to resize to; by default as the model needs.", group=_DATA, minimum=1, maximum=16384
    )
    validation_share: float | None = setting(
        None, "Share of each class held out beside the test set.", group=_DATA, minimum=0, maximum=0.9
    )
    shift: int | None = setting(
        None, "Augmentation: pixels to pad and crop by.", group=_TRAIN, minimum=0, maximum=16384
    )
    flip: Literal["on", "off"] | None = setting(None, "Augmentation: mirror half of the pictures.", group=_TRAIN)
    normalisation: Normalisation | None = setting(
        None,
        "Mean and deviation by which pixels are normalised: half is 0.5 and 0.5.",
        group=_DATA,
    )
    output_dir: str = setting("runs/classifier", "Folder of the model.", group=_RUN)
    seed: int = setting(0, "Seed of weights and batches.", group=_RUN, minimum=0, maximum=2**31 - 1)


@dataclass(frozen=True)
@_with_flags(METHOD_FLAGS | TRAINING_FLAGS, after="method")
class UnlearnConfig:
    """Settings of one unlearning, with the hyper-parameters of all methods. `None` means: as the method has it."""

    model: str = setting("runs/classifier", "Folder of the trained classifier.", group=_DATA)
    dataset: str | None = setting(None, f"{_DATASETS} By default what the model was trained on.", group=_DATA)
    data_seed: int | None = setting(
        None, "Seed of what is held out; by default the model's.", group=_DATA, minimum=0, maximum=ANY_SEED
    )

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

    soft_threshold: Literal["none", "proximal", "probabilistic", "continuous"] = setting(
        "none",
        "proximal: all changes are shrunk after each step (SalUn-soft); probabilistic: the mask is drawn, each weight "
        "by a probability from its score; continuous: that probability scales each weight's updates.",
        group=_MASK,
    )
    soft_share: float | None = setting(
        None,
        "proximal: share of the changes taken back in the first epoch, falling to 0 in the last; 0.5 by default.",
        group=_MASK,
        minimum=0,
        maximum=1,
    )
    mask_temperature: float | None = setting(
        None,
        "probabilistic, continuous: T of p = 1 / (1 + (c/s)^(1/T)) of a score s; 0.25 by default, small is almost the "
        "hard mask.",
        group=_MASK,
        minimum=0.01,
        maximum=100,
    )
    mask_draws: Literal["fixed", "step"] | None = setting(
        None, "probabilistic: one draw for the whole run (fixed, the default) or one for each step.", group=_MASK
    )

    preset: UnlearningPreset | None = setting(
        None, "The method's settings in SalUn's Table 1; flags come first.", group=_METHOD
    )
    method: MethodName = setting("salun", "How to unlearn.", group=_METHOD)
    norm_stats: Literal["update", "freeze"] = setting(
        "update", "Whether batch norms update their statistics; no mask covers those.", group=_TRAIN
    )
    shift: int | None = setting(
        None,
        "Augmentation: pixels to pad and crop by; by default as the model was trained.",
        group=_TRAIN,
        minimum=0,
        maximum=16384,
    )
    flip: Literal["on", "off"] | None = setting(
        None, "Augmentation: mirror half of the pictures; by default as the model was trained.", group=_TRAIN
    )

    mia: Literal["drawn", "official"] | None = setting(
        None,
        "Whom the membership attack learns from: as many retained as test pictures, drawn (default); or as in the "
        "official code, all test pictures and as many of the first retained ones.",
        group=_RUN,
    )
    retrain: bool = setting(False, "Also retrain from new weights by the model's own recipe, and compare.", group=_RUN)
    output_dir: str | None = setting(None, "Folder of the run (default: runs/NNNN-<forgotten>-…).", group=_RUN)
    seed: int = setting(0, "Seed of everything random.", group=_RUN, minimum=0, maximum=2**31 - 1)
