"""GA: climb the loss of the forget set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from salun_diffusers.classification.hyper_parameters import GradientAscentSettings
from salun_diffusers.classification.training import Task, Unlearned, cross_entropy, finished, fit


@final
@dataclass(frozen=True)
class GradientAscent(GradientAscentSettings):
    """GA: ℓ = -CE(x_f, y_f). The loss has no lower bound, so the rate must be small.

    OPTML-Group/Unlearn-Saliency@a6e89fd, Classification/unlearn/GA.py.

    Args:
        training: Settings of SGD.
    """

    def __call__(self, task: Task) -> Unlearned:
        """Train on the forget set."""
        size, descent = self.training.batch_size, cross_entropy(task.classifier)
        history = fit(
            task,
            self.training,
            lambda epoch: task.batches(task.split.forget, size, "forget", epoch, forget=True),
            lambda batch: -descent(batch),
        )
        return finished(task, history)
