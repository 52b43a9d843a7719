"""RL, and with a saliency mask SalUn: forget pictures get other labels; SalUn-soft: without a fixed mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from salun_diffusers.classification.batches import Batch, even_sizes, join
from salun_diffusers.classification.hyper_parameters import RandomLabelSettings, SalUnSoftSettings
from salun_diffusers.classification.labels import random_labels
from salun_diffusers.classification.training import Loss, Task, Unlearned, finished, fit
from salun_diffusers.errors import UserError
from salun_diffusers.masks.selected_weights import SelectedWeights
from salun_diffusers.masks.soft_threshold import falling_share, soft_threshold_
from salun_diffusers.pictures.labelled_pictures import LabelledPictures
from salun_diffusers.seeds import stream


@final
@dataclass(frozen=True)
class RandomLabel(RandomLabelSettings):
    """RL: ℓ = CE(x_f, y′) + α CE(x_r, y_r), with y′ ≠ y_f drawn anew for every batch. SalUn is this under its mask.

    SalUn, arXiv 2310.12508, with both terms in one step (``together``): an epoch goes exactly once through each set,
    the forget set dealt out evenly over the batches of the retain set. If it has fewer pictures than there are batches,
    a step has one or none of them, and where it has none the first term is 0.

    Differs from the official code: OPTML-Group/Unlearn-Saliency@a6e89fd, Classification/unlearn/RL.py, has no α and
    goes through the whole forget set, then the whole retain set (``sequential``, CIFAR-10 and SVHN), or draws labels
    once per epoch and mixes the sets (``mixed``, CIFAR-100 and TinyImageNet), and draws y′ from all classes
    (``labels="any"``).

    Args:
        training: Settings of SGD.
        retain_weight: α.
        order: How the two sets are gone through.
        labels: Whether y′ may be the true label.

    Raises:
        UserError: If `retain_weight` is not 1 where the sets are mixed.
    """

    def __post_init__(self) -> None:
        if self.order == "mixed" and self.retain_weight != 1:
            raise UserError(
                f"--retain_weight must be 1 with --order mixed, got {self.retain_weight}: mixed batches have one loss."
            )

    def passes(self, task: Task, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, forget rows with their new labels."""
        size, forget, retain = self.training.batch_size, task.split.forget, task.split.retain
        generator = stream(task.seed, "labels", epoch)

        def relabelled(batch: Batch) -> Batch:
            drawn = random_labels(batch.labels, task.classifier.num_classes, generator, self.labels)
            return Batch(batch.pixels, drawn, batch.forget)

        if self.order == "mixed":
            drawn = random_labels(forget.labels, task.classifier.num_classes, generator, self.labels)
            pixels = torch.cat([forget.pixels, retain.pixels])
            both = LabelledPictures(pixels, torch.cat([drawn, retain.labels]), retain.class_names)
            yield from task.batches(both, size, "mixed", epoch)
            return
        retained = task.batches(retain, size, "retain", epoch)
        if self.order == "sequential":
            for batch in task.batches(forget, size, "forget", epoch, forget=True):
                yield relabelled(batch)
            yield from retained
            return
        dealt = task.batches(forget, even_sizes(len(forget), self.steps(task)), "forget", epoch, forget=True)
        for few, batch in zip(dealt, retained, strict=True):
            yield join([relabelled(few), batch])

    def steps(self, task: Task) -> int:
        """How many batches an epoch has."""
        size, forget, retain = self.training.batch_size, len(task.split.forget), len(task.split.retain)
        sets = {"together": [retain], "sequential": [forget, retain], "mixed": [forget + retain]}[self.order]
        return sum(-(-count // size) for count in sets)

    def loss(self, task: Task) -> Loss:
        """The loss of a batch whose first rows come from the forget set."""

        def together(batch: Batch) -> Tensor:
            logits = task.classifier.logits(batch.pixels)
            total = logits.new_zeros(())
            if batch.forget:
                total = total + F.cross_entropy(logits[: batch.forget], batch.labels[: batch.forget])
            if batch.forget < len(batch.labels):
                retain = F.cross_entropy(logits[batch.forget :], batch.labels[batch.forget :])
                total = total + self.retain_weight * retain
            return total

        return together

    def __call__(self, task: Task) -> Unlearned:
        """Train on both sets."""
        history = fit(task, self.training, lambda epoch: self.passes(task, epoch), self.loss(task))
        return finished(task, history)


@final
@dataclass(frozen=True)
class SalUnSoft(SalUnSoftSettings):
    """SalUn-soft: RL whose smallest changes are taken back after every step; see `soft_threshold_`.

        share(s) = p · (1 - s/S) in step s of S

    Differs from the official code: OPTML-Group/Unlearn-Saliency@a6e89fd, Classification/unlearn/RL_pro.py, measures
    changes from the weights at the start of each epoch (``anchor="epoch"``) and lowers the share once per epoch; here
    changes are measured from θ₀.

    Args:
        training: Settings of SGD.
        retain_weight: α, as for `RandomLabel`.
        order: As for `RandomLabel`.
        labels: As for `RandomLabel`.
        frozen_share: p, the share of changes taken back at the start.
        anchor: What changes are measured from.
    """

    def __call__(self, task: Task) -> Unlearned:
        """Train on both sets."""
        relabel = RandomLabel(self.training, self.retain_weight, self.order, self.labels)
        selected = task.selected()
        reference = [leaf.detach().clone() for leaf in selected.weights]
        steps = self.training.epochs * relabel.steps(task)

        def passes(epoch: int) -> Iterator[Batch]:
            if self.anchor == "epoch":
                reference[:] = [leaf.detach().clone() for leaf in selected.weights]
            return relabel.passes(task, epoch)

        def shrink(weights: SelectedWeights, step: int) -> None:
            soft_threshold_(weights.weights, reference, falling_share(self.frozen_share, step, steps))

        history = fit(task, self.training, passes, relabel.loss(task), selected=selected, after_step=shrink)
        return finished(task, history)
