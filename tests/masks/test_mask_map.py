"""Where a mask lies: blocks and kinds of layers, by names that real networks have."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.mask_map import Count, kind_of, mask_map, stage_of
from salun_diffusers.masks.mask_overlap import bases_of, method_of

SHAPES = {
    "conv_in.weight": (4, 2, 1, 1),
    "conv_in.bias": (4,),
    "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (2, 5),
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_k.weight": (2, 2),
    "mid_block.attentions.0.norm.weight": (6,),
}


def test_counts_by_hand() -> None:
    """3 of the 8 weights and 2 of the 4 biases of conv_in: 5 of 12; 4 of 4 in mid_block's attention, 0 of 6 norms."""
    flags = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in SHAPES.items()}
    for name, count in zip(SHAPES, (3, 2, 7, 4, 0), strict=True):
        flags[name].view(-1)[:count] = True
    where = mask_map(SaliencyMask.from_bools(flags))
    assert where.cells == {
        ("conv_in", "convolution"): (12, 5),
        ("up_blocks.0", "cross-attention"): (10, 7),
        ("mid_block", "self-attention"): (4, 4),
        ("mid_block", "norm"): (6, 0),
    }
    assert where.blocks == ("conv_in", "mid_block", "up_blocks.0"), "the middle comes before what is after it"
    assert where.kinds == ("norm", "cross-attention", "self-attention", "convolution")
    assert where.of(["mid_block"], where.kinds) == (10, 4)
    assert where.of(where.blocks, where.kinds).density == pytest.approx(16 / 32)
    assert where.of(["conv_in"], ["norm"]) == Count(0, 0) and Count(0, 0).density == 0


@pytest.mark.parametrize(
    ("name", "block", "kind"),
    [
        ("time_embedding.linear_1.weight", "time_embedding", "time and class"),
        ("down_blocks.1.resnets.0.time_emb_proj.bias", "down_blocks.1", "time and class"),
        ("down_blocks.1.resnets.0.conv1.weight", "down_blocks.1", "convolution"),
        ("down_blocks.1.attentions.0.transformer_blocks.0.norm2.bias", "down_blocks.1", "norm"),
        ("down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj.weight", "down_blocks.1", "feed-forward"),
        ("up_blocks.2.attentions.1.proj_in.weight", "up_blocks.2", "projection"),
        ("down_blocks.1.attentions.0.to_q.weight", "down_blocks.1", "self-attention"),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.bias", "mid_block", "cross-attention"),
        ("vit.encoder.layer.3.attention.attention.query.weight", "layer.3", "self-attention"),
        ("resnet.encoder.stages.1.layers.0.layer.0.normalization.weight", "stages.1", "norm"),
        ("resnet.encoder.stages.1.layers.0.layer.0.convolution.weight", "stages.1", "convolution"),
        ("layer2.0.bn1.weight", "layer2.0", "norm"),
        ("fc.bias", "fc", "linear"),
    ],
)
def test_names(name: str, block: str, kind: str) -> None:
    shapes = {"down_blocks.1.resnets.0.conv1.weight": torch.Size([4, 4, 3, 3]), "fc.weight": torch.Size([10, 4])}
    shapes |= {name: torch.Size([4, 4, 3, 3])} if "convolution" in name else {}
    assert (stage_of(name), kind_of(name, shapes)) == (block, kind)


@pytest.mark.parametrize("kind", [UNet2DConditionModel, UNet2DModel])
def test_every_weight_of_a_u_net_is_counted_once(kind: type) -> None:
    attention = {"cross_attention_dim": 8} if kind is UNet2DConditionModel else {}
    with torch.device("meta"):
        net = kind(block_out_channels=(32, 32, 64, 64), **attention)
    shapes = {name: tuple(weight.shape) for name, weight in net.named_parameters()}
    where = mask_map(SaliencyMask.full(shapes))
    total = sum(weight.numel() for weight in net.parameters())
    assert where.of(where.blocks, where.kinds) == (total, total)
    assert where.blocks[0] == "conv_in" and where.blocks[-1] == "conv_out"
    assert "linear" not in where.kinds, "every layer of a U-Net has a name that says what it is"
    assert ("cross-attention" in where.kinds) == bool(attention)


def test_what_a_recipe_says_of_its_parts() -> None:
    """Of unions of unions and of random masks like another one, too."""
    shapes = {"w": (8,)}
    plain = {"concept": "star", "base": "demo", "base_sha256": "a" * 64}
    one = SaliencyMask.full(shapes, plain)
    two = SaliencyMask.full(shapes, {**plain, "concept": ["cat", "dog"], "scores": "magnitude"})
    other = SaliencyMask.random_like(SaliencyMask.full(shapes, {"base_sha256": "b" * 64}), torch.Generator())
    assert method_of((one | ~two).recipe) == "or (full of 'star', not (magnitude of 'cat', 'dog'))"
    assert bases_of((one | two).recipe) == {"a" * 64: "demo"}
    assert bases_of((one | two & other).recipe) == {"a" * 64: "demo", "b" * 64: "a base"}
    assert bases_of(SaliencyMask.full(shapes).recipe) == {} and method_of({}) == "unknown"
