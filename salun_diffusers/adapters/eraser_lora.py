"""The LoRA of other erasers, in whatever names: checked against a base by headers, read as A and B of each layer.

Names are those of diffusers' older `save_attn_procs` (`….processor.to_k_lora.down.weight`), of `save_lora_weights`
(`unet.….to_k.lora.down.weight`, `….lora_A.weight`, `text_encoder.….lora_linear_layer.down.weight`) and of kohya's
scripts (`lora_unet_…_to_k.lora_down.weight` with `alpha`). diffusers' loader drops what it has no name for with no more
than a warning, and loses alphas of single layers; so all become PEFT's names here, each α/r taken into B, before that
loader gets them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from salun_diffusers.adapters.low_rank import Factors, LowRank
from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.eraser_files import EraserFile, FileTensor
from salun_diffusers.files.eraser_fit import Shapes, base_shapes, encoders_of, misfit, original_unet_names
from salun_diffusers.files.eraser_folder import read_tensor
from salun_diffusers.files.pipeline_folder import denoiser_folder, model_index

_ENDING = re.compile(
    r"(.+?)(?:\.lora_A\.weight|\.lora_down\.weight|\.lora\.down\.weight|_lora\.down\.weight"
    r"|\.lora_linear_layer\.down\.weight|(?P<up>\.lora_B\.weight|\.lora_up\.weight|\.lora\.up\.weight|_lora\.up\.weight"
    r"|\.lora_linear_layer\.up\.weight)|(?P<alpha>\.alpha))"
)
_KOHYA = {"lora_unet_": "unet", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2", "lora_te_": "text_encoder"}
_DOTTED = {"unet.": "unet", "text_encoder.": "text_encoder", "text_encoder_2.": "text_encoder_2"}
_ATTENTION = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class Pair:
    """Where A and B of a layer lie.

    Args:
        down: A.
        up: B.
        alpha: α; None for α = r.
    """

    down: FileTensor
    up: FileTensor
    alpha: FileTensor | None


Pairs = Mapping[str, Mapping[str, Pair]]
"""By component and layer of the base."""


def fit_lora(found: EraserFile, base: Path, variant: str | None = None) -> Pairs:
    """Find the layer of each A and B in the base; nothing but headers is read.

    Args:
        found: The eraser's file, a LoRA.
        base: The pipeline that it was made of.
        variant: Variant of the base's weight files.

    Raises:
        UserError: If it is of another kind of adapter, not in pairs, or not of this base: naming the first.
    """
    unet = denoiser_folder(model_index(base), base)
    halves: dict[tuple[str, str], dict[str, FileTensor]] = {}
    strange = []
    for name, tensor in found.tensors.items():
        split = _ENDING.fullmatch(name)
        if split is None:
            strange.append(name)
            continue
        half = "up" if split["up"] else "alpha" if split["alpha"] else "down"
        component, layer = _placed(split[1])
        halves.setdefault((unet if component == "unet" else component, layer), {})[half] = tensor
    if strange:
        raise UserError(
            f"{found.path} has {len(strange)} of {len(found.tensors)} tensors that are neither A, B nor alpha of a "
            f"LoRA, first {one_line(strange[0], 120)}; LoRA of linear layers and convolutions are read; LoHa, LoKr, "
            "DoRA and PEFT's own folders are not."
        )
    there = {part: base_shapes(base, part, variant) for part in (unet, *encoders_of(base))}
    names = {part: _layers(base, part, shapes, part == unet) for part, shapes in there.items()}
    pairs: dict[str, dict[str, Pair]] = {}
    misfits = []
    for (component, called), three in halves.items():
        if "down" not in three or "up" not in three:
            raise UserError(f"{found.path} is no whole LoRA: {one_line(called, 120)} has not both of A and B.")
        layer = names.get(component, {}).get(called, "")
        shape = there.get(component, {}).get(f"{layer}.weight")
        pair = Pair(three["down"], three["up"], three.get("alpha"))
        if shape is None or not _fits(pair, shape):
            misfits.append((called, f"{pair.up.shape} x {pair.down.shape}", shape, component))
        else:
            pairs.setdefault(component, {})[layer] = pair
    if misfits:
        called, product, shape, component = misfits[0]
        raise misfit(found.path, (called, product), (len(misfits), len(halves)), (shape, base, component))
    return pairs


def read_pairs(pairs: Mapping[str, Pair]) -> LowRank:
    """A and B of each layer, α/r taken into B.

    Raises:
        UserError: If a file is damaged, or a value is no number.
    """
    found = {}
    for layer, pair in pairs.items():
        down, up = read_tensor(pair.down).float(), read_tensor(pair.up).float()
        if pair.alpha is not None:
            up = up * (read_tensor(pair.alpha).float().item() / down.shape[0])
        if not (down.isfinite().all() and up.isfinite().all()):
            raise UserError(f"{pair.down.file} has values in {pair.down.name} that are no numbers.")
        found[layer] = Factors(down, up.reshape(*up.shape[:2], *(1,) * (down.dim() - 2)))
    return LowRank(found)


def _placed(name: str) -> tuple[str, str]:
    """Component and layer of a name without its ending; the U-Net where nothing is said."""
    for prefix, component in _KOHYA.items():
        if name.startswith(prefix):
            return component, name.removeprefix(prefix)
    component = next((part for prefix, part in _DOTTED.items() if name.startswith(prefix)), "unet")
    layer = name.removeprefix(f"{component}.").replace(".processor.", ".")
    if component != "unet":
        layer = layer.removeprefix("text_model.")
        place, _, last = layer.rpartition(".")
        return component, f"{place}.{_ATTENTION[last]}" if last in _ATTENTION else layer
    return component, f"{layer}.0" if layer.endswith(".to_out") else layer


def _layers(base: Path, component: str, shapes: Shapes, unet: bool) -> dict[str, str]:
    """The base's layers by every name that a LoRA may have for them."""
    layers = [name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) > 1]
    found = {layer: layer for layer in layers}
    if unet:
        old = original_unet_names(base, component, shapes)
        found |= {
            name.removesuffix(".weight").replace(".", "_"): new.removesuffix(".weight") for name, new in old.items()
        }
    else:
        found |= {f"text_model_{layer}".replace(".", "_"): layer for layer in layers}
    return found | {layer.replace(".", "_"): layer for layer in layers}


def _fits(pair: Pair, shape: tuple[int, ...]) -> bool:
    """Whether B·A has the shape of a weight."""
    down, up = pair.down.shape, pair.up.shape
    same = len(down) == len(shape) and len(up) in (2, len(shape)) and down[1:] == shape[1:]
    return same and down[0] > 0 and up[:2] == (shape[0], down[0]) and set(up[2:]) <= {1}
