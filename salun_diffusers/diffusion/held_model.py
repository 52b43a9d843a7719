"""A pipeline in memory as the model of a run: described by its configurations, its weights never on disk."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from salun_diffusers.diffusion.base_model import Loading
from salun_diffusers.diffusion.families.erasable import FAMILIES
from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.families.known import family_of
from salun_diffusers.diffusion.held_weights import plain_weights, require_plain, working_copy
from salun_diffusers.diffusion.presets.text_space import NOT_AT_HAND, TextEncoderSpace, TextSpace
from salun_diffusers.errors import UserError
from salun_diffusers.files.pipeline_folder import EMBEDDED
from salun_diffusers.files.stored_weights import weights_sha256
from salun_diffusers.files.whole_files import write_json
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.patch import WeightPatch
from salun_diffusers.masks.receipt import MaskReceipt, count_moves
from salun_diffusers.progress import loading_quietly

CALLED = "the pipeline"
"""What messages call it."""
# Around the network of a text-to-image pipeline, which is what is erased from.
_SAME_NETWORK = {
    "StableDiffusionImg2ImgPipeline": "StableDiffusionPipeline",
    "StableDiffusionControlNetPipeline": "StableDiffusionPipeline",
    "StableDiffusionXLImg2ImgPipeline": "StableDiffusionXLPipeline",
    "StableDiffusionXLControlNetPipeline": "StableDiffusionXLPipeline",
}
_NOT_READ = ("safety_checker", "feature_extractor", "image_encoder", "watermark")


@dataclass(frozen=True)
class HeldModel:
    """A pipeline of the user's. It is read only; what is computed with is a copy wherever it would change.

    Args:
        pipe: The pipeline, without offloading.
        folder: Where its configurations are written, as `described` does it.
        device: Where it is computed with.
        place: Folder's name that its denoiser goes by: its own, or that of an erased one.
        written: Weights of denoisers that were put under a folder's name, on the CPU.
    """

    pipe: Any
    folder: Path
    device: torch.device
    place: Path
    written: dict[Path, dict[str, Tensor]] = field(default_factory=dict)
    is_held = True
    result = "pipeline"

    @classmethod
    def described(cls, pipe: Any, folder: Path, device: torch.device) -> HeldModel:
        """Write a pipeline's configurations, a few kilobytes, so that all that asks a folder can ask this one.

        Args:
            pipe: The pipeline.
            folder: A new folder.
            device: Where it is to be computed with.
        """
        index: dict[str, Any] = {name: value for name, value in pipe.config.items() if not name.startswith("_")}
        for name, part in pipe.components.items():
            index[name] = [type(part).__module__.split(".")[0], type(part).__name__] if part is not None else [None] * 2
            config = getattr(getattr(part, "_orig_mod", part), "config", None)
            if config is not None:
                values = config.to_dict() if hasattr(config, "to_dict") else {"_class_name": index[name][1], **config}
                file = "scheduler_config.json" if name == "scheduler" else "config.json"
                write_json(folder / name / file, _as_json(values))
        kinds = [kind.__name__ for kind in type(pipe).__mro__]
        index["_class_name"] = next((_SAME_NETWORK.get(kind, kind) for kind in kinds
                                     if _SAME_NETWORK.get(kind, kind) in FAMILIES), kinds[0])  # fmt: skip
        write_json(folder / "model_index.json", _as_json(index))
        return cls(pipe, folder, device, folder)

    @property
    def name(self) -> str:
        """What it was loaded from: an embedded model's name, a folder or a hub id, or else its class."""
        configs = (self.pipe.config, getattr(getattr(self.pipe, "unet", None), "config", {}))
        path = next((str(config["_name_or_path"]) for config in configs if config.get("_name_or_path")), "")
        whole = Path(path).parent  # A network knows where it lies in the pipeline that it was loaded with.
        path = str(whole) if Path(path).name == "unet" and (whole / "model_index.json").is_file() else path
        embedded = (name for name, folder in EMBEDDED.items() if path and Path(path).resolve() == folder.resolve())
        return next(embedded, path or type(self.pipe).__name__)

    def at(self, folder: Path) -> HeldModel:
        """The one erased from it that was put there; of any other folder this model."""
        return dataclasses.replace(self, place=folder)

    def require_complete(self) -> None:
        """Refuse a pipeline that lacks a part, or whose denoiser's weights cannot be changed.

        Raises:
            UserError: Naming what, and the way out.
        """
        if getattr(self.pipe, "hf_device_map", None) is not None:
            raise UserError(
                "A pipeline on one device is required, this one was loaded with a device_map: "
                "`pipe.reset_device_map()` first, then `pipe.to(device)`."
            )
        require_plain(self.pipe.unet)
        for name, part in self._read():
            if part is None:
                raise UserError(f"pipe.{name} is required to erase a concept, it is None: load the whole pipeline.")
            if isinstance(part, nn.Module) and any(tensor.is_meta for tensor in part.parameters()):
                raise UserError(
                    f"Weights in memory are required, pipe.{name} has some on the device `meta`, which holds none: "
                    "load the pipeline with from_pretrained and without low-memory tricks, then erase."
                )

    def counts(self) -> Mapping[str, int]:
        """Weights of each tensor of the denoiser."""
        return {name: tensor.numel() for name, tensor in self.weights().items()}

    def bytes_of_result(self) -> int:
        """The mask is all that is written of that size."""
        return sum(self.counts().values()) // 8

    def text_space(self) -> TextSpace:
        """That of a copy of its first text encoder."""
        encoder, tokenizer = getattr(self.pipe, "text_encoder", None), getattr(self.pipe, "tokenizer", None)
        if encoder is None or tokenizer is None:
            return NOT_AT_HAND
        plain = copy.deepcopy(getattr(encoder, "_orig_mod", encoder))
        return TextEncoderSpace.around(tokenizer, plain.to("cpu", torch.float32).eval())

    def weights(self) -> dict[str, Tensor]:
        """The denoiser's, by plain name; of the pipeline's own the live ones."""
        return self.written[self.place] if self.place in self.written else plain_weights(self.pipe.unet)

    def identity(self) -> str:
        """SHA-256 of weights, configurations and vocabularies of all that erasing reads."""
        digest = hashlib.sha256()
        for name, part in self._read():
            config = getattr(part, "config", {})
            values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
            if hasattr(part, "get_vocab"):
                values |= {"vocabulary": part.get_vocab()}
            digest.update(f"{name}\0{type(part).__name__}\0{json.dumps(values, sort_keys=True, default=str)}".encode())
            if isinstance(part, nn.Module):
                weights = self.weights() if name == "unet" else part.state_dict()
                whole = {key: x.detach().cpu() for key, x in weights.items() if isinstance(x, Tensor)}
                digest.update(weights_sha256(whole).encode())
        return digest.hexdigest()

    def family(self, pipeline_class: str, loading: Loading) -> Family:
        """A pipeline of the family's own: the denoiser copied in fp32, other parts shared where they are as wanted.

        So the caller's modules never change mode, device or data type, and the caller's scheduler none of its state.
        """
        kind: Any = family_of(pipeline_class)
        config = {name: value for name, value in self.pipe.config.items() if not name.startswith("_")}
        known = {**config, **self.pipe.components, **kind.options}
        parts = {name: known[name] for name in inspect.signature(kind.pipeline.__init__).parameters if name in known}
        for name, part in parts.items():
            if name == "unet":
                parts[name] = working_copy(part, self.weights(), loading.device)
            elif name == "scheduler":
                parts[name] = type(part).from_config(part.config)
            elif isinstance(part, nn.Module):
                parts[name] = None if name in _NOT_READ else _ready(part, loading)
        with loading_quietly():
            pipe = kind.pipeline(**parts)
        family: Family = kind.around(
            pipe, Path(CALLED), device=loading.device, dtype=loading.dtype, prediction_type=loading.prediction_type,
            resolution=loading.resolution,
        )  # fmt: skip
        return family

    def dtypes(self) -> Mapping[str, torch.dtype]:
        """As they are in the pipeline."""
        return {name: tensor.dtype for name, tensor in self.weights().items()}

    def write(self, target: Path, denoiser: nn.Module) -> list[Path]:
        """Keep an erased denoiser under a folder's name; no file is written."""
        self.written[target] = {name: tensor.detach().cpu() for name, tensor in denoiser.state_dict().items()}
        return []

    def receipt(self, target: Path, mask: SaliencyMask) -> MaskReceipt:
        """Compare every weight."""
        return count_moves(self.tensors(), self.written[target], mask)

    def patch(self, target: Path) -> WeightPatch:
        """Compare every weight."""
        return WeightPatch.between(self.tensors(), self.written[target])

    def loading_line(self) -> str:
        """Empty: it is loaded."""
        return ""

    def tensors(self) -> dict[str, Tensor]:
        """The denoiser's weights, on the CPU."""
        return {name: tensor.cpu() for name, tensor in self.weights().items()}

    def _read(self) -> Iterator[tuple[str, Any]]:
        """The parts that erasing reads; what was wrapped to be compiled, without the wrapper."""
        index = json.loads((self.folder / "model_index.json").read_text(encoding="utf-8"))
        kind: Any = family_of(index["_class_name"])
        for name in sorted(self.pipe.components):
            part = self.pipe.components[name]
            if name in inspect.signature(kind.pipeline.__init__).parameters and name not in _NOT_READ:
                yield name, getattr(part, "_orig_mod", part)


def _ready(part: Any, loading: Loading) -> Any:
    """A part in evaluation, on the device and in the precision of sampling: itself, or a copy where it is not so."""
    part = getattr(part, "_orig_mod", part)
    device = torch.empty(0, device=loading.device).device
    tensors = (*part.parameters(), *part.buffers())
    placed = all(tensor.device == device for tensor in tensors)
    typed = all(tensor.dtype == loading.dtype for tensor in tensors if tensor.is_floating_point())
    if placed and typed and not any(module.training for module in part.modules()):
        return part
    return copy.deepcopy(part).to(device, loading.dtype).eval()


def _as_json(values: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(values, default=str))
