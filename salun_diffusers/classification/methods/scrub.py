"""SCRUB: a student that disobeys its teacher on the forget set and obeys it on the rest."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from salun_diffusers.classification.batches import Batch
from salun_diffusers.classification.hyper_parameters import ScrubSettings
from salun_diffusers.classification.training import Task, Unlearned, finished, fit


@final
@dataclass(frozen=True)
class Scrub(ScrubSettings):
    """SCRUB: forget batches climb KL(f₀ ‖ f), retain batches descend γ CE + α KL(f₀ ‖ f).

        KL = T² · Σ_c p₀ log(p₀ / p),   p = softmax(logits / T)

    An epoch goes through the forget set (in the first `ascent_epochs` epochs only), then the retain set. Kurmanji et
    al., arXiv 2302.09880.

    Args:
        training: Settings of SGD.
        ascent_epochs: Epochs with the forget set.
        distillation: α.
        retain_weight: γ.
        temperature: T.
    """

    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The mean KL of two `(b, classes)` logits."""
        t = self.temperature
        target = F.log_softmax(teacher / t, 1)
        return F.kl_div(F.log_softmax(student / t, 1), target, reduction="batchmean", log_target=True) * t * t

    def __call__(self, task: Task) -> Unlearned:
        """Train on both sets in turn."""
        teacher = dataclasses.replace(task.classifier, model=copy.deepcopy(task.classifier.model))
        teacher.eval()
        size = self.training.batch_size

        def passes(epoch: int) -> Iterator[Batch]:
            if epoch < self.ascent_epochs:
                yield from task.batches(task.split.forget, size, "forget", epoch, forget=True)
            yield from task.batches(task.split.retain, size, "retain", epoch)

        def loss(batch: Batch) -> Tensor:
            student = task.classifier.logits(batch.pixels)
            with torch.no_grad():
                taught = teacher.logits(batch.pixels)
            divergence = self.divergence(taught, student)
            if batch.forget:
                return -divergence
            return self.retain_weight * F.cross_entropy(student, batch.labels) + self.distillation * divergence

        return finished(task, fit(task, self.training, passes, loss))
