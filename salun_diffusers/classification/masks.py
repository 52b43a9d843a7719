"""The masks of the experiments: saliency, random, random at equal density per tensor, magnitude, full, or a file."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from salun_diffusers.classification.batches import Batch, in_order
from salun_diffusers.classification.classifier import Classifier
from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask, Scope
from salun_diffusers.masks.saliency import Saliency, gradient_saliency
from salun_diffusers.pictures.labelled_pictures import LabelledPictures
from salun_diffusers.seeds import stream

MASKS = ("saliency", "random", "random_like", "magnitude", "full")


def forget_saliency(classifier: Classifier, forget: LabelledPictures, *, batch_size: int = 256) -> Saliency:
    """Score every weight by the cross-entropy of the forget set.

        s = | Σ_b (n_b / N_f) ∇_θ CE_b(θ₀) |

    with n_b pictures in batch b, so that scores do not depend on the batch size. Evaluation mode; pictures as
    they are. SalUn, arXiv 2310.12508; OPTML-Group/Unlearn-Saliency@a6e89fd, Classification/generate_mask.py.

    Differs from the official code: batches are weighted by their size (there a short last batch counts like a full
    one), and pictures are not augmented or shuffled.

    Args:
        classifier: θ₀; left in evaluation mode.
        forget: D_f.
        batch_size: Pictures a batch.
    """
    classifier.eval()

    def loss(batch: Batch) -> Tensor:
        total = F.cross_entropy(classifier.logits(batch.pixels), batch.labels, reduction="sum")
        return total / len(forget)

    batches = in_order(forget, batch_size, classifier.device)
    return gradient_saliency(classifier.parameters, batches, loss)


def make_mask(
    kind: str,
    classifier: Classifier,
    forget: LabelledPictures,
    *,
    ratio: float = 0.5,
    scope: Scope = "global",
    seed: int = 0,
) -> SaliencyMask:
    """Make a mask by name.

    Args:
        kind: ``saliency``; ``random``; ``random_like``: random with as many weights of each tensor as the saliency
            mask has; ``magnitude``: the largest absolute weights; ``full``; or a mask file.
        classifier: θ₀.
        forget: D_f.
        ratio: Share of weights that may move; ``full`` and files ignore it.
        scope: Whether tensors compete with each other.
        seed: Seed of random masks.

    Raises:
        UserError: If `kind` is neither word nor file, or a mask file does not fit the model.
    """
    parameters = classifier.parameters
    match kind:
        case "full":
            return SaliencyMask.full(parameters)
        case "random":
            return SaliencyMask.random(parameters, ratio, stream(seed, "mask"), scope)
        case "magnitude":
            sizes = Saliency({name: weight.detach().abs() for name, weight in parameters.items()})
            return SaliencyMask.from_saliency(sizes, ratio, scope, {"kind": "magnitude"})
        case "saliency" | "random_like":
            scores = forget_saliency(classifier, forget)
            mask = SaliencyMask.from_saliency(scores, ratio, scope, {"loss": "cross-entropy, forget set"})
            return mask if kind == "saliency" else SaliencyMask.random_like(mask, stream(seed, "mask"))
        case _ if Path(kind).is_file():
            try:
                return SaliencyMask.load(Path(kind)).matched_to(parameters)
            except UserError as error:
                raise UserError(f"--mask {kind}: {error}") from error
        case _:
            raise UserError(f"--mask must be one of {', '.join(MASKS)} or a mask file; there is no file {kind}.")
