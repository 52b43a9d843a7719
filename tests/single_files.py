"""Tiny pipelines as one file in the layout of the original code: the way back of what diffusers converts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_CLIP_BLOCK = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def write_single_file(pipe: Any, path: Path, marks: tuple[str, ...] = ()) -> Path:
    """Save a pipeline of Stable Diffusion 1.x or XL as one file.

    Args:
        pipe: The pipeline.
        path: The file.
        marks: Names of empty tensors that say something of the whole.
    """
    tensors = {f"model.diffusion_model.{_unet(name, pipe.unet)}": t for name, t in pipe.unet.state_dict().items()}
    tensors |= {f"first_stage_model.{_vae(name)}": _as_conv(name, t) for name, t in pipe.vae.state_dict().items()}
    first = _named("text_model.", pipe.text_encoder.state_dict())
    if hasattr(pipe, "text_encoder_2"):
        tensors |= _named("conditioner.embedders.0.transformer.", first)
        tensors |= _named("conditioner.embedders.1.model.", _open_clip(pipe.text_encoder_2.state_dict()))
    else:
        tensors |= _named("cond_stage_model.transformer.", first)
    tensors |= {mark: torch.tensor([]) for mark in marks}
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)
    return path


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _replaced(name: str, words: Mapping[str, str]) -> str:
    for new, old in words.items():
        if re.search(rf"(^|\.){re.escape(new)}\.", name):
            return name.replace(f"{new}.", f"{old}.")
    return name


def _unet(name: str, unet: Any) -> str:
    layers = unet.config.layers_per_block
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
        side, block, kind, layer, rest = found.groups()
        number = int(block) * (layers + 1) + int(layer) + (side == "down")
        place = f"{'input' if side == 'down' else 'output'}_blocks.{number}"
        return f"{place}.0.{_replaced(rest, _RESNET)}" if kind == "resnets" else f"{place}.1.{rest}"
    if found := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.+)", name):
        return f"input_blocks.{(int(found[1]) + 1) * (layers + 1)}.0.op.{found[2]}"
    if found := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.+)", name):
        attends = hasattr(unet.up_blocks[int(found[1])], "attentions")
        return f"output_blocks.{int(found[1]) * (layers + 1) + layers}.{2 if attends else 1}.conv.{found[2]}"
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        kind, layer, rest = found.groups()
        return (
            f"middle_block.{2 * int(layer)}.{_replaced(rest, _RESNET)}"
            if kind == "resnets"
            else f"middle_block.1.{rest}"
        )
    return _replaced(name, _UNET)


def _vae(name: str) -> str:
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    if found := re.match(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(.+)", name):
        side, way, block, rest = found.groups()
        rest = re.sub(r"^resnets\.", "block.", rest)
        rest = re.sub(r"^(down|up)samplers\.0\.", r"\1sample.", rest)
        return f"{side}.{way}.{int(block) if way == 'down' else 2 - int(block)}.{rest}"
    if found := re.match(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        side, kind, layer, rest = found.groups()
        if kind == "resnets":
            return f"{side}.mid.block_{int(layer) + 1}.{rest}"
        return f"{side}.mid.attn_1.{_replaced(rest, _VAE_ATTENTION)}"
    return name


def _as_conv(name: str, tensor: Tensor) -> Tensor:
    linear = "attentions" in name and name.endswith("weight") and tensor.dim() == 2
    return tensor[:, :, None, None] if linear else tensor


def _open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    out = {
        "positional_embedding": tensors["embeddings.position_embedding.weight"],
        "token_embedding.weight": tensors["embeddings.token_embedding.weight"],
        "ln_final.weight": tensors["final_layer_norm.weight"], "ln_final.bias": tensors["final_layer_norm.bias"],
        "text_projection": tensors["text_projection.weight"].T,
    }  # fmt: skip
    for name in tensors:
        if not (found := re.match(r"encoder\.layers\.(\d+)\.(.+)", name)):
            continue
        place = f"transformer.resblocks.{found[1]}"
        if qkv := re.match(r"self_attn\.q_proj\.(weight|bias)", found[2]):
            three = [tensors[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            out[f"{place}.attn.in_proj_{qkv[1]}"] = torch.cat(three)
        elif not re.match(r"self_attn\.[kv]_proj", found[2]):
            out[f"{place}.{_replaced(found[2], _CLIP_BLOCK)}"] = tensors[name]
    return out
