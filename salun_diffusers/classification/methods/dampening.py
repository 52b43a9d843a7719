"""SSD: weights that matter far more to the forget set than to all data are shrunk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from salun_diffusers.classification.batches import Batch, in_order, in_order_of_content
from salun_diffusers.classification.classifier import Classifier
from salun_diffusers.classification.hyper_parameters import DampeningSettings
from salun_diffusers.classification.training import Task, Unlearned, apply_change, finished
from salun_diffusers.masks.saliency import Saliency, gradient_saliency
from salun_diffusers.pictures.labelled_pictures import LabelledPictures


@final
@dataclass(frozen=True)
class SelectiveDampening(DampeningSettings):
    """SSD: where I_f > α I_D:  θ ← θ · min(λ I_D / I_f, 1),   I = mean_b (∇_θ CE_b)².

    Foster et al., arXiv 2308.07707, with the batches of if-loops/selective-synaptic-dampening@1a7db5b. Nothing is
    trained.

    Differs from the official code: a mean gradient over pictures of one class is another than over mixed ones, so I
    depends on which pictures share a batch. There they are taken as they are stored (``importance_order="stored"``),
    class by class in folders of pictures; here they are mixed by their contents and the seed, whatever their order.

    Args:
        selection: α.
        dampening: λ.
        importance_batch_size: Pictures whose mean gradient is squared; 1 is the empirical Fisher matrix's diagonal.
        importance_order: Which pictures share a batch.
    """

    def importance(self, classifier: Classifier, data: LabelledPictures, seed: int = 0) -> Saliency:
        """I of a data set."""
        classifier.eval()
        size = self.importance_batch_size
        batches = -(-len(data) // size)
        ordered = in_order_of_content(data, seed) if self.importance_order == "drawn" else data

        def loss(batch: Batch) -> Tensor:
            # The square of a gradient over √n is the square over n.
            return F.cross_entropy(classifier.logits(batch.pixels), batch.labels) / math.sqrt(batches)

        return gradient_saliency(
            classifier.parameters, in_order(ordered, size, classifier.device), loss, accumulate="squared"
        )

    def __call__(self, task: Task) -> Unlearned:
        """Shrink the weights."""
        of_forget = self.importance(task.classifier, task.split.forget, task.seed)
        of_all = self.importance(task.classifier, task.split.train, task.seed)
        change = {}
        for name, weight in task.classifier.parameters.items():
            ratio = self.dampening * of_all[name] / of_forget[name].clamp_min(1e-30)
            factor = torch.where(of_forget[name] > self.selection * of_all[name], ratio.clamp_max(1.0), 1.0)
            change[name] = weight.detach() * (factor.to(weight) - 1)
        apply_change(task, change)
        return finished(task, [])
