"""One way to ask any image classifier for logits: a plain `nn.Module` or one of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from salun_diffusers.errors import UserError
from salun_diffusers.pictures.labelled_pictures import as_float

NormStats = Literal["update", "freeze"]


@final
@dataclass(frozen=True)
class Classifier:
    """A model, how its input is normalised, and where its last layer is.

    Pictures are always pixels in [0, 1]; normalisation happens inside `logits`. Attacks and their radii are therefore
    in pixel space, whatever the model was trained on.

    Args:
        model: Maps `(batch, channels, height, width)` to logits `(batch, classes)`, or to an output with ``.logits``.
        num_classes: Number of classes.
        mean: Subtracted from each channel; one number per channel, or one for all.
        std: Divides each channel; like `mean`.
        head: Name of the last linear layer; by default the last one with `num_classes` outputs.
    """

    model: nn.Module
    num_classes: int
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    head: str = ""

    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits of pictures.

        Args:
            pixels: `(batch, channels, height, width)` in [0, 1].

        Returns:
            `(batch, classes)`.

        Raises:
            UserError: If the model returns neither a tensor nor an output with ``.logits``, or one of another width.
        """
        return self._logits(self.model(self._normalised(pixels)))

    def _normalised(self, pixels: Tensor) -> Tensor:
        mean, std = (pixels.new_tensor(list(values)).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def _logits(self, output: object) -> Tensor:
        logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if not isinstance(logits, Tensor):
            raise UserError(
                f"A classifier must return logits or an output with .logits, {type(self.model).__name__} returned "
                f"{type(output).__name__}."
            )
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise UserError(
                f"The model must give {self.num_classes} logits per picture, got shape {tuple(logits.shape)}; "
                "use a model with as many classes as the data."
            )
        return logits

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The weights by name, in the model's order; masks speak of these."""
        return dict(self.model.named_parameters())

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def train(self, norm_stats: NormStats = "update") -> None:
        """Switch to training; with ``freeze`` batch norms keep their statistics and normalise by them.

        The statistics are buffers, not weights: no mask protects them.
        """
        self.model.train()
        if norm_stats == "freeze":
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def eval(self) -> None:
        """Switch to evaluation."""
        self.model.eval()

    @property
    def head_name(self) -> str:
        """The name of the last linear layer.

        Raises:
            UserError: If there is none with as many outputs as classes.
        """
        if self.head:
            return str(self.head)
        found = [
            name
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and module.out_features == self.num_classes
        ]
        if not found:
            raise UserError(
                f"The model must end in a linear layer with {self.num_classes} outputs, found none; name it as `head`."
            )
        name: str = found[-1]
        return name

    def replace_head(self, layer: nn.Linear) -> Classifier:
        """Put another last layer into the model and return the classifier with as many classes as it has outputs."""
        name = self.head_name
        parent, _, child = name.rpartition(".")
        setattr(self.model.get_submodule(parent), child, layer)
        return Classifier(self.model, layer.out_features, self.mean, self.std, name)


@torch.no_grad()
def predict(classifier: Classifier, pixels: Tensor, batch_size: int = 256) -> Tensor:
    """Return the logits `(n, classes)` of all pictures, in evaluation mode, on the CPU.

    Args:
        classifier: The model; left in evaluation mode.
        pixels: `(n, channels, height, width)`, uint8 or float in [0, 1].
        batch_size: Pictures at once.

    Raises:
        UserError: If an answer is NaN or infinite.
    """
    classifier.eval()
    parts = [classifier.logits(as_float(part, classifier.device)).float().cpu() for part in pixels.split(batch_size)]
    logits = torch.cat(parts)
    if not logits.isfinite().all():
        wrong = int((~logits.isfinite().all(1)).sum())
        raise UserError(
            f"The model answers {wrong} of {len(logits)} pictures with NaN or infinity: its training has diverged, or "
            "its weights are damaged; use a lower --learning_rate or --step, or another model."
        )
    return logits
