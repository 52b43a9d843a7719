"""Classifiers by name or from a folder, and how they are written."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from salun_diffusers.arguments import ANY_SEED, LARGEST, MOST
from salun_diffusers.classification.classifier import Classifier
from salun_diffusers.classification.preprocessing import PROCESSOR, read_json, read_preprocessing
from salun_diffusers.errors import UserError, one_line
from salun_diffusers.evaluation.json_values import is_of
from salun_diffusers.evaluation.pretrained import mismatched
from salun_diffusers.progress import loading_quietly

# Pictures are resized to this many pixels; other models take them as they come. The plain ResNet's stem divides a
# side by four.
IMAGE_SIZES = {"resnet_small": 32}
_RECORDED: dict[type, tuple[str, ...]] = {
    str: ("dataset", "schedule"),
    bool: ("flip",),
    int: ("data_seed", "epochs", "batch_size", "shift", "seed"),
    float: ("validation_share", "learning_rate", "momentum", "weight_decay"),
}
MODELS = ("resnet_small", "resnet18", "resnet50", "vgg16_bn", "vit", "timm/NAME")


def make_classifier(
    name: str, *, class_names: tuple[str, ...], channels: int, image_size: int, seed: int
) -> Classifier:
    """A classifier with fresh weights.

    ``resnet_small`` (11 layers at most 64 wide) and ``vit`` are plain transformers models; ``resnet18``, ``resnet50``
    (CIFAR stem) and ``vgg16_bn`` are those of `evaluation.small_picture_networks`; ``timm/NAME`` needs timm.

    Args:
        name: One of `MODELS`.
        class_names: One name per class.
        channels: Channels of the pictures.
        image_size: Side of the pictures.
        seed: Seed of the weights; the global random state is left as it was.

    Raises:
        UserError: If there is no such model or timm is missing.
    """
    labels = dict(enumerate(class_names))
    named = {"id2label": labels, "label2id": {label: number for number, label in labels.items()}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(name, {**named, "num_channels": channels}, image_size)
    return Classifier(model, len(class_names), (0.5,) * channels, (0.5,) * channels)


def _build(name: str, settings: dict[str, Any], image_size: int) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

    from salun_diffusers.evaluation.small_picture_networks import (
        VGG,
        SmallPictureResNet,
        SmallPictureResNetConfig,
        VGGConfig,
    )

    if name == "resnet_small":
        return ResNetForImageClassification(
            ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 64], depths=[2, 2, 1], layer_type="basic", **settings)
        )
    if name == "resnet18":
        basic = SmallPictureResNetConfig(
            embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", **settings
        )
        return SmallPictureResNet(basic)
    if name == "resnet50":
        return SmallPictureResNet(SmallPictureResNetConfig(**settings))
    if name == "vgg16_bn":
        return VGG(VGGConfig(**settings))
    if name == "vit":
        patch = max(1, image_size // 8)
        return ViTForImageClassification(
            ViTConfig(
                hidden_size=192,
                num_hidden_layers=6,
                num_attention_heads=3,
                intermediate_size=768,
                image_size=image_size,
                patch_size=patch,
                hidden_dropout_prob=0.0,
                **settings,
            )
        )
    if name.startswith("timm/"):
        return _timm(name.removeprefix("timm/"), settings)
    if Path(name).expanduser().is_dir():
        raise UserError(
            f"--model must be one of {', '.join(MODELS)}: a new network is trained, the folder {name} is not taken up. "
            f"`salun unlearn-classifier --model {name}` works on a trained classifier."
        )
    raise UserError(f"--model must be one of {', '.join(MODELS)}; got {name!r}.")


def _timm(name: str, settings: dict[str, Any]) -> nn.Module:
    """A timm network inside transformers' wrapper, which gives it `save_pretrained`."""
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    channels = settings.pop("num_channels")
    try:
        config = TimmWrapperConfig(architecture=name, model_args={"in_chans": channels}, **settings)
        return TimmWrapperForImageClassification(config)
    except ImportError as error:
        raise UserError("timm/NAME models need timm: pip install 'salun-diffusers[timm]'.") from error
    except RuntimeError as error:
        raise UserError(f"timm cannot make {name!r}: {error}.") from error


