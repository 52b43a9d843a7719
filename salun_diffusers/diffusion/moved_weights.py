"""The weights that a run moves: entries of the denoiser's own tensors, or a LoRA beside them."""

from __future__ import annotations

from salun_diffusers.adapters.lora_weights import LoraWeights, attach
from salun_diffusers.diffusion.adapted_model import NAME
from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.latent_sets import EraseData
from salun_diffusers.diffusion.layer_masks import layer_mask, ranks_of
from salun_diffusers.diffusion.masks import make_mask
from salun_diffusers.diffusion.request import Request
from salun_diffusers.diffusion.sharding import share_out
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.masks.selected_weights import SelectedWeights
from salun_diffusers.masks.trained_weights import TrainedWeights


def weights_to_move(run: Run, request: Request, family: Family, data: EraseData) -> TrainedWeights:
    """Find the weights that carry the concept, and make them an optimizer's.

    Args:
        run: Keeps the mask.
        request: Settings and concept.
        family: The base model; with `adapter` its denoiser gets a LoRA that changes nothing yet.
        data: The forget set.
    """
    settings, denoiser = request.settings, family.denoiser
    if settings.adapter == "lora":
        mask = layer_mask(run, request, family, data)
        attach(denoiser, ranks_of(mask), settings.lora_alpha / settings.rank, name=NAME, seed=settings.seed)
        return LoraWeights(denoiser, NAME)
    mask = make_mask(run, request, family, data)
    share_out(run.accelerator, denoiser)
    return SelectedWeights(dict(denoiser.named_parameters()), mask)
