"""Where in a network a mask lies: weights and selected weights per block and kind of layer, from names and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, final

import torch

from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.receipt import block_of

# Read from the top: an attention's norm is a norm, and what lies in `attentions.0` beside the attention is not one.
_KINDS = (
    ("norm", re.compile(r"norm|(^|\.)bn\d*\.")),
    ("time and class", re.compile(r"time_|class_emb|add_emb|label_emb")),
    ("cross-attention", re.compile(r"attn2\.|cross_attn")),
    (
        "self-attention",
        re.compile(r"attn\d?\.|(^|\.)(self_attn|attention)\.|(^|\.)(to_[qkv]|to_out|query|key|value)\."),
    ),
    ("feed-forward", re.compile(r"(^|\.)(ff|ff_context|mlp|intermediate)\.")),
    ("projection", re.compile(r"(^|\.)proj_(in|out)\.|(^|\.)projection\.")),
)
KINDS = (*(name for name, _ in _KINDS), "convolution", "linear")
"""Kinds of layers, in the order of a table's columns."""
_STAGE = re.compile(r"(?:^|\.)((?:\w*blocks|stages|layers?)\.\d+)\.")


class Count(NamedTuple):
    """How many weights there are, and how many of them a mask selects."""

    weights: int
    selected: int

    @property
    def density(self) -> float:
        """The share of selected weights, in [0, 1]."""
        return self.selected / self.weights if self.weights else 0.0


@final
@dataclass(frozen=True)
class MaskMap:
    """Counts of a mask.

    Args:
        cells: By block and kind of layer, in the order of the parameters; pairs without weights are left out.
    """

    cells: Mapping[tuple[str, str], Count]

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks from the input to the output; diffusers defines the middle of a U-Net after its upper half."""
        found = list(dict.fromkeys(block for block, _ in self.cells))
        upper = next((block for block in found if block.startswith("up_blocks.")), None)
        if upper and "mid_block" in found:
            found.remove("mid_block")
            found.insert(found.index(upper), "mid_block")
        return tuple(found)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of layers that the network has."""
        found = {kind for _, kind in self.cells}
        return tuple(kind for kind in KINDS if kind in found)

    def of(self, blocks: Iterable[str], kinds: Iterable[str]) -> Count:
        """The sum over some blocks and kinds."""
        wanted = {(block, kind) for block in blocks for kind in kinds}
        found = [count for place, count in self.cells.items() if place in wanted]
        return Count(sum(count.weights for count in found), sum(count.selected for count in found))


def mask_map(mask: SaliencyMask) -> MaskMap:
    """Count a mask per block and kind of layer."""
    cells: dict[tuple[str, str], Count] = {}
    for name, size, selected in mask.stats():
        place = stage_of(name), kind_of(name, mask.shapes)
        weights, before = cells.get(place, (0, 0))
        cells[place] = Count(weights + size, before + selected)
    return MaskMap(cells)


def stage_of(name: str) -> str:
    """The block of a parameter of a denoiser, or of a classifier whose blocks lie deeper.

    >>> stage_of("down_blocks.0.attentions.1.norm.weight"), stage_of("resnet.encoder.stages.2.layers.0.bias")
    ('down_blocks.0', 'stages.2')
    """
    found = None if name.startswith("mid_block.") else _STAGE.search(name)
    return found[1] if found else block_of(name)


def kind_of(name: str, shapes: Mapping[str, torch.Size]) -> str:
    """The kind of the layer that a parameter belongs to, by its name; where that says nothing, by its weight's shape.

    Args:
        name: The parameter.
        shapes: Those of all parameters: a bias is of the kind of the weight beside it.

    >>> shapes = {"conv1.weight": torch.Size([8, 4, 3, 3]), "conv1.bias": torch.Size([8])}
    >>> kind_of("conv1.bias", shapes), kind_of("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", {})
    ('convolution', 'cross-attention')
    """
    for kind, pattern in _KINDS:
        if pattern.search(name):
            return kind
    weight = f"{name.rpartition('.')[0]}.weight"
    shape = shapes.get(weight, shapes.get(name, torch.Size()))
    return "convolution" if len(shape) > 2 else "linear"
