"""A pipeline folder as the tensors of one checkpoint in the layout of the original code (CompVis, Stability).

    Stable Diffusion   U-Net                    VAE                  text encoders
    1.x                model.diffusion_model.   first_stage_model.   cond_stage_model.transformer. (OpenAI's CLIP)
    2.x                the same                 the same             cond_stage_model.model. (OpenCLIP)
    XL                 the same                 the same             conditioner.embedders.0.transformer. (CLIP) and
                                                                     conditioner.embedders.1.model. (OpenCLIP)

OpenCLIP keeps queries, keys and values in one tensor and its projection transposed; the attention of the VAE is made of
1 x 1 convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.component_files import weight_files
from salun_diffusers.files.json_files import read_object
from salun_diffusers.files.original_names import clip_names, open_clip_names, unet_names, vae_names
from salun_diffusers.files.pipeline_folder import class_name, components, model_index
from salun_diffusers.files.tensor_stream import StoredTensor, TensorPlace, stored_tensors

UNET, VAE = "model.diffusion_model.", "first_stage_model."
KINDS = {
    "StableDiffusionPipeline": ("unet", "vae", "text_encoder"),
    "StableDiffusionXLPipeline": ("unet", "vae", "text_encoder", "text_encoder_2"),
}
_MODELS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}
_OPEN_CLIP_LAYERS = 23
"""Layers of the text encoder of 2.x that anything reads: of the last of its 24 the original code makes no use."""
_QKV = ("q_proj", "k_proj", "v_proj")
_DERIVED = "position_ids"  # 0, 1, 2, …: no weight, and not in all folders.

Names: TypeAlias = Callable[[Collection[str]], Mapping[str, str]]


@dataclass(frozen=True)
class OriginalTensor:
    """A tensor of the checkpoint, and the tensors of the folder that it is made of.

    Args:
        place: Its name, and the data type and shape that it has without a cast.
        component: Folder of the component.
        sources: File and name of what it is made of; three of them are put one below the other.
        transposed: Whether rows become columns.
    """

    place: TensorPlace
    component: str
    sources: tuple[tuple[Path, str], ...]
    transposed: bool = False

    def read(self, dtype: torch.dtype) -> Tensor:
        """The tensor in a data type.

        Raises:
            UserError: If a file is damaged, or a weight is beyond the range of the type.
        """
        try:
            parts = []
            for path, name in self.sources:
                with safe_open(path, framework="pt") as file:
                    parts.append(file.get_tensor(name))
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({one_line(error, 120)}); copy it again.") from error
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        tensor = (tensor.T if self.transposed else tensor).reshape(self.place.shape)
        cast = tensor.to(dtype)
        if (~cast.isfinite() & tensor.isfinite()).any():
            raise UserError(
                f"{self.component} has weights in {self.sources[0][1]} beyond the range of "
                f"{str(dtype).removeprefix('torch.')}; --dtype fp32 keeps them."
            )
        return cast


def original_tensors(folder: Path, variant: str | None = None) -> list[OriginalTensor]:
    """All tensors of the checkpoint of a pipeline, without reading one.

    Args:
        folder: The pipeline.
        variant: Variant of its weight files.

    Raises:
        UserError: If the layout has no place for a pipeline of this kind, or for one of its tensors.
    """
    index = model_index(folder)
    kind = class_name(index)
    if kind not in KINDS:
        raise UserError(
            f"A checkpoint in one file is made of Stable Diffusion 1.x, 2.x and XL ({', '.join(KINDS)}); {folder} is "
            f"{kind or 'none of a named class'}."
        )
    parts = KINDS[kind]
    if lacking := [part for part in parts if part not in components(index)]:
        raise UserError(f"{folder} has no {lacking[0]}, which a {kind} in one file needs.")
    found: list[OriginalTensor] = []
    for part in parts:
        config = read_object(folder / part / "config.json", constants=float)
        _require_kind(folder / part, part, config)
        prefix, names = _layout_of(part, config, kind)
        found += _tensors(folder / part, variant, prefix, names)
    return sorted(found, key=lambda tensor: (-tensor.place.dtype.itemsize, tensor.place.name))


def prediction_marks(folder: Path) -> tuple[list[TensorPlace], str]:
    """How a checkpoint says what its U-Net predicts: empty tensors of XL; for others a note, where one is needed."""
    scheduler = read_object(folder / "scheduler" / "scheduler_config.json", constants=float)
    if class_name(model_index(folder)) == "StableDiffusionXLPipeline":
        says = {
            "v_pred": scheduler.get("prediction_type") == "v_prediction",
            "ztsnr": scheduler.get("rescale_betas_zero_snr") is True,
        }
        return [TensorPlace(name, torch.float32, (0,)) for name, is_so in says.items() if is_so], ""
    if scheduler.get("prediction_type", "epsilon") == "epsilon":
        return [], ""
    return [], (
        f"this U-Net predicts {scheduler['prediction_type']}, which a checkpoint of this layout cannot say: programs "
        "guess it (2.x), or are told by ModelSamplingDiscrete (ComfyUI) or a .yaml beside the file (WebUI)."
    )


def _require_kind(place: Path, part: str, config: Mapping[str, Any]) -> None:
    """Refuse components that the original code has no network for."""
    wanted, found = _MODELS.get(part), config.get("_class_name")
    if wanted is not None and found != wanted:
        raise UserError(f"{place} must be a {wanted} to have the original layout, it is a {str(found)[:80]}.")
    if part != "unet":
        return
    blocks = [*_texts(config.get("down_block_types")), *_texts(config.get("up_block_types"))]
    if strange := next((block for block in blocks if block not in _BLOCKS), ""):
        raise UserError(f"{place} has blocks of type {strange[:80]}, which the original layout has no place for.")
    if type(config.get("layers_per_block", 2)) is not int:
        raise UserError(f"{place} must have as many layers in every block (layers_per_block, one whole number).")


def _texts(value: object) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else []


def _layout_of(part: str, config: Mapping[str, Any], kind: str) -> tuple[str, Names]:
    """Prefix and names of a component's tensors."""
    if part == "unet":
        return UNET, lambda names: unet_names(names, int(config.get("layers_per_block", 2)))
    if part == "vae":
        return VAE, vae_names
    if part == "text_encoder_2":
        return "conditioner.embedders.1.model.", open_clip_names
    if kind == "StableDiffusionXLPipeline":
        return "conditioner.embedders.0.transformer.", clip_names
    if config.get("hidden_act", "quick_gelu") == "quick_gelu":
        return "cond_stage_model.transformer.", clip_names
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > _OPEN_CLIP_LAYERS:
        raise UserError(
            f"The text encoder of Stable Diffusion 2.x has {_OPEN_CLIP_LAYERS} layers in diffusers' layout, found "
            f"{layers}: no program would read the last."
        )
    return "cond_stage_model.model.", open_clip_names  # OpenAI's has quick_gelu, OpenCLIP's gelu.


