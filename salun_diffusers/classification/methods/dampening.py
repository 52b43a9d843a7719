"""SSD: weights that matter far more to the forget set than to all data are shrunk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from salun_diffusers.classification.batches import Batch, in_order
from salun_diffusers.classification.classifier import Classifier
from salun_diffusers.classification.hyper_parameters import DampeningSettings
from salun_diffusers.classification.training import Task, Unlearned, apply_change
from salun_diffusers.masks.saliency import Saliency, gradient_saliency
from salun_diffusers.pictures.labelled_pictures import LabelledPictures


@final
@dataclass(frozen=True)
class SelectiveDampening(DampeningSettings):
    """SSD: where I_f > α I_D:  θ ← θ · min(λ I_D / I_f, 1),   I = mean_b (∇_θ CE_b)².

    Foster et al., arXiv 2308.07707. Nothing is trained.

    Args:
        selection: α.
        dampening: λ.
        batch_size: Pictures whose mean gradient is squared; 1 is the diagonal of the empirical Fisher matrix.
    """

    def importance(self, classifier: Classifier, data: LabelledPictures) -> Saliency:
        """I of a data set."""
        classifier.eval()
        batches = -(-len(data) // self.batch_size)

        def loss(batch: Batch) -> Tensor:
            # The square of a gradient over √n is the square over n.
            return F.cross_entropy(classifier.logits(batch.pixels), batch.labels) / math.sqrt(batches)

        return gradient_saliency(
            classifier.parameters, in_order(data, self.batch_size, classifier.device), loss, accumulate="squared"
        )

    def __call__(self, task: Task) -> Unlearned:
        """Shrink the weights."""
        of_forget = self.importance(task.classifier, task.split.forget)
        of_all = self.importance(task.classifier, task.split.train)
        change = {}
        for name, weight in task.classifier.parameters.items():
            ratio = self.dampening * of_all[name] / of_forget[name].clamp_min(1e-30)
            factor = torch.where(of_forget[name] > self.selection * of_all[name], ratio.clamp_max(1.0), 1.0)
            change[name] = weight.detach() * (factor.to(weight) - 1)
        apply_change(task, change)
        return Unlearned(task.classifier, task.mask, [])
