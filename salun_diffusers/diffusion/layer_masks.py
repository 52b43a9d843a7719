"""The layers of a run's LoRA: those that carry the concept, with ranks by what they carry."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from salun_diffusers.adapters.low_rank import cost, highest_rank, layers_of
from salun_diffusers.adapters.ranks import ranks_by_saliency, salient_layers
from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.latent_sets import EraseData
from salun_diffusers.diffusion.masks import trained_parameters
from salun_diffusers.diffusion.request import Request
from salun_diffusers.diffusion.saliency_pass import forget_saliency, retain_saliency
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.errors import UserError, tell
from salun_diffusers.files.whole_files import full_disk_is_told
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.mask_file import JSON
from salun_diffusers.masks.saliency import saliency_ratio
from salun_diffusers.seeds import stream

Scores = dict[str, float]
Shapes = Mapping[str, torch.Size]


def layer_mask(run: Run, request: Request, family: Family, data: EraseData) -> SaliencyMask:
    """The mask of a run that trains a LoRA: the whole weights of the layers that get one, and nothing of all others.

    Layers are taken by their summed saliency until they hold `mask_ratio` of the weights in question; the ranks share
    out the parameters that a LoRA of `rank` on every layer in question would have. They stand in the mask's recipe.

    Args:
        run: Keeps the mask, or has it from before.
        request: Settings and concept.
        family: The base model.
        data: The forget set, for a saliency.

    Raises:
        UserError: If no layer is left.
    """
    settings, parameters = request.settings, dict(family.denoiser.named_parameters())
    if run.is_done("mask", run.marks.mask):
        return SaliencyMask.load(run.folder.mask).matched_to(parameters)
    trained = trained_parameters(parameters, settings.train_method, family.attention)
    shapes = {layer: shape for layer, shape in layers_of(family.denoiser).items() if f"{layer}.weight" in trained}
    if not shapes:
        raise UserError(
            f"--train_method {settings.train_method} leaves no linear layer or convolution, which a LoRA needs."
        )
    scores = _scores(run, family, shapes, data, settings)
    most = int(settings.mask_ratio * sum(tensor.numel() for tensor in trained.values()))
    layers = list(shapes) if settings.mask == "full" else salient_layers(scores, shapes, most)
    if not layers:
        raise UserError(
            f"--mask_ratio {settings.mask_ratio:g} lets {most:,} weights move, and no layer is as small; raise it."
        )
    budget = settings.rank * sum(map(cost, shapes.values()))
    ranks = (
        {layer: min(settings.rank, highest_rank(shapes[layer])) for layer in layers}
        if settings.mask == "full"
        else ranks_by_saliency({layer: scores[layer] for layer in layers}, shapes, budget)
    )
    held = sum(scores[layer] for layer in layers) / max(sum(scores.values()), 1e-38)
    recipe: dict[str, JSON] = {
        "kind": "layers",
        "by": settings.mask,
        "ratio": settings.mask_ratio,
        "base_sha256": run.base,
        "train_method": settings.train_method,
        "seed": settings.seed,
        "rank": settings.rank,
        "held": held,
        "ranks": dict(ranks),
    }
    whole = SaliencyMask.full({f"{layer}.weight": shapes[layer] for layer in layers})
    mask = SaliencyMask(whole.packed, whole.shapes, recipe).extended_to(parameters)
    if run.main:
        tell("note", _told(ranks, shapes, budget, held))
        with full_disk_is_told("the mask"):
            mask.save(run.folder.mask)
        run.folder.mark_done("mask", run.marks.mask, run.folder.mask)
    run.accelerator.wait_for_everyone()
    return mask


def ranks_of(mask: SaliencyMask) -> dict[str, int]:
    """The ranks that a mask's recipe holds.

    Raises:
        UserError: If it is the mask of no LoRA.
    """
    ranks = mask.recipe.get("ranks")
    if not isinstance(ranks, dict) or not all(isinstance(rank, int) for rank in ranks.values()):
        raise UserError("The mask has no ranks in its recipe: it is of a run without a LoRA.")
    return {layer: int(str(rank)) for layer, rank in ranks.items()}


def _scores(run: Run, family: Family, shapes: Shapes, data: EraseData, settings: Settings) -> Scores:
    """What each layer carries: its saliency, summed over its weights.

    Of several concepts the shares of each are added, or the loss on all of them is taken (`concept_masks` joint).
    """
    parameters = dict(family.denoiser.named_parameters())
    weights: dict[str, nn.Parameter] = {f"{layer}.weight": parameters[f"{layer}.weight"] for layer in shapes}
    match settings.mask:
        case "saliency" | "saliency_ratio":
            joint = settings.concept_masks == "joint" or data.groups == 1
            sets = [data] if joint else [data.forget_of(group) for group in range(data.groups)]
            scores = dict.fromkeys(shapes, 0.0)
            for one in sets:
                found = forget_saliency(run, family, weights, one, settings)
                if settings.mask == "saliency_ratio":
                    found = saliency_ratio(found, retain_saliency(run, family, weights, data, settings))
                sums = {layer: float(found[f"{layer}.weight"].double().sum()) for layer in shapes}
                whole = max(sum(sums.values()), 1e-38)
                scores = {layer: scores[layer] + sums[layer] / whole for layer in shapes}
            return scores
        case "magnitude":
            return {layer: float(weights[f"{layer}.weight"].detach().abs().double().sum()) for layer in shapes}
        case "random":
            return {
                layer: shape.numel() * float(torch.rand((), generator=stream(settings.seed, "layers", layer)))
                for layer, shape in shapes.items()
            }
    return {layer: float(shape.numel()) for layer, shape in shapes.items()}


def _told(ranks: Mapping[str, int], shapes: Shapes, budget: int, held: float) -> str:
    used = sum(rank * cost(shapes[layer]) for layer, rank in ranks.items())
    return (
        f"LoRA on {len(ranks)} of {len(shapes)} layers, which hold {held:.0%} of what they are chosen by; ranks "
        f"{min(ranks.values())} to {max(ranks.values())}, {used:,} parameters of {budget:,}."
    )