def _tensors(place: Path, variant: str | None, prefix: str, names: Names) -> Iterator[OriginalTensor]:
    """The tensors that one component becomes."""
    stored: dict[str, StoredTensor] = {}
    for path in weight_files(place, variant, strictly=place.name == "unet"):
        stored |= stored_tensors(path)
    stored = {name: one for name, one in stored.items() if not name.endswith(_DERIVED)}
    made: dict[str, list[StoredTensor]] = {}
    for name, original in names(stored).items():
        if not original:
            raise UserError(f"{place} has a tensor {name[:120]}, which the original layout has no place for.")
        made.setdefault(prefix + original, []).append(stored[name])
    for original, parts in made.items():
        fused = ".in_proj_" in original
        if len(parts) != (3 if fused else 1) or len({part.shape for part in parts}) > 1:
            raise UserError(f"{place} is damaged: {parts[-1].name} is there twice, or lacks what belongs to it.")
        parts.sort(key=lambda part: _QKV.index(part.name.split(".")[-2]) if fused else 0)
        shape, transposed = parts[0].shape, original.endswith("text_projection")
        if (fused and not shape) or (transposed and len(shape) != 2):
            raise UserError(f"{place} is damaged: {parts[0].name} has the shape {shape}; copy it again.")
        if fused:
            shape = (3 * shape[0], *shape[1:])
        elif transposed:
            shape = shape[::-1]
        elif prefix == VAE and ".attn_1." in original and len(shape) == 2:
            shape = (*shape, 1, 1)
        sources = tuple((part.path, part.name) for part in parts)
        yield OriginalTensor(TensorPlace(original, parts[0].kind, shape), place.name, sources, transposed)