def fresh_copy(classifier: Classifier, seed: int) -> Classifier:
    """The same network with new random weights; the global random state is left as it was.

    Args:
        classifier: Gives the network; it is not changed.
        seed: Seed of the weights.

    Raises:
        UserError: If a layer holds weights and does not know how to draw new ones.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = getattr(classifier.model, "config", None)
        if config is not None:
            model: nn.Module = type(classifier.model)(copy.deepcopy(config))
        else:
            model = copy.deepcopy(classifier.model).cpu()
            for name, module in model.named_modules():
                own = [*module.parameters(recurse=False)]
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()
                elif own:
                    raise UserError(
                        f"Retraining needs new weights, but {name or 'the model'} ({type(module).__name__}) has no "
                        "reset_parameters; give it one, or use a transformers model."
                    )
    model.to(classifier.device)
    return Classifier(model, classifier.num_classes, classifier.mean, classifier.std, classifier.head)


def save_classifier(classifier: Classifier, folder: Path, image_size: int, record: dict[str, Any]) -> None:
    """Write a transformers model with the normalisation it was trained on and a record of its training.

    Args:
        classifier: The model, one of transformers.
        folder: Where it goes.
        image_size: Side of the pictures.
        record: JSON values; what `load_record` gives back.
    """
    model: Any = classifier.model
    with loading_quietly():
        model.save_pretrained(folder)
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "size": {"height": image_size, "width": image_size},
        "image_mean": list(classifier.mean),
        "image_std": list(classifier.std),
    }
    (folder / PROCESSOR).write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def load_classifier(folder: Path) -> tuple[Classifier, int | None]:
    """Read a classifier and the picture size it was trained on, if its folder says so.

    Raises:
        UserError: If the folder is no image classifier of transformers, holds pickled weights only, or lacks weights;
            if it does not say how pictures are prepared.
    """
    from transformers import AutoModelForImageClassification

    from salun_diffusers.evaluation import small_picture_networks  # noqa: F401 - registers its models

    if not (folder / "config.json").is_file():
        raise UserError(f"--model {folder} is no model folder: it has no config.json. Run `salun train-classifier`.")
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"--model {folder} must hold safetensors weights, found none; pickled weights are not opened.")
    try:
        with loading_quietly():
            model, found = AutoModelForImageClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
    except Exception as error:  # transformers and safetensors raise many kinds; all mean a folder that does not load.
        raise UserError(f"--model {folder} cannot be loaded as an image classifier: {one_line(error)}") from error
    if unlike := mismatched(found):
        raise UserError(f"--model {folder} needs weights that fit its config.json; {unlike}.")
    # transformers draws what is missing at random and goes on; a counter of batches is no weight.
    missing = sorted(name for name in found["missing_keys"] if not name.endswith("num_batches_tracked"))
    if missing:
        raise UserError(
            f"--model {folder} lacks {len(missing)} weights, the first is {missing[0]}: they would be drawn at random. "
            "A classifier whose head was trained is required."
        )
    known = read_preprocessing(folder)
    channels = getattr(model.config, "num_channels", None)
    if channels is not None and not {len(known.mean), len(known.std)} <= {1, channels}:
        raise UserError(
            f"{folder / PROCESSOR} normalises {len(known.mean)} channels, the model takes pictures of {channels}."
        )
    return Classifier(model, model.config.num_labels, known.mean, known.std), known.size


def names_of(classifier: Classifier) -> tuple[str, ...]:
    """The classes of a transformers model, in the order of its outputs."""
    config: Any = classifier.model.config
    return tuple(str(config.id2label[number]) for number in range(config.num_labels))


def load_record(folder: Path) -> dict[str, Any]:
    """What `save_classifier` recorded of the training; empty for a folder from elsewhere.

    Raises:
        UserError: If a setting is of another type, or of a value that a training cannot have.
    """
    record = read_json(folder / "training.json")
    for kind, names in _RECORDED.items():
        for name in names:
            value = record.get(name)
            if value is None:
                continue
            most = {int: MOST, float: LARGEST}.get(kind, 0.0)  # As of the flags: Retrain takes them over.
            most = ANY_SEED if name.endswith("seed") else 1 - 1e-9 if name == "validation_share" else most
            if not is_of(value, kind) or (kind in (int, float) and not 0 <= value <= most):
                raise UserError(f"{folder / 'training.json'} is damaged: {name!r} cannot be {str(value)[:60]!r}.")
    return record
