"""Stable Diffusion with an erasure that can be put on, taken off and dosed: one base, one patch of `salun_diffusers`.

    pipe = DiffusionPipeline.from_pretrained(
        BASE, custom_pipeline="erased_stable_diffusion.py", trust_remote_code=True
    )
    pipe.load_erasure("patch.safetensors")  # `salun erase … --save_patch`, `salun patch make`
    pipe.set_erasure_scale(0.6)  # θ₀ + s·Δθ; 1 is the erased model, 0 the base, each to the bit
    pipe.unload_erasure()

A patch knows the SHA-256 of the weights before and after, and goes on no other base. This file needs diffusers, torch
and safetensors only.
"""

# Annotations are real here, not postponed: diffusers before 0.37 looks at them and knows no texts.
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

FORMAT, VERSIONS = "salun_diffusers.patch", ("1", "2")
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class Erasure:
    """A patch on a U-Net.

    Args:
        parameters: The tensors that it changes, by name: those of the U-Net itself.
        places: Where, one bit a weight.
        base: Their values before, in order.
        erased: After.
        scale: How much of the change is in the U-Net now.
    """

    parameters: dict[str, torch.nn.Parameter]
    places: dict[str, torch.Tensor]
    base: dict[str, torch.Tensor]
    erased: dict[str, torch.Tensor]
    scale: float = 0.0

    def values(self, name: str, scale: float) -> torch.Tensor:
        """θ₀ + s·Δθ of one tensor, summed in float32 and rounded once; the ends are exact."""
        if scale in (0.0, 1.0):  # As they are: no formula keeps the sign of a zero.
            return self.base[name] if scale == 0.0 else self.erased[name]
        wide = torch.promote_types(self.base[name].dtype, torch.float32)
        return torch.lerp(self.base[name].to(wide), self.erased[name].to(wide), scale).to(self.base[name].dtype)

    def at(self, scale: float) -> "Erasure":
        """Put the U-Net to another scale; all of it, or nothing if that cannot be.

        Raises:
            ValueError: If its weights are not at hand, are not what they were left as, or would be infinite.
        """
        for name, parameter in self.parameters.items():
            if parameter.is_meta:
                raise ValueError(f"The U-Net's weights must be at hand, {name} is offloaded: set the scale before.")
            left = self.values(name, self.scale).to(parameter.dtype)
            found = parameter.data[_unpack(self.places[name], parameter.shape).to(parameter.device)].cpu()
            if not torch.equal(_bits(left), _bits(found)):
                raise ValueError(
                    f"The U-Net's {name} was changed since its erasure was loaded, by a fused LoRA perhaps: undo that "
                    "first (unfuse_lora), or load the pipeline again."
                )
            wanted = self.values(name, scale).to(parameter.dtype)
            if not wanted.isfinite().all() and left.isfinite().all():
                raise ValueError(f"Scale {scale:g} puts weights of {name} beyond the range of {parameter.dtype}.")
        for name, parameter in self.parameters.items():
            there = _unpack(self.places[name], parameter.shape).to(parameter.device)
            parameter.data.masked_scatter_(there, self.values(name, scale).to(parameter))
        return Erasure(self.parameters, self.places, self.base, self.erased, scale)


