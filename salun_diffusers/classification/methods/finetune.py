"""Methods that train on the retain set only: fine-tuning, l1-sparse, and retraining from new weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from salun_diffusers.classification.batches import Batch
from salun_diffusers.classification.hyper_parameters import FineTuneSettings, L1SparseSettings, RetrainSettings
from salun_diffusers.classification.models import fresh_copy
from salun_diffusers.classification.training import Task, Unlearned, cross_entropy, finished, fit
from salun_diffusers.seeds import stream_seed


@final
@dataclass(frozen=True)
class FineTune(FineTuneSettings):
    """FT: ℓ = CE(x_r, y_r), and hope that the rest is forgotten.

    Args:
        training: Settings of SGD.
    """

    def __call__(self, task: Task) -> Unlearned:
        """Train on the retain set."""
        size = self.training.batch_size
        history = fit(
            task,
            self.training,
            lambda epoch: task.batches(task.split.retain, size, "retain", epoch),
            cross_entropy(task.classifier),
        )
        return finished(task, history)


@final
@dataclass(frozen=True)
class L1Sparse(L1SparseSettings):
    """l1-sparse: ℓ = CE(x_r, y_r) + γ_t ‖θ‖₁ over all weights, batch norms and biases among them.

        γ_t = γ · (1 - t / (T - T₀)) in epoch t < T - T₀, then 0

    arXiv 2304.04934; OPTML-Group/Unlearn-Saliency@a6e89fd, Classification/unlearn/FT.py. There is no pruning.

    Differs from the official code: γ defaults to 1e-4 (there 0.2, shared with another method and far too large).

    Args:
        training: Settings of SGD.
        penalty: γ.
        epochs_without: T₀, epochs at the end without the penalty.
    """

    def weight(self, epoch: int) -> float:
        """γ_t of an epoch, counted from 0."""
        epochs = self.training.epochs - self.epochs_without
        return self.penalty * (1 - epoch / epochs) if epoch < epochs else 0.0

    def __call__(self, task: Task) -> Unlearned:
        """Train on the retain set under the penalty."""
        size, classification = self.training.batch_size, cross_entropy(task.classifier)
        steps = -(-len(task.split.retain) // size)
        done = 0

        def loss(batch: Batch) -> Tensor:
            nonlocal done
            weight = self.weight(done // steps)
            done += 1
            norm = torch.stack([value.abs().sum() for value in task.classifier.parameters.values()]).sum()
            return classification(batch) + weight * norm

        history = fit(task, self.training, lambda epoch: task.batches(task.split.retain, size, "retain", epoch), loss)
        return finished(task, history)


@final
@dataclass(frozen=True)
class Retrain(RetrainSettings):
    """Retrain: new random weights, then the starting model's recipe on the retain set: the reference for every gap.

    Under a mask only the selected weights are drawn anew; under the full mask nothing of θ₀ is left.

    Args:
        training: Settings of SGD: those that the starting model was trained with.
    """

    def __call__(self, task: Task) -> Unlearned:
        """Draw weights and train."""
        fresh = fresh_copy(task.classifier, stream_seed(task.seed, "weights"))
        selected = task.selected()
        drawn, new = selected.state(), fresh.parameters
        for name, leaf in drawn.items():
            leaf.copy_(new[name].detach().reshape(-1)[task.mask.indices(name).long().to(leaf.device)])
        selected.scatter()
        buffers = dict(fresh.model.named_buffers())
        for name, buffer in task.classifier.model.named_buffers():
            buffer.copy_(buffers[name])
        return FineTune(self.training)(task)
