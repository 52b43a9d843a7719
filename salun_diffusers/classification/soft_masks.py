"""Soft thresholds of an unlearning: masks made of probabilities, and what is done to updates beside the mask."""

from __future__ import annotations

import torch

from salun_diffusers.classification.classifier import Classifier
from salun_diffusers.classification.config import UnlearnConfig
from salun_diffusers.classification.hyper_parameters import Training
from salun_diffusers.classification.masks import forget_saliency, make_mask
from salun_diffusers.classification.training import Soften, hard
from salun_diffusers.errors import UserError
from salun_diffusers.masks.inclusion import Inclusion
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.saliency import Saliency
from salun_diffusers.masks.soft_updates import ProximalUpdates, continuous, falling, redrawn
from salun_diffusers.pictures.labelled_pictures import LabelledPictures
from salun_diffusers.seeds import stream

SHARE, TEMPERATURE = 0.5, 0.25
_SCORED = ("saliency", "magnitude", "random")


def check_soft(config: UnlearnConfig, mask: str, training: Training | None) -> None:
    """Refuse what has no effect together, before anything is loaded.

    Args:
        config: The flags.
        mask: The mask, by the flag or of the method.
        training: Of the method; None if it does not train.

    Raises:
        UserError: Naming the flag.
    """
    kind, method = config.soft_threshold, config.method
    heeded = {"proximal": ("soft_share",), "probabilistic": ("mask_temperature", "mask_draws"),
              "continuous": ("mask_temperature",)}  # fmt: skip
    for name in ("soft_share", "mask_temperature", "mask_draws"):
        if getattr(config, name) is not None and name not in heeded.get(kind, ()):
            raise UserError(f"--{name} has no effect with --soft_threshold {kind}; leave it out.")
    if kind == "none":
        return
    if kind != "proximal" and mask not in _SCORED:
        raise UserError(
            f"--soft_threshold {kind} makes the mask of scores: --mask must be one of {', '.join(_SCORED)}; got {mask}."
        )
    by_steps = kind != "probabilistic" or config.mask_draws == "step"
    if by_steps and (training is None or method in ("salun_soft", "retrain", "be")):
        why = {"salun_soft": "has a proximal step of its own", "retrain": "starts from new weights",
               "be": "trains a layer that has no scores"}  # fmt: skip
        raise UserError(
            f"--soft_threshold {kind} acts on every step of a training, and --method {method} "
            f"{why.get(method, 'does not train')}; probabilistic masks drawn once go with every method."
        )
    if kind == "proximal" and training is not None and training.epochs < 2:
        raise UserError("--soft_threshold proximal lowers its share after every epoch: --epochs must be 2 or more.")


def masked(
    config: UnlearnConfig, kind: str, classifier: Classifier, forget: LabelledPictures
) -> tuple[SaliencyMask, Soften]:
    """The mask of an unlearning, and what is done to updates beside it.

    A proximal step goes with any mask; its share falls linearly from epoch to epoch, to 0 in the last one.

    Args:
        config: The flags; `check_soft` has looked at them.
        kind: The mask: what scores the weights, or a file.
        classifier: θ₀.
        forget: D_f.
    """
    ratio, scope = config.mask_ratio, config.mask_scope
    if config.soft_threshold not in ("probabilistic", "continuous") or ratio == 1:
        mask = make_mask(kind, classifier, forget, ratio=ratio, scope=scope, seed=config.seed)
        start = SHARE if config.soft_share is None else config.soft_share
        proximal = config.soft_threshold == "proximal"
        return mask, (lambda selected: ProximalUpdates(selected.weights, falling(start))) if proximal else hard
    parameters = classifier.parameters
    match kind:
        case "saliency":
            scores = forget_saliency(classifier, forget)
        case "magnitude":
            scores = Saliency({name: weight.detach().abs() for name, weight in parameters.items()})
        case _:
            scores = Saliency({name: torch.ones(weight.shape) for name, weight in parameters.items()})
    temperature = TEMPERATURE if config.mask_temperature is None else config.mask_temperature
    inclusion = Inclusion.from_saliency(scores, ratio, temperature, scope, {"scores": kind})
    if config.soft_threshold == "continuous":
        return inclusion.support(), lambda selected: continuous(selected, inclusion)
    if config.mask_draws == "step":
        return inclusion.support(), lambda selected: redrawn(selected, inclusion, config.seed)
    return inclusion.draw(stream(config.seed, "mask draw", 0)), hard
