"""Boundary unlearning: move the forget set across the decision boundary, into a new class or a neighbour's."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from salun_diffusers.classification.attacks import fgsm
from salun_diffusers.classification.batches import Batch
from salun_diffusers.classification.classifier import Classifier
from salun_diffusers.classification.hyper_parameters import BoundaryExpandingSettings, BoundaryShrinkingSettings
from salun_diffusers.classification.training import Task, Unlearned, cross_entropy, finished, fit
from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.seeds import stream


@final
@dataclass(frozen=True)
class BoundaryShrinking(BoundaryShrinkingSettings):
    """BS: ℓ = CE(x_f, y′), y′ the class that one signed step away from the truth leads to.

        y′ = argmax_{c ≠ y} f₀(x′)_c,   x′ = round₂₅₅(clip(x + 0.1 · sign ∇_x CE(f₀(x), y), 0, 1))

    with f₀ the model before. Chen et al. 2023 (Boundary Unlearning, CVPR); OPTML-Group/Unlearn-Saliency@a6e89fd,
    Classification/unlearn/boundary_sh.py.

    Differs from the official code: y itself is no candidate (there a step that does not cross the boundary gives
    y′ = y, which strengthens the memory); `exclude_true=False` allows it.

    Args:
        training: Settings of SGD.
        fgsm_step: Step per pixel.
        exclude_true: Whether y′ ≠ y.
    """

    def neighbours(self, base: Classifier, batch: Batch) -> Tensor:
        """y′ of a batch, `(b,)`."""
        changed = fgsm(base, batch.pixels, batch.labels, step_size=self.fgsm_step)
        with torch.no_grad():
            logits = base.logits(changed)
        if self.exclude_true:
            logits = logits.scatter(1, batch.labels[:, None], -torch.inf)
        return logits.argmax(1)

    def __call__(self, task: Task) -> Unlearned:
        """Train on the forget set."""
        base = dataclasses.replace(task.classifier, model=copy.deepcopy(task.classifier.model))
        relabelled = cross_entropy(task.classifier)
        size = self.training.batch_size
        history = fit(
            task,
            self.training,
            lambda epoch: task.batches(task.split.forget, size, "forget", epoch, forget=True),
            lambda batch: relabelled(batch._replace(labels=self.neighbours(base, batch))),
        )
        return finished(task, history)


@final
@dataclass(frozen=True)
class BoundaryExpanding(BoundaryExpandingSettings):
    """BE: ℓ = CE(x_f, C): the forget set becomes a class of its own, the (C+1)-th.

    The head gets one more row, which may move whatever the mask says: there was nothing to score. Chen et al. 2023;
    OPTML-Group/Unlearn-Saliency@a6e89fd, Classification/unlearn/boundary_ex.py.

    Differs from the official code: the row is dropped afterwards, so that the model keeps its classes and its shapes;
    `keep_output=True` keeps it, and everything is then measured with C+1 outputs.

    Args:
        training: Settings of SGD.
        keep_output: Whether the extra class stays.
    """

    def __call__(self, task: Task) -> Unlearned:
        """Train on the forget set.

        Raises:
            UserError: If the head is no linear layer.
        """
        classifier, name = task.classifier, task.classifier.head_name
        narrow = classifier.model.get_submodule(name)
        if not isinstance(narrow, nn.Linear):
            raise UserError(f"Boundary expanding needs a linear head, {name} is {type(narrow).__name__}.")
        classes = classifier.num_classes
        wide = _widened(narrow, stream(task.seed, "new row"))
        expanded = dataclasses.replace(
            task, classifier=classifier.replace_head(wide), mask=_extended(task.mask, f"{name}.", classes)
        )
        loss = cross_entropy(expanded.classifier)
        size = self.training.batch_size
        history = fit(
            expanded,
            self.training,
            lambda epoch: task.batches(task.split.forget, size, "forget", epoch, forget=True),
            lambda batch: loss(batch._replace(labels=torch.full_like(batch.labels, classes))),
        )
        if self.keep_output:
            _name_new_class(expanded.classifier.model, classes)
            return finished(expanded, history)
        with torch.no_grad():
            narrow.weight.copy_(wide.weight[:classes])
            if narrow.bias is not None:
                narrow.bias.copy_(wide.bias[:classes])
        return finished(dataclasses.replace(task, classifier=expanded.classifier.replace_head(narrow)), history)


def _widened(layer: nn.Linear, generator: torch.Generator) -> nn.Linear:
    """The layer with one more output, drawn as `nn.Linear` draws its weights."""
    wide = nn.Linear(
        layer.in_features, layer.out_features + 1, bias=layer.bias is not None, device="meta", dtype=layer.weight.dtype
    ).to_empty(device=layer.weight.device)
    bound = layer.in_features**-0.5
    with torch.no_grad():
        for new, old in zip(wide.parameters(), layer.parameters(), strict=True):
            row = torch.empty((1, *old.shape[1:])).uniform_(-bound, bound, generator=generator)
            new.copy_(torch.cat([old, row.to(old)]))
    return wide


def _extended(mask: SaliencyMask, prefix: str, classes: int) -> SaliencyMask:
    """The mask with ones for a new last row of the head's tensors."""
    flags = {}
    for name, bits in mask.items():
        grows = name.startswith(prefix) and len(bits) == classes
        flags[name] = torch.cat([bits, bits.new_ones((1, *bits.shape[1:]))]) if grows else bits
    return SaliencyMask.from_bools(flags, {**mask.recipe, "extended": prefix.rstrip(".")})


def _name_new_class(model: Any, number: int) -> None:
    """Tell a transformers model that it has one more class."""
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "id2label"):
        config.id2label = {**config.id2label, number: "forgotten"}
        config.label2id = {label: key for key, label in config.id2label.items()}
        if hasattr(model, "num_labels"):
            model.num_labels = number + 1
