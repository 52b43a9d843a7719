"""The mask of a run: which weights of the denoiser may move, by the saliency of a forget set or otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import reduce
from operator import or_
from pathlib import Path

import torch
from torch import Tensor, nn

from salun_diffusers.diffusion.families.family import Family, rows
from salun_diffusers.diffusion.foreseen import MADE_MASKS, trained_names
from salun_diffusers.diffusion.latent_set import Drawn
from salun_diffusers.diffusion.latent_sets import EraseData
from salun_diffusers.diffusion.objectives import EraseBatch, guided_noise_loss
from salun_diffusers.diffusion.request import Request
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.errors import tell
from salun_diffusers.files.whole_files import full_disk_is_told
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.mask_file import JSON
from salun_diffusers.masks.saliency import Saliency, gradient_saliency
from salun_diffusers.masks.trained_tensors import only_trained
from salun_diffusers.progress import Progress
from salun_diffusers.seeds import stream


def given_masks(settings: Settings) -> tuple[SaliencyMask, ...]:
    """The mask of the user's file; none where the run makes its own."""
    return () if settings.mask in MADE_MASKS else (SaliencyMask.load(Path(settings.mask)),)


def make_mask(run: Run, request: Request, family: Family, data: EraseData) -> SaliencyMask:
    """The mask of the run: of the forget loss, random, magnitude, full, or from a file; or an interrupted run's."""
    settings, parameters = request.settings, dict(family.denoiser.named_parameters())
    if run.is_done("mask", run.marks.mask):
        return SaliencyMask.load(run.folder.mask).matched_to(parameters)
    trained = trained_parameters(parameters, settings.train_method, family.attention)
    recipe: dict[str, JSON] = {
        "concept": [part.name for part in request.concept.parts] or _typed(request),
        "base": _public_name(request.config.pretrained_model_name_or_path),
        "base_sha256": run.base,
        "train_method": settings.train_method,
        "seed": settings.seed,
    }
    ratio, scope = settings.mask_ratio, settings.mask_scope
    match settings.mask:
        case "saliency":
            recipe |= {"guidance": settings.saliency_guidance}
            mask = saliency_mask(run, family, trained, data, settings, recipe)
        case "magnitude":
            scores = Saliency({name: tensor.detach().abs() for name, tensor in trained.items()})
            recipe |= {"scores": "magnitude"}
            mask = SaliencyMask.from_saliency(scores, ratio, scope, recipe)
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
        run.folder.mark_done("mask", run.marks.mask, run.folder.mask)
    run.accelerator.wait_for_everyone()
    return mask


def _typed(request: Request) -> str:
    """The concept as it was typed; by its name where a table says it."""
    return request.config.concept if isinstance(request.config.concept, str) else request.concept.name


def _public_name(model: str) -> str:
    """A model's name for a file that may be passed on: of the user's folder or file its name, not where it lies."""
    return Path(model).expanduser().resolve().name if Path(model).expanduser().exists() else model


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
    settings: Settings,
    recipe: Mapping[str, JSON],
) -> SaliencyMask:
    """The mask of the forget loss; of several concepts m = m₁ | … | m_k, unless the joint loss is asked for.

    Each m_i has the ratio of the settings, so that a concept has in the join the weights that it would have alone; the
    join has between ratio and k·ratio of all. The joint loss has exactly the ratio, for all concepts together.
    """
    alone = settings.concept_masks == "joint" or data.groups == 1
    masks = []
    for group in range(1 if alone else data.groups):
        scores = forget_saliency(run, family, parameters, data if alone else data.forget_of(group), settings)
        masks.append(SaliencyMask.from_saliency(scores, settings.mask_ratio, settings.mask_scope, recipe))
    if len(masks) == 1:
        return masks[0]
    joined = reduce(or_, masks)
    densities: list[JSON] = [mask.density for mask in masks]
    return SaliencyMask(joined.packed, joined.shapes, {**masks[0].recipe, "kind": "union", "densities": densities})


def forget_saliency(
    run: Run, family: Family, parameters: Mapping[str, nn.Parameter], data: EraseData, settings: Settings
) -> Saliency:
    """Score some weights of the denoiser by the guided noise loss over one pass of the forget set.

    Each process takes every n-th batch; signed gradients are summed over processes before the absolute value. As in
    the official code a smaller last batch counts with its own mean. Of a batch with loss ℓ_b only as many latents are
    in memory at once as a micro-batch M holds, ∇ℓ_b = Σ_M |M|/|b| ∇ℓ_M; its draws are those of the whole batch.

    Differs from the official code: that of the DDPM shuffles the pictures and pairs timesteps t with T - 1 - t.
    """
    accelerator, size = run.accelerator, settings.saliency_batch_size
    starts = range(0, len(data.forget), size)
    mine = [(start, 1.0) for start in starts[accelerator.process_index :: accelerator.num_processes]]
    mine = mine or [(0, 0.0)]  # A process without a batch adds zeros.
    # fp16 gradients would vanish without a loss scaler; this one pass is worth fp32.
    half = accelerator.mixed_precision == "fp16"
    precision = nullcontext if half else accelerator.autocast
    if half and run.main:
        tell(
            "note",
            "the saliency is computed in fp32, as fp16 loses small gradients; --saliency_micro_batch_size and "
            "--gradient_checkpointing lower its memory.",
        )

    def losses(batch: tuple[int, float]) -> Iterator[Tensor]:
        start, weight = batch
        index = torch.arange(start, min(start + size, len(data.forget)))
        generator = stream(settings.seed, "saliency", start)
        timesteps = family.schedule.sample(len(index), generator)
        drawn = data.forget.draw(index, stream(settings.seed, "posterior", "saliency", start))
        noise = torch.randn(drawn.latents.shape, generator=generator)
        value = 0.0
        for rows_of in torch.arange(len(index)).split(int(min(len(index), settings.saliency_micro_batch_size))):
            with precision():
                loss = guided_noise_loss(
                    family,
                    family.denoiser,
                    _batch(family, data, index[rows_of], drawn.of(rows_of), (timesteps[rows_of], noise[rows_of])),
                    settings.saliency_guidance,
                )
            share = len(rows_of) / len(index)
            value += share * float(loss.detach())
            part = weight * share * loss
            del loss  # No graph waits for the next one.
            yield part
            del part
        bar.advance(loss=value)

    if settings.gradient_checkpointing:
        family.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    family.denoiser.eval()
    trained = only_trained(dict(family.denoiser.named_parameters()), parameters)
    with trained, Progress("saliency", len(mine), run.main) as bar:
        return gradient_saliency(
            parameters,
            mine,
            losses,
            max_grad_norm=settings.saliency_max_grad_norm,
            reduce=lambda total: accelerator.reduce(total.to(family.device), reduction="sum").cpu(),
            offload=settings.offload_saliency,
        )


def _batch(family: Family, data: EraseData, index: Tensor, drawn: Drawn, noising: tuple[Tensor, Tensor]) -> EraseBatch:
    """What the saliency loss sees of some forget latents, noised to some timesteps by some noise."""
    latents = drawn.latents.to(family.device)
    timesteps, noise = (one.to(family.device) for one in noising)
    empty = {name: tensor.expand(len(index), *tensor.shape[1:]) for name, tensor in data.empty.items()}
    return EraseBatch(
        noised=family.schedule.noised(latents, noise, timesteps),
        timesteps=timesteps,
        truth=family.schedule.target(latents, noise, timesteps),
        conditions=drawn.told(rows(data.forget_conditions, data.forget.prompt_index[index])),
        empty_conditions=drawn.told(empty),
    )
