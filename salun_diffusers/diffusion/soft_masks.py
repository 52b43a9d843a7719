"""Soft thresholds of an erasure: masks made of probabilities, and what is done to updates beside the mask."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from pathlib import Path

from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.global_batch import GlobalBatch
from salun_diffusers.diffusion.latent_sets import EraseData
from salun_diffusers.diffusion.model_shape import ModelShape
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.masks.inclusion import Inclusion
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.mask_file import JSON
from salun_diffusers.masks.saliency import Saliency
from salun_diffusers.masks.selected_weights import SelectedWeights
from salun_diffusers.masks.soft_threshold import official_share
from salun_diffusers.masks.soft_updates import HardUpdates, ProximalUpdates, SoftUpdates, continuous, falling, redrawn
from salun_diffusers.masks.trained_weights import TrainedWeights
from salun_diffusers.seeds import stream


class MaskChoice:
    """From scores to a mask: the largest ones, a draw, or all that probabilities leave any chance.

    Attributes:
        settings: Of the run.
    """

    def __init__(self, settings: Settings) -> None:
        """Choose as the settings say."""
        self.settings = settings
        self._inclusions: list[Inclusion] = []

    def of(self, scores: Saliency, recipe: Mapping[str, JSON]) -> SaliencyMask:
        """The mask of some scores; of several concepts this is asked once for each.

        Args:
            scores: One per weight that may be selected.
            recipe: What else to record.
        """
        settings, ratio, scope = self.settings, self.settings.mask_ratio, self.settings.mask_scope
        if not settings.by_probability or ratio == 1:
            return SaliencyMask.from_saliency(scores, ratio, scope, recipe)
        inclusion = Inclusion.from_saliency(scores, ratio, settings.mask_temperature, scope, recipe)
        self._inclusions.append(inclusion)
        if settings.scales_updates:
            return inclusion.support()
        return inclusion.draw(stream(settings.seed, "mask draw", len(self._inclusions)))

    def save(self, run: Run) -> tuple[Path, ...]:
        """Write the probabilities beside the mask, where training needs them; returns the file, if there is one."""
        if not self._inclusions or not self.settings.scales_updates:
            return ()
        reduce(or_, self._inclusions).save(run.folder.inclusion)
        return (run.folder.inclusion,)


def soft_updates(
    run: Run, family: Family, selected: TrainedWeights, data: EraseData, settings: Settings, steps: int
) -> SoftUpdates:
    """What is done to the updates of a fine-tuning beside its mask.

    Differs from the official code: the share of changes taken back falls linearly to 0, and only weights that can move
    are counted. With ``--soft_rule official`` it falls as in OPTML-Group/Unlearn-Saliency@a6e89fd,
    SD/train-scripts/proximal_gradient.py, see `official_share`, and all weights of the pipeline are counted.

    Args:
        run: Its folder holds the probabilities, if there are any.
        family: The base model.
        selected: The weights that may move, as they are in the base.
        data: Says how many batches an epoch has.
        settings: Of the run.
        steps: Of the fine-tuning in all.
    """
    if not isinstance(selected, SelectedWeights):  # A LoRA: soft thresholds are refused with one.
        return HardUpdates()
    if settings.scales_updates and settings.mask_ratio < 1:
        inclusion = Inclusion.load(run.folder.inclusion)
        if settings.soft_threshold == "continuous":
            return continuous(selected, inclusion)
        return redrawn(selected, inclusion, settings.seed)
    if settings.soft_threshold != "proximal":
        return HardUpdates()
    if settings.soft_rule == "exact":
        return ProximalUpdates(selected.weights, falling(settings.soft_share))
    size = GlobalBatch.of(settings, run.accelerator.num_processes).size
    forget, retain = (-(-count // size) for count in (len(data.forget) + len(data.anchor), len(data.retain)))

    def leaps(step: int, _: float) -> float:
        return official_share(settings.soft_share, step, steps, (forget, retain))

    weights = sum(parameter.numel() for parameter in family.denoiser.parameters())
    others = weights - selected.number_selected + ModelShape.of(family.folder).weights_beside()
    return ProximalUpdates(selected.weights, leaps, others)
