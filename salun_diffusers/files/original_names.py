"""What the original code of Stable Diffusion calls the tensors that diffusers and transformers call by other names.

The way back of `diffusers.loaders.single_file_utils`: `convert_ldm_unet_checkpoint`, `convert_ldm_vae_checkpoint`,
`convert_ldm_clip_checkpoint` and `convert_open_clip_checkpoint`. Names only: one without a
place gives an empty text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"conv_shortcut": "nin_shortcut"}
_VAE_ENDS = {"conv_in": "conv_in", "conv_out": "conv_out", "conv_norm_out": "norm_out"}
# Folders that were saved before diffusers 0.18 have the older names.
_VAE_ATTENTION = {
    "group_norm": "norm",
    **{"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"},
    **{"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"},
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPEN_CLIP_ENDS = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}


def unet_names(names: Collection[str], layers_per_block: int) -> dict[str, str]:
    """Names of a U-Net's tensors, by diffusers' names.

    A block of L layers takes L + 1 numbers: going down its last is the sampler, coming up it has a layer more and the
    sampler behind the last one.

    Args:
        names: diffusers' names.
        layers_per_block: L.
    """
    attends = {name.split(".")[1] for name in names if re.match(r"up_blocks\.\d+\.attentions\.", name)}
    return {name: _placed(_unet_name, name, layers_per_block + 1, attends) for name in names}


def _unet_name(name: str, each: int, attends: Collection[str]) -> str:
    match name.split("."):
        case ["down_blocks", block, "resnets", layer, *rest]:
            return _under(f"input_blocks.{int(block) * each + int(layer) + 1}.0", rest, _RESNET)
        case ["down_blocks", block, "attentions", layer, *rest]:
            return ".".join([f"input_blocks.{int(block) * each + int(layer) + 1}.1", *rest])
        case ["down_blocks", block, "downsamplers", "0", "conv", rest]:
            return f"input_blocks.{(int(block) + 1) * each}.0.op.{rest}"
        case ["mid_block", "resnets", ("0" | "1") as layer, *rest]:
            return _under(f"middle_block.{2 * int(layer)}", rest, _RESNET)
        case ["mid_block", "attentions", "0", *rest]:
            return ".".join(["middle_block.1", *rest])
        case ["up_blocks", block, "resnets", layer, *rest]:
            return _under(f"output_blocks.{int(block) * each + int(layer)}.0", rest, _RESNET)
        case ["up_blocks", block, "attentions", layer, *rest]:
            return ".".join([f"output_blocks.{int(block) * each + int(layer)}.1", *rest])
        case ["up_blocks", block, "upsamplers", "0", "conv", rest]:
            return f"output_blocks.{(int(block) + 1) * each - 1}.{2 if block in attends else 1}.conv.{rest}"
        case parts:
            return _under("", parts, _UNET)


def vae_names(names: Collection[str]) -> dict[str, str]:
    """Names of an autoencoder's tensors, by diffusers' names; the original counts the blocks that go up from below."""
    last = max(
        (int(found[1]) for name in names if (found := re.match(r"decoder\.up_blocks\.(\d+)\.", name))), default=0
    )
    return {name: _placed(_vae_name, name, last) for name in names}


def _vae_name(name: str, last: int) -> str:
    match name.split("."):
        case [("quant_conv" | "post_quant_conv"), ("weight" | "bias")]:
            return name
        case [("encoder" | "decoder") as side, ("down_blocks" | "up_blocks") as way, block, *rest]:
            place = f"{side}.down.{block}" if way == "down_blocks" else f"{side}.up.{last - int(block)}"
            match rest:
                case ["resnets", layer, *inner]:
                    return _under(f"{place}.block.{layer}", inner, _VAE_RESNET)
                case [("downsamplers" | "upsamplers") as sampler, "0", "conv", tensor]:
                    return f"{place}.{sampler.removesuffix('rs')}.conv.{tensor}"
            return ""
        case [("encoder" | "decoder") as side, "mid_block", "resnets", ("0" | "1") as layer, *inner]:
            return _under(f"{side}.mid.block_{int(layer) + 1}", inner, _VAE_RESNET)
        case [("encoder" | "decoder") as side, "mid_block", "attentions", "0", *inner]:
            return _under(f"{side}.mid.attn_1", inner, _VAE_ATTENTION)
        case [("encoder" | "decoder") as side, *rest]:
            return _under(side, rest, _VAE_ENDS)
    return ""


def clip_names(names: Collection[str]) -> dict[str, str]:
    """Names of a text encoder of OpenAI's CLIP, by transformers' names: those of transformers 4."""
    rooms = ("embeddings.", "encoder.", "final_layer_norm.")
    short = {name: name.removeprefix("text_model.") for name in names}
    return {name: f"text_model.{plain}" if plain.startswith(rooms) else "" for name, plain in short.items()}


def open_clip_names(names: Collection[str]) -> dict[str, str]:
    """Names of a text encoder of OpenCLIP, by transformers' names; queries, keys and values have one name in common."""
    return {name: _open_clip_name(name.removeprefix("text_model.")) for name in names}


def _open_clip_name(name: str) -> str:
    match name.split("."):
        case ["encoder", "layers", layer, "self_attn", ("q_proj" | "k_proj" | "v_proj"), ("weight" | "bias") as kind]:
            return f"transformer.resblocks.{layer}.attn.in_proj_{kind}"
        case ["encoder", "layers", layer, *rest]:
            return _under(f"transformer.resblocks.{layer}", rest, _OPEN_CLIP_LAYER)
    return _OPEN_CLIP_ENDS.get(name, "")


def _placed(name_of: Callable[..., str], name: str, *about: object) -> str:
    """A name, or none where a block is not numbered."""
    try:
        return name_of(name, *about)
    except ValueError:
        return ""


def _under(place: str, parts: list[str], words: Mapping[str, str]) -> str:
    """The name below a place, where what comes before the last word is known; else empty."""
    known = words.get(".".join(parts[:-1]), "")
    return ".".join(filter(None, [place, known, parts[-1]])) if known else ""
