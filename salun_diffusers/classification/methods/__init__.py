"""Every method by the name of its flag: its hyper-parameters, of which the flags are made, called with a `Task`."""

from __future__ import annotations

from typing import Any

from salun_diffusers.classification.methods.boundary import BoundaryExpanding, BoundaryShrinking
from salun_diffusers.classification.methods.dampening import SelectiveDampening
from salun_diffusers.classification.methods.finetune import FineTune, L1Sparse, Retrain
from salun_diffusers.classification.methods.gradient_ascent import GradientAscent
from salun_diffusers.classification.methods.influence_unlearning import InfluenceUnlearning
from salun_diffusers.classification.methods.l2ul import L2UL
from salun_diffusers.classification.methods.random_label import RandomLabel, SalUnSoft
from salun_diffusers.classification.methods.scrub import Scrub

METHODS: dict[str, Any] = {
    "retrain": Retrain,
    "ft": FineTune,
    "rl": RandomLabel,
    "ga": GradientAscent,
    "iu": InfluenceUnlearning,
    "be": BoundaryExpanding,
    "bs": BoundaryShrinking,
    "l1_sparse": L1Sparse,
    "salun": RandomLabel,
    "salun_soft": SalUnSoft,
    "l2ul": L2UL,
    "ssd": SelectiveDampening,
    "scrub": Scrub,
}


def default_mask(method: str) -> str:
    """The mask that a method is published with: saliency for SalUn, all weights for the others."""
    return "saliency" if method == "salun" else "full"