class ErasedStableDiffusionPipeline(StableDiffusionPipeline):
    """Stable Diffusion 1.x or 2.x; without an erasure it is diffusers' own pipeline."""

    _erasure: Any = None

    @property
    def erasure_scale(self) -> float:
        """How much of an erasure is in the U-Net; 0 without one."""
        return 0.0 if self._erasure is None else self._erasure.scale

    @torch.no_grad()
    def load_erasure(self, patch: str | Path, scale: float = 1.0, base_weights: str | Path | None = None) -> None:
        """Put an erasure on.

        Where the U-Net was loaded in another data type than its files have, the patch goes on what the files hold and
        the result is rounded as loading rounds: the erased folder, loaded so, has the same weights.

        Args:
            patch: The file, or a run's folder that holds it.
            scale: See `set_erasure_scale`.
            base_weights: Folder of the U-Net's own files, if they do not lie where it was loaded from.

        Raises:
            ValueError: If the file is no patch or a damaged one, or the U-Net is not the one that it was made for.
        """
        if self._erasure is not None:
            raise ValueError("An erasure is loaded: unload_erasure() first, or make one of two by `salun patch stack`.")
        _require_scale(scale)
        unet = getattr(self.unet, "_orig_mod", self.unet)  # torch.compile wraps it.
        live = dict(unet.state_dict(keep_vars=True))
        if getattr(unet.config, "addition_embed_type", None) == "text_time":
            raise ValueError("Stable Diffusion 1.x or 2.x is required, this U-Net is XL's: take `salun patch apply`.")
        if any(".base_layer." in name for name in live):
            raise ValueError("The U-Net has adapters already: load the erasure first, then they go on top of it.")
        if any(tensor.is_meta for tensor in live.values()):
            raise ValueError("The U-Net's weights must be at hand: load the erasure before offloading.")
        self._erasure = _read(Path(patch)).on(live, lambda: _stored(unet, self.config, base_weights))
        try:
            self.set_erasure_scale(scale)
        except ValueError:
            self._erasure = None
            raise

    @torch.no_grad()
    def set_erasure_scale(self, scale: float) -> None:
        """Set how much of the erasure is in the U-Net.

        Args:
            scale: s of θ₀ + s·Δθ. 0 is the base and 1 the erased model, to the bit; in between the concept fades.

        Raises:
            ValueError: If no erasure is loaded, or the scale is no number that the weights can take.
        """
        if self._erasure is None:
            raise ValueError("No erasure is loaded: load_erasure(PATCH) first.")
        _require_scale(scale)
        self._erasure = self._erasure.at(float(scale))

    def unload_erasure(self) -> None:
        """Take it off: the base, to the bit. Without an erasure nothing happens."""
        if self._erasure is not None:
            self.set_erasure_scale(0.0)
            self._erasure = None

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save as it draws now, as a folder of diffusers' own pipeline, which needs no file of code."""
        super().save_pretrained(save_directory, **kwargs)
        index = Path(save_directory) / "model_index.json"
        told = json.loads(index.read_text()) | {"_class_name": "StableDiffusionPipeline"}
        index.write_text(json.dumps(told, indent=2) + "\n")


@dataclass(frozen=True, eq=False)
class Patch:
    """A patch file: the exclusive or of the bits before and after, at the places that moved."""

    file: Path
    places: dict[str, torch.Tensor]
    changes: dict[str, torch.Tensor]
    base_sha256: str
    erased_sha256: str

    def on(self, live: Mapping[str, torch.Tensor], stored: Callable[[], Iterator[dict[str, torch.Tensor]]]) -> Erasure:
        """The erasure on a U-Net, which has not been changed yet.

        Args:
            live: The U-Net's tensors.
            stored: The sets of weights in its files, for one that was loaded in another data type.

        Raises:
            ValueError: If it is another one.
        """
        if (made := self._between(live, live)) is not None:
            return made
        if _digest(sorted(live.items())) == self.erased_sha256:
            raise ValueError(f"{self.file} goes on its base, and this U-Net is the erased one already.")
        for tensors in stored():
            if (made := self._between(tensors, live)) is not None:
                return made
        found = _digest(sorted(live.items()))
        raise ValueError(
            f"{self.file} goes on the U-Net with SHA-256 {self.base_sha256[:16]}…, this one has {found[:16]}… and no "
            "such file beside it: load the base that the patch was made for."
        )

    def _between(self, base: Mapping[str, torch.Tensor], live: Mapping[str, torch.Tensor]) -> Erasure | None:
        """The erasure, if `base` are its base's weights and `live` the same, rounded; None of another base."""
        base = dict(sorted(base.items()))
        if _digest(base.items()) != self.base_sha256 or base.keys() != live.keys():
            return None
        old, new = {}, {}

        def erased() -> Iterator[tuple[str, torch.Tensor]]:
            """The weights after, one tensor at a time; what differs is kept."""
            for name, tensor in base.items():
                tensor = tensor.detach().cpu()
                if name in self.places:
                    there, bits = _unpack(self.places[name], tensor.shape), _bits(tensor).clone()
                    bits[there] ^= self.changes[name]
                    before, tensor = tensor, bits.view(tensor.dtype)
                    old[name], new[name] = (one[there].to(live[name].dtype) for one in (before, tensor))
                yield name, tensor

        self._require_fit(base)
        if _digest(erased()) != self.erased_sha256 and self.erased_sha256:
            raise ValueError(f"{self.file} is damaged: it does not give the weights that it promises; copy it again.")
        for name, tensor in base.items():
            rounded = _bits(tensor.detach().cpu().to(live[name].dtype))
            if not torch.equal(rounded, _bits(live[name].detach().cpu())):
                return None
        return Erasure({name: live[name] for name in self.places}, self.places, old, new)

    def _require_fit(self, base: Mapping[str, torch.Tensor]) -> None:
        """Refuse places and changes that are not of these tensors."""
        for name, places in self.places.items():
            if name not in base or places.ndim != 1 or len(places) != (base[name].numel() + 7) // 8:
                raise ValueError(f"{self.file} is damaged: {name} has another size in it; copy it again.")
            kind, moved = _INTEGERS[base[name].element_size()], int(_unpack(places, base[name].shape).sum())
            if self.changes[name].dtype != kind or self.changes[name].shape != (moved,):
                raise ValueError(f"{self.file} is damaged: {name} has another data type in it; copy it again.")


