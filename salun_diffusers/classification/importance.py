"""How much each weight matters to what a model says, without labels: MAS, and the penalty L2UL makes of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from salun_diffusers.classification.batches import Batch, in_order
from salun_diffusers.classification.classifier import Classifier
from salun_diffusers.classification.hyper_parameters import MasForm
from salun_diffusers.masks.saliency import Saliency, gradient_saliency
from salun_diffusers.pictures.labelled_pictures import LabelledPictures


def mas_importance(
    classifier: Classifier, data: LabelledPictures, *, form: MasForm = "per_sample", batch_size: int = 32
) -> Saliency:
    """Memory Aware Synapses: the mean change of the output's length with each weight.

        per_sample:  Ω = (1/n) Σ_i | ∇_θ ‖f(x_i)‖₂ |
        per_batch:   Ω = (1/n) Σ_b B_b | ∇_θ (1/B_b) Σ_{i∈b} ‖f(x_i)‖₂ |

    Aljundi et al., arXiv 1711.09601 (there with the squared length); L2UL takes the length, per batch
    (csm9493/L2UL@5fb777b). Per sample does not depend on the batch size.

    Differs from the official code: evaluation mode, and gradients are cleared between batches (there neither).

    Args:
        classifier: θ₀; left in evaluation mode.
        data: Pictures; their labels are not used.
        form: Where the absolute value is taken.
        batch_size: Pictures a batch in the per-batch form.
    """
    classifier.eval()

    def loss(batch: Batch) -> Tensor:
        lengths: Tensor = torch.linalg.vector_norm(classifier.logits(batch.pixels), dim=1)
        return lengths.sum() / len(data)

    batches = in_order(data, 1 if form == "per_sample" else batch_size, classifier.device)
    return gradient_saliency(classifier.parameters, batches, loss, accumulate="absolute")


def holding_weights(importance: Saliency) -> dict[str, Tensor]:
    """How firmly each weight is held: 1 where it matters least to the forget set, 0 where it matters most.

        Ω̄ = 1 - (Ω - min Ω) / (max Ω - min Ω),   per tensor

    csm9493/L2UL@5fb777b. Weights that matter to the forget set move freely.

    Differs from the official code: a tensor of equal scores gets Ω̄ = 1 (there NaN).
    """
    held = {}
    for name, scores in importance.items():
        low, high = scores.aminmax()
        spread = high - low
        held[name] = 1 - (scores - low) / spread if spread > 0 else torch.ones_like(scores)
    return held


def holding_penalty(
    parameters: Mapping[str, nn.Parameter], reference: Mapping[str, Tensor], held: Mapping[str, Tensor]
) -> Tensor:
    """The pull back to the start: Σ ½ Ω̄ ⊙ (θ - θ₀)², a sum over all weights.

    Args:
        parameters: θ by name.
        reference: θ₀ by name.
        held: Ω̄ by name, from `holding_weights`.
    """
    terms = [(held[name] * (weight - reference[name]).square()).sum() for name, weight in parameters.items()]
    return 0.5 * torch.stack(terms).sum()
