"""Where a LoRA's parameters go: to the layers that hold most of the saliency, in proportion to it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from salun_diffusers.adapters.low_rank import cost, highest_rank


def salient_layers(scores: Mapping[str, float], shapes: Mapping[str, torch.Size], most: int) -> list[str]:
    """Layers that hold as much of the saliency as goes into some number of weights.

    By saliency per weight, the largest first, a layer is taken if its weights still fit: the greedy answer to the
    knapsack problem max Σ s_l over layers with Σ n_l ≤ `most`. In the order of `scores`.

    Args:
        scores: s_l, a layer's saliency summed over its weights.
        shapes: Of the layers' weights.
        most: How many weights the layers may have together.

    Returns:
        Their names; none where not even the smallest fits.
    """
    taken, left = set(), most
    for layer in sorted(scores, key=lambda layer: scores[layer] / shapes[layer].numel(), reverse=True):
        if shapes[layer].numel() <= left:
            taken.add(layer)
            left -= shapes[layer].numel()
    return [layer for layer in scores if layer in taken]


def ranks_by_saliency(scores: Mapping[str, float], shapes: Mapping[str, torch.Size], budget: int) -> dict[str, int]:
    """Ranks that give each layer parameters in proportion to its saliency, within a budget.

        r_l = min(max(1, ⌊s_l / (λ c_l)⌋), r_max)        Σ_l c_l r_l ≤ budget

    with c_l = out + in · height · width parameters a rank, r_max = min(out, in · height · width) the rank at which
    nothing is left to gain, and the smallest λ for which the budget holds. Without saliency every layer is alike.

    Args:
        scores: s_l of the layers.
        shapes: Of their weights.
        budget: Parameters in all; at least one rank for each layer.
    """
    if not any(scores.values()):
        scores = {layer: float(cost(shapes[layer])) for layer in scores}
    ratios = {layer: score / cost(shapes[layer]) for layer, score in scores.items()}

    def ranks(scale: float) -> dict[str, int]:
        return {layer: min(max(1, int(scale * ratio)), highest_rank(shapes[layer])) for layer, ratio in ratios.items()}

    def fits(scale: float) -> bool:
        return sum(rank * cost(shapes[layer]) for layer, rank in ranks(scale).items()) <= budget

    low, high = 0.0, 1 / max(ratios.values())
    while fits(high) and any(ranks(high)[layer] < highest_rank(shapes[layer]) for layer in ratios if ratios[layer]):
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return ranks(high if fits(high) else low)