def _read(path: Path) -> Patch:
    file = path / "patch.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"A patch file is required, there is no file {file}.")
    try:
        with safe_open(file, framework="pt") as opened:
            told = opened.metadata() or {}
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{file} is damaged or no safetensors file ({' '.join(str(error).split())[:120]}).") from error
    if told.get("format") != FORMAT or told.get("version") not in VERSIONS:
        raise ValueError(f"{file} is not a patch of salun_diffusers: its header says {str(told)[:120]}.")
    if told["version"] != "1" and told.get("sha256") != _digest(sorted(tensors.items())):
        raise ValueError(f"{file} is damaged: the hash over its contents is another; copy it again.")
    places, changes = (
        {name.removeprefix(kind): tensor for name, tensor in tensors.items() if name.startswith(kind)}
        for kind in ("places.", "changes.")
    )
    whole = places.keys() == changes.keys() and all(one.dtype == torch.uint8 for one in places.values())
    if not whole or not told.get("base_sha256"):
        raise ValueError(f"{file} is damaged: places and changes do not pair up; copy it again.")
    return Patch(file, places, changes, told["base_sha256"], told.get("erased_sha256", ""))


def _stored(unet: Any, config: Any, given: str | Path | None) -> Iterator[dict[str, torch.Tensor]]:
    """The sets of weights in the folder that a U-Net was loaded from: plain ones, and those of each variant."""
    names = [given] if given else [unet.config.get("_name_or_path"), Path(config.get("_name_or_path") or "") / "unet"]
    for folder in dict.fromkeys(Path(name) for name in names if name):
        sets: dict[str, list[Path]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            sets.setdefault(re.sub(r"-\d+-of-\d+$", "", file.stem), []).append(file)
        for files in sets.values():
            yield {name: tensor for file in files for name, tensor in load_file(file).items()}


def _require_scale(scale: float) -> None:
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not abs(scale) < float("inf"):
        raise ValueError(f"The scale must be a finite number, 0 for the base, 1 for the erased model; got {scale!r}.")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(_INTEGERS[tensor.element_size()])


def _unpack(packed: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    flags = np.unpackbits(packed.numpy(), bitorder="little", count=shape.numel())
    return torch.from_numpy(flags).view(torch.bool).reshape(shape)


def _digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 over names, data types, shapes and bytes, in the order of the sorted names."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(_bits(tensor.detach().cpu()).numpy().data)
    return digest.hexdigest()
