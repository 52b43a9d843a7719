"""Names of the original layout, held against diffusers' own conversion, for the published networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    CHECKPOINT_KEY_NAMES,
    DIFFUSERS_TO_LDM_MAPPING,
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from salun_diffusers.files.original_names import clip_names, open_clip_names, unet_names, vae_names

SD2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
CLIP_H: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
    "hidden_act": "gelu", "projection_dim": 512,
}  # fmt: skip


def networks(script: Callable[[str], ModuleType], kind: str) -> dict[str, Any]:
    """The components of a published model, without weights."""
    shapes = script("real_shapes")
    parts = (shapes.sdxl() if kind == "xl" else shapes.sd1()).parts
    config = {**parts["unet"][1], **(SD2 if kind == "2.x" else {})}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        return {
            "unet": unet,
            "vae": AutoencoderKL(**parts["vae"][1]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**(CLIP_H if kind == "2.x" else parts["text_encoder"][1]))),
            **(
                {"text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**parts["text_encoder_2"][1]))}
                if kind == "xl"
                else {}
            ),
        }


def same(found: Mapping[str, Tensor | None], wanted: Mapping[str, Tensor]) -> bool:
    """Whether a conversion gave every tensor back, under its name: shapes differ where the names do not tell them."""
    return found.keys() == wanted.keys() and all(found[name] is tensor for name, tensor in wanted.items())


@pytest.mark.parametrize("kind", ["1.x", "2.x", "xl"])
def test_diffusers_gives_every_name_back(script: Callable[[str], ModuleType], kind: str) -> None:
    parts = networks(script, kind)
    state = parts["unet"].state_dict()
    names = unet_names(state, 2)
    assert len(set(names.values())) == len(state) and all(names.values())
    checkpoint = {f"model.diffusion_model.{names[name]}": tensor for name, tensor in state.items()}
    assert CHECKPOINT_KEY_NAMES["v2"] in checkpoint if kind != "xl" else True
    assert same(convert_ldm_unet_checkpoint(checkpoint, dict(parts["unet"].config)), state)
    state = parts["vae"].state_dict()
    names = vae_names(state)
    checkpoint = {f"first_stage_model.{names[name]}": tensor for name, tensor in state.items()}
    assert same(convert_ldm_vae_checkpoint(checkpoint, dict(parts["vae"].config)), state)
    if kind == "1.x":
        assert "model.diffusion_model." + unet_names(parts["unet"].state_dict(), 2)[
            "up_blocks.3.resnets.2.conv_shortcut.weight"
        ] == CHECKPOINT_KEY_NAMES["v1"]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [("1.x", {"2.1.conv", "5.2.conv", "8.2.conv"}), ("2.x", {"2.1.conv", "5.2.conv", "8.2.conv"}),
     ("xl", {"2.2.conv", "5.2.conv"})],
)  # fmt: skip
def test_upsamplers_stand_behind_what_their_block_has(script: Callable[[str], ModuleType], kind: str, wanted) -> None:
    """diffusers reads either number, the original code its own: behind resnet and attention."""
    names = unet_names(networks(script, kind)["unet"].state_dict(), 2).values()
    found = {name for name in names if name.startswith("output_blocks.") and ".conv." in name}
    assert found == {f"output_blocks.{place}.{tensor}" for place in wanted for tensor in ("weight", "bias")}


@pytest.mark.parametrize("kind", ["1.x", "xl"])
def test_names_of_openai_clip(script: Callable[[str], ModuleType], kind: str) -> None:
    """transformers 5 calls them by shorter names than the original layout does."""
    state = networks(script, kind)["text_encoder"].state_dict()
    state = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}
    prefix = {"1.x": "cond_stage_model.transformer.", "xl": "conditioner.embedders.0.transformer."}[kind]
    for stored in (state, {name.removeprefix("text_model."): tensor for name, tensor in state.items()}):
        checkpoint = {prefix + clip_names(stored)[name]: tensor for name, tensor in stored.items()}
        assert CHECKPOINT_KEY_NAMES["clip" if kind == "1.x" else "clip_sdxl"] in checkpoint
        assert same(convert_ldm_clip_checkpoint(checkpoint), state)


@pytest.mark.parametrize(("kind", "part"), [("2.x", "text_encoder"), ("xl", "text_encoder_2")])
def test_names_of_open_clip(script: Callable[[str], ModuleType], kind: str, part: str) -> None:
    """Queries, keys and values come apart again, one below the other."""
    model = networks(script, kind)[part]
    state = model.state_dict()
    prefix = {"2.x": "cond_stage_model.model.", "xl": "conditioner.embedders.1.model."}[kind]
    checkpoint: dict[str, Tensor] = {}
    for name, original in open_clip_names(state).items():
        tensor = state[name]
        if ".in_proj_" in original:
            tensor = torch.empty(3 * tensor.shape[0], *tensor.shape[1:], device="meta")
        checkpoint[prefix + original] = tensor.T if original == "text_projection" else tensor
    assert CHECKPOINT_KEY_NAMES["open_clip" if kind == "2.x" else "open_clip_sdxl"] in checkpoint
    found = convert_open_clip_checkpoint(model, checkpoint, prefix=prefix)
    plain = {name.removeprefix("text_model."): tensor for name, tensor in found.items()}
    assert plain.keys() == {name.removeprefix("text_model.") for name in state}
    assert all(plain[name.removeprefix("text_model.")].shape == tensor.shape for name, tensor in state.items())


def test_every_name_of_diffusers_tables_is_ours() -> None:
    tables = DIFFUSERS_TO_LDM_MAPPING
    for table in (tables["unet"]["layers"], tables["unet"]["addition_embed_type"]):
        assert unet_names(table, 2) == table
    # No VAE has the encoder's quantisation under another name.
    assert vae_names(tables["vae"]) == tables["vae"]
    assert open_clip_names(tables["openclip"]["layers"]) == tables["openclip"]["layers"]


@pytest.mark.parametrize(
    ("names", "strange"),
    [
        (unet_names, "time_embedding.cond_proj.weight"), (unet_names, "mid_block.resnets.2.conv1.weight"),
        (unet_names, "encoder_hid_proj.weight"), (unet_names, "down_blocks.0.resnets.0.other.weight"),
        (vae_names, "encoder.down_blocks.0.attentions.0.to_q.weight"), (vae_names, "loss.weight"),
        (clip_names, "vision_model.embeddings.weight"), (open_clip_names, "logit_scale"),
    ],
)  # fmt: skip
def test_what_has_no_place_has_no_name(names: Any, strange: str) -> None:
    assert (names([strange], 2) if names is unet_names else names([strange])) == {strange: ""}


def test_a_vae_of_former_days() -> None:
    """Folders that were saved before diffusers 0.18, such as those of 1.4 and 1.5 on the hub."""
    old = {"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}
    for name, original in old.items():
        place = "decoder.mid_block.attentions.0"
        assert vae_names([f"{place}.{name}.weight"]) == {
            f"{place}.{name}.weight": f"decoder.mid.attn_1.{original}.weight"
        }
