"""From two pipeline folders to a LoRA: the closest of some rank to what an erasure changed, and how close it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from salun_diffusers.adapters.low_rank import LowRank, layers_of, truncated
from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.pipeline_folder import denoiser_folder, model_index
from salun_diffusers.files.stored_weights import StoredTensors
from salun_diffusers.progress import Progress


@dataclass(frozen=True)
class LayerShare:
    """What became of one layer's change.

    Args:
        layer: Its name.
        rank: Of what is kept.
        share: ‖ΔW‖² as a share of ‖Δθ‖², over all that moved.
        error: ‖ΔW - B·A‖² / ‖ΔW‖².
    """

    layer: str
    rank: int
    share: float
    error: float


@dataclass(frozen=True)
class Closeness:
    """How close a LoRA is to the change it stands for.

    Args:
        error: Of ‖Δθ‖², over all weights of the denoiser, the share that it lacks.
        left_out: Tensors that moved and that no LoRA can change: norms, biases, embeddings.
        left_out_share: Their part of ‖Δθ‖², which is in `error`.
        layers: One row for each layer that it changes.
    """

    error: float
    left_out: tuple[str, ...]
    left_out_share: float
    layers: tuple[LayerShare, ...]


def blank_denoiser(folder: Path) -> nn.Module:
    """The network that a pipeline's denoiser is described as, without weights.

    Raises:
        UserError: If diffusers does not know it.
    """
    index = model_index(folder)
    name = denoiser_folder(index, folder)
    kind: Any = getattr(diffusers, str(index[name][1]), None)  # type: ignore[index]
    try:
        with torch.device("meta"):
            network: nn.Module = kind.from_config(kind.load_config(folder / name))
    except Exception as error:  # A configuration can be wrong in any way.
        raise UserError(f"{folder / name / 'config.json'} describes no network: {one_line(error, 160)}.") from error
    return network


def lora_between(
    base: Path, erased: Path, rank: int, variants: tuple[str | None, str | None] = (None, None), show: bool = True
) -> tuple[LowRank, Closeness]:
    """The closest LoRA of some rank to the difference of two pipelines, layer by layer.

    Args:
        base: The base.
        erased: What was made of it.
        rank: Of each layer that moved, at most.
        variants: Variant of the base's weight files, and of the erased one's.
        show: Whether a progress bar is.

    Returns:
        The changes in float32, and what they lack.

    Raises:
        UserError: If a folder is none of a pipeline, they are not of one model, or nothing moved.
    """
    denoiser = denoiser_folder(model_index(base), base)
    before, after = (
        StoredTensors(folder / denoiser_folder(model_index(folder), folder), variant)
        for folder, variant in zip((base, erased), variants, strict=True)
    )
    require_same(before, after, base / denoiser, erased / denoiser)
    layers = layers_of(blank_denoiser(base))
    kept, rows, left, total, lacking, beside = {}, [], [], 0.0, 0.0, 0.0
    with Progress("low rank", len(before), show) as bar:
        for name in before:
            change = after[name].float() - before[name].float()
            size = _square(change)
            total += size
            layer = name.removesuffix(".weight")
            if size and name.endswith(".weight") and layer in layers:
                kept[layer] = truncated(change, rank)
                error = _square(change - kept[layer].change())
                lacking += error
                rows.append((layer, kept[layer].rank, size, error / size))
            elif size:
                left.append(name)
                beside += size
            bar.advance()
    if not kept:
        what = f"only tensors that no LoRA changes, such as {left[0]}" if left else "no weight"
        raise UserError(f"A LoRA changes linear layers and convolutions; of {erased} {what} differs from {base}.")
    shares = tuple(LayerShare(layer, its_rank, size / total, error) for layer, its_rank, size, error in rows)
    return LowRank(kept), Closeness((lacking + beside) / total, tuple(left), beside / total, shares)


def _square(change: Tensor) -> float:
    return float(change.double().square().sum())


def require_same(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], base: Path, erased: Path
) -> None:  # fmt: skip
    """Refuse denoisers whose tensors are not the same ones.

    Args:
        before: Tensors of the base.
        after: Of the erased one.
        base: Where they lie.
        erased: Where these lie.

    Raises:
        UserError: Naming the first that only one has, or that has another shape.
    """
    if first := next(iter(sorted(before.keys() ^ after.keys())), ""):
        lacking, having = (erased, base) if first in before else (base, erased)
        raise UserError(f"{lacking} lacks {first}, which {having} has: the base of an erasure is required.")
    for name in before:
        if before[name].shape != after[name].shape:
            raise UserError(
                f"{name} has shape {tuple(before[name].shape)} in {base} and {tuple(after[name].shape)} in {erased}: "
                "the base of an erasure is required."
            )
