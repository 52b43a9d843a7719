"""The loop all trained methods share: any loss, any mask, any torch optimizer behind `SelectedWeights`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from salun_diffusers.classification.batches import AS_THEY_ARE, Augmentation, Batch, shuffled
from salun_diffusers.classification.classifier import Classifier, NormStats, predict
from salun_diffusers.classification.forget_split import ForgetSplit
from salun_diffusers.classification.hyper_parameters import Training
from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.selected_weights import SelectedWeights
from salun_diffusers.masks.soft_updates import HardUpdates, SoftUpdates, attach
from salun_diffusers.pictures.labelled_pictures import LabelledPictures
from salun_diffusers.seeds import random_state_kept, stream, stream_seed

Soften: TypeAlias = Callable[[SelectedWeights], SoftUpdates]
History: TypeAlias = "list[dict[str, float | None]]"
_MILDER = "use a lower --learning_rate or fewer --epochs (iu: a smaller --step)."


class Trainee(Protocol):
    """A classifier, and which of its weights may move: what `fit` needs to know of a task."""

    @property
    def classifier(self) -> Classifier:
        """θ₀; trained in place."""
        ...

    @property
    def seed(self) -> int:
        """Of what the network itself draws, as dropout does."""
        ...

    @property
    def norm_stats(self) -> NormStats:
        """Whether batch norms go on updating their statistics."""
        ...

    @property
    def soften(self) -> Soften:
        """What is done to their updates beside the mask."""
        ...

    def selected(self) -> SelectedWeights:
        """The weights that may move."""
        ...


def hard(selected: SelectedWeights) -> SoftUpdates:
    """Nothing is done to updates: the mask alone decides."""
    return HardUpdates()


@dataclass(frozen=True)
class AllWeights:
    """A classifier that is trained from the start, so all of it moves.

    Args:
        classifier: With fresh weights.
        seed: Of what the network itself draws.
        norm_stats: Whether batch norms update their statistics.
        soften: What is done to updates.
    """

    classifier: Classifier
    seed: int = 0
    norm_stats: NormStats = "update"
    soften: Soften = hard

    def selected(self) -> SelectedWeights:
        """All weights."""
        return SelectedWeights(self.classifier.parameters, SaliencyMask.full(self.classifier.parameters))


@dataclass(frozen=True)
class Task:
    """What a method works on.

    Args:
        classifier: θ₀; the method changes its weights in place.
        split: What to forget and what to keep.
        mask: Which weights may move.
        seed: Seed of everything a method draws.
        norm_stats: Whether batch norms go on updating their statistics in training; no mask covers those.
        augmentation: What is done to pictures that a method trains on.
        soften: What is done to updates beside the mask.
    """

    classifier: Classifier
    split: ForgetSplit
    mask: SaliencyMask
    seed: int = 0
    norm_stats: NormStats = "update"
    augmentation: Augmentation = AS_THEY_ARE
    soften: Soften = hard

    def batches(
        self, data: LabelledPictures, batch_size: int | list[int], name: str, epoch: int, *, forget: bool = False
    ) -> Iterable[Batch]:
        """One shuffled, augmented pass over `data`; `name` and `epoch` choose the random stream."""
        return shuffled(
            data,
            batch_size,
            stream(self.seed, name, epoch),
            augmentation=self.augmentation,
            device=self.classifier.device,
            forget=forget,
        )

    def selected(self) -> SelectedWeights:
        """The weights that may move.

        Raises:
            UserError: If the mask does not fit the model.
        """
        return SelectedWeights(self.classifier.parameters, self.mask)


class Unlearned(NamedTuple):
    """What a method leaves.

    Attributes:
        classifier: The changed model.
        mask: The weights that were allowed to move; it differs from the task's only if the model has grown.
        history: One row per training step.
    """

    classifier: Classifier
    mask: SaliencyMask
    history: History


class Method(Protocol):
    """A final dataclass whose fields are the hyper-parameters of one way to unlearn."""

    def __call__(self, task: Task) -> Unlearned:
        """Unlearn in place."""
        ...


Loss: TypeAlias = Callable[[Batch], Tensor]


def fit(
    task: Trainee,
    training: Training,
    passes: Callable[[int], Iterable[Batch]],
    loss: Loss,
    *,
    selected: SelectedWeights | None = None,
    after_step: Callable[[SelectedWeights, int], None] = lambda selected, step: None,
    stop: Callable[[], bool] = lambda: False,
) -> History:
    """Train the selected weights by SGD.

        g_S ← (∇_θ ℓ)[m]      θ_S ← SGD(θ_S, g_S)      θ[m] ← θ_S

    Frozen weights are never written; see `SelectedWeights`.

    Differs from the official code: OPTML-Group/Unlearn-Saliency@a6e89fd masks dense gradients, steps on all weights and
    writes the frozen ones back; the selected weights follow the same path.

    Args:
        task: Classifier, weights that may move, and norm statistics.
        training: Settings of SGD.
        passes: Epoch (from 0) → its batches.
        loss: Batch → scalar; the model is in training mode.
        selected: The weights, if the caller has gathered them already.
        after_step: Called after each optimizer step, before the weights are written back; gets the step from 1.
        stop: Asked after each step; True ends the training.

    Returns:
        One row per step: step, loss, learning_rate.

    Raises:
        UserError: If the loss, a weight or a statistic becomes NaN or infinite.
    """
    selected = selected or task.selected()
    optimizer = torch.optim.SGD(
        selected.weights, training.learning_rate, momentum=training.momentum, weight_decay=training.weight_decay
    )
    soft = task.soften(selected)
    attach(soft, optimizer)
    rates = learning_rates(training)
    history: History = []
    with random_state_kept():
        torch.manual_seed(stream_seed(task.seed, "network"))  # Dropout draws from torch's own stream.
        for epoch, batch in ((number, batch) for number in range(training.epochs) for batch in passes(number)):
            rate = rates[epoch]
            optimizer.param_groups[0]["lr"] = rate
            soft.begin(len(history) + 1, epoch / max(training.epochs - 1, 1))
            # Batch norm cannot take the statistics of one picture.
            task.classifier.train(task.norm_stats if len(batch.labels) > 1 else "freeze")
            value = loss(batch)
            if not math.isfinite(value.item()):
                raise UserError(f"The loss became {value.item()} at step {len(history) + 1}; {_MILDER}")
            value.backward()  # type: ignore[no-untyped-call]
            selected.gather_gradients()
            optimizer.step()
            optimizer.zero_grad()
            history.append({"step": float(len(history) + 1), "loss": value.item(), "learning_rate": rate})
            after_step(selected, len(history))
            selected.scatter()
            if stop():
                break
    check_state(task.classifier)
    return history


def check_state(classifier: Classifier) -> None:
    """Refuse a model of which a weight or a statistic is NaN or infinite: the last step is followed by no loss.

    Raises:
        UserError: Naming the first such tensor.
    """
    for name, tensor in classifier.model.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(f"{name} holds NaN or infinity after the last step; {_MILDER}")


def finished(task: Task, history: History) -> Unlearned:
    """What a method returns, sure to be a model that answers.

    Args:
        task: The changed model, and the weights that were allowed to move.
        history: Rows of the training.

    Raises:
        UserError: If a weight, a statistic or an answer on the forget set is NaN or infinite.
    """
    check_state(task.classifier)
    predict(task.classifier, task.split.forget.pixels)
    return Unlearned(task.classifier, task.mask, history)


def learning_rates(training: Training) -> list[float]:
    """The rate η_t of each epoch t, counted from 0.

    constant: η      cosine: η · ½ (1 + cos(π t / T))      multistep: η · 10^-(number of milestones ≤ t)
    """
    return [training.learning_rate * _factor(training, epoch) for epoch in range(training.epochs)]


def _factor(training: Training, epoch: int) -> float:
    """Share of the learning rate in an epoch, counted from 0.

    constant: 1      cosine: ½ (1 + cos(π t / T))      multistep: 10^-(number of milestones ≤ t)
    """
    if training.schedule == "constant":
        return 1.0
    if training.schedule == "multistep":
        return 10.0 ** -sum(epoch >= int(milestone) for milestone in training.milestones)
    return 0.5 * (1 + math.cos(math.pi * epoch / training.epochs))


def cross_entropy(classifier: Classifier) -> Loss:
    """The mean cross-entropy of a batch with its own labels."""
    return lambda batch: F.cross_entropy(classifier.logits(batch.pixels), batch.labels)


@torch.no_grad()
def apply_change(task: Task, change: Mapping[str, Tensor]) -> None:
    """Add a change to the selected weights at once: θ ← θ₀ + m ⊙ Δ.

    Args:
        task: Classifier and mask.
        change: Δ by parameter name.
    """
    selected = task.selected()
    for name, weight in task.classifier.parameters.items():
        weight.grad = change[name].to(weight)
    selected.gather_gradients()
    for leaf in selected.weights:
        if leaf.grad is not None:
            leaf.add_(leaf.grad)
    selected.scatter()
