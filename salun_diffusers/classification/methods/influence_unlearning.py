"""IU: one step along the estimated influence of the forget set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from salun_diffusers.classification.hyper_parameters import InfluenceSettings
from salun_diffusers.classification.influence import (
    conjugate_gradients,
    diagonal_product,
    difference_gradient,
    fisher_product,
    official_product,
    unflat,
)
from salun_diffusers.classification.training import Task, Unlearned, apply_change, finished


@final
@dataclass(frozen=True)
class InfluenceUnlearning(InfluenceSettings):
    """IU: θ ← θ₀ + α · m ⊙ k,   k ≈ (F + λ)⁻¹ v, with v of `difference_gradient`.

    ``official`` is the papers' recursion, for parity: no inverse, see `official_product`. ``diag`` divides by the
    diagonal of the empirical Fisher matrix, ``cg`` solves with the whole matrix. Koh & Liang, arXiv 1703.04730.

    Args:
        step: α.
        inverse: How k is computed.
        damping: λ of ``diag`` and ``cg``.
        samples: M of ``official``.
        iterations: Products with F of ``cg``.
    """

    def __call__(self, task: Task) -> Unlearned:
        """Take the step."""
        classifier, retain = task.classifier, task.split.retain
        v = difference_gradient(classifier, task.split.forget, retain)
        match self.inverse:
            case "official":
                k = official_product(classifier, retain, v, self.samples)
            case "diag":
                k = diagonal_product(classifier, retain, v, self.damping)
            case _:
                product = fisher_product(classifier, retain)
                k = conjugate_gradients(product, v, damping=self.damping, iterations=self.iterations)
        apply_change(task, unflat(self.step * k, classifier.parameters))
        return finished(task, [])
