"""The mask of a run: which weights of the denoiser may move, by the saliency of a forget set or otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, reduce
from operator import or_
from pathlib import Path

import torch
from torch import nn

from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.foreseen import MADE_MASKS, trained_names
from salun_diffusers.diffusion.latent_sets import EraseData
from salun_diffusers.diffusion.request import Request
from salun_diffusers.diffusion.saliency_pass import forget_saliency, retain_saliency
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.diffusion.soft_masks import MaskChoice
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.files.pipeline_folder import public_name
from salun_diffusers.files.whole_files import full_disk_is_told
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.mask_file import JSON
from salun_diffusers.masks.saliency import Saliency, saliency_ratio
from salun_diffusers.seeds import stream


def given_masks(settings: Settings) -> tuple[SaliencyMask, ...]:
    """The mask of the user's file; none where the run makes its own."""
    return () if settings.mask in MADE_MASKS else (SaliencyMask.load(Path(settings.mask)),)


def make_mask(run: Run, request: Request, family: Family, data: EraseData) -> SaliencyMask:
    """The mask of the run, made as `--mask` says or taken from a file; or that of an interrupted run."""
    settings, parameters = request.settings, dict(family.denoiser.named_parameters())
    if run.is_done("mask", run.marks.mask):
        return SaliencyMask.load(run.folder.mask).matched_to(parameters)
    trained = trained_parameters(parameters, settings.train_method, family.attention)
    recipe: dict[str, JSON] = {
        "concept": [part.name for part in request.concept.parts] or _typed(request),
        "base": public_name(request.config.pretrained_model_name_or_path)[0],
        "base_sha256": run.base,
        "train_method": settings.train_method,
        "seed": settings.seed,
    }
    ratio, scope, choice = settings.mask_ratio, settings.mask_scope, MaskChoice(settings)
    match settings.mask:
        case "saliency" | "saliency_ratio":
            recipe |= {"guidance": settings.saliency_guidance}
            recipe |= {"scores": settings.mask} if settings.mask != "saliency" else {}
            recipe |= {"weighting": settings.saliency_weighting} if settings.saliency_weighting != "none" else {}
            mask = saliency_mask(run, family, trained, data, choice, recipe)
        case "magnitude":
            scores = Saliency({name: tensor.detach().abs() for name, tensor in trained.items()})
            recipe |= {"scores": "magnitude"}
            mask = choice.of(scores, recipe)
        case "random" if settings.by_probability:
            recipe |= {"scores": "random"}
            mask = choice.of(Saliency({name: torch.ones(one.shape) for name, one in trained.items()}), recipe)
        case "random":
            mask = SaliencyMask.random(
                trained, ratio, stream(settings.seed, "mask"), scope, {**recipe, "run_seed": settings.seed}
            )
        case "full":
            mask = SaliencyMask.full(trained, recipe)
        case file:
            mask = SaliencyMask.load(Path(file)).matched_to(parameters)
            if len(trained) < len(parameters):
                mask = mask.restrict(trained.__contains__)
    mask = mask.extended_to(parameters)
    if run.main:
        with full_disk_is_told("the mask"):
            mask.save(run.folder.mask)
            beside = choice.save(run)
        run.folder.mark_done("mask", run.marks.mask, run.folder.mask, *beside)
    run.accelerator.wait_for_everyone()
    return mask


def _typed(request: Request) -> str:
    """The concept as it was typed; by its name where a table says it."""
    return request.config.concept if isinstance(request.config.concept, str) else request.concept.name


def trained_parameters(
    parameters: Mapping[str, nn.Parameter], method: str, attention: Mapping[str, str]
) -> dict[str, nn.Parameter]:
    """The parameters that a train method lets into the mask; see `trained_names`."""
    return {name: parameters[name] for name in trained_names(parameters, method, attention)}


def saliency_mask(
    run: Run,
    family: Family,
    parameters: Mapping[str, nn.Parameter],
    data: EraseData,
    choice: MaskChoice,
    recipe: Mapping[str, JSON],
) -> SaliencyMask:
    """The mask of the forget loss, divided by the retain loss where the settings say so.

    Of several concepts m = m₁ | … | m_k, unless the joint loss is asked for.

    Each m_i has the ratio of the settings, so that a concept has in the join the weights that it would have alone; the
    join has between ratio and k·ratio of all. The joint loss has exactly the ratio, for all concepts together.
    """
    settings = choice.settings
    alone = settings.concept_masks == "joint" or data.groups == 1

    @cache
    def of_retained() -> Saliency:
        return retain_saliency(run, family, parameters, data, settings)

    masks = []
    for group in range(1 if alone else data.groups):
        scores = forget_saliency(run, family, parameters, data if alone else data.forget_of(group), settings)
        if settings.mask == "saliency_ratio":
            scores = saliency_ratio(scores, of_retained())
        masks.append(choice.of(scores, recipe))
    if len(masks) == 1:
        return masks[0]
    joined = reduce(or_, masks)
    densities: list[JSON] = [mask.density for mask in masks]
    return SaliencyMask(joined.packed, joined.shapes, {**masks[0].recipe, "kind": "union", "densities": densities})
