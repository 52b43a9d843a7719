"""Gradient sums and inverse-curvature products for influence unlearning, on one flat vector of all weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from salun_diffusers.classification.batches import Batch, in_order
from salun_diffusers.classification.classifier import Classifier
from salun_diffusers.masks.saliency import gradient_saliency
from salun_diffusers.pictures.labelled_pictures import LabelledPictures


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Join tensors into one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflat(vector: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Undo `flat` for the shapes of `parameters`."""
    parts = vector.split([weight.numel() for weight in parameters.values()])
    return {name: part.view_as(weight) for (name, weight), part in zip(parameters.items(), parts, strict=True)}


def gradient_sum(classifier: Classifier, batches: Iterable[Batch]) -> Tensor:
    """Σ_i ∇_θ CE(f(x_i), y_i) over all pictures, as one vector; evaluation mode."""
    classifier.eval()
    weights = list(classifier.parameters.values())
    total = torch.zeros(sum(weight.numel() for weight in weights), device=classifier.device)
    for batch in batches:
        loss = F.cross_entropy(classifier.logits(batch.pixels), batch.labels, reduction="sum")
        # A weight that the loss does not reach has gradient 0.
        total += flat(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True))
    return total


def difference_gradient(classifier: Classifier, forget: LabelledPictures, retain: LabelledPictures) -> Tensor:
    """The direction in which leaving out D_f changes the training loss.

        v = (1/N) Σ_{D_f} ∇ℓ - N_f/(N · N_r) Σ_{D_r} ∇ℓ,   N = N_f + N_r

    OPTML-Group/Unlearn-Saliency@a6e89fd, Classification/unlearn/Wfisher.py.
    """
    n_forget, n_retain = len(forget), len(retain)
    total = n_forget + n_retain
    of_forget = gradient_sum(classifier, in_order(forget, 256, classifier.device))
    of_retain = gradient_sum(classifier, in_order(retain, 256, classifier.device))
    return of_forget / total - of_retain * (n_forget / (total * n_retain))


def official_product(classifier: Classifier, retain: LabelledPictures, v: Tensor, samples: int = 1000) -> Tensor:
    """The recursion that the papers call WoodFisher, as it is coded.

        k = v,  o = g_0;   for n = 1, 2, …:  t = o·g_n
            k ← k - (k·g_n)/(M + t) · o,   o ← o - t/(M + t) · o;   stop once n > M

    with g_n = ∇ℓ(z_n), z_n the retain set in order. o only shrinks, so k is v less a multiple of g_0: there is no
    curvature in it. For parity with OPTML-Group/Unlearn-Saliency@a6e89fd, Classification/unlearn/Wfisher.py.

    Args:
        classifier: θ₀.
        retain: D_r.
        v: From `difference_gradient`.
        samples: M.

    Returns:
        k, like `v`.
    """
    k, o = v.clone(), torch.zeros_like(v)
    for n, batch in enumerate(in_order(retain, 1, classifier.device)):
        g = gradient_sum(classifier, [batch])
        if n == 0:
            o = g
            continue
        t = o @ g
        k = k - (k @ g) / (samples + t) * o
        o = o - t / (samples + t) * o
        if n > samples:
            break
    return k


def diagonal_product(classifier: Classifier, retain: LabelledPictures, v: Tensor, damping: float) -> Tensor:
    """v / (F + λ) with F the diagonal of the empirical Fisher matrix, (1/n) Σ_i g_i²."""
    classifier.eval()

    def loss(batch: Batch) -> Tensor:
        return F.cross_entropy(classifier.logits(batch.pixels), batch.labels)

    batches = in_order(retain, 1, classifier.device)
    squares = gradient_saliency(classifier.parameters, batches, loss, accumulate="squared")
    return v / (flat(squares.values()).to(v.device) / len(retain) + damping)


def fisher_product(classifier: Classifier, data: LabelledPictures, batch_size: int = 256) -> Callable[[Tensor], Tensor]:
    """The map u → (1/n) Σ_i g_i (g_i·u), g_i = ∇ℓ(z_i): the empirical Fisher matrix without forming it.

    Σ_i w_i g_i is linear in w, so that its derivative along u is the vector of all g_i·u: two backward passes give it,
    a third one the product.
    """
    classifier.eval()
    weights = list(classifier.parameters.values())

    def product(u: Tensor) -> Tensor:
        direction = list(unflat(u, classifier.parameters).values())
        total = torch.zeros_like(u)
        for batch in in_order(data, batch_size, classifier.device):
            # Fused attention has no second derivative.
            with sdpa_kernel(SDPBackend.MATH):
                losses = F.cross_entropy(classifier.logits(batch.pixels), batch.labels, reduction="none")
                ones = torch.ones_like(losses, requires_grad=True)
                combined = _gradients(losses, weights, ones, create_graph=True)
                (along,) = _gradients(combined, [ones], direction, retain_graph=True)
                total += flat(_gradients(losses, weights, along))
        return total / len(data)

    return product


def _gradients(
    outputs: Tensor | Sequence[Tensor], inputs: Sequence[Tensor], along: Tensor | Sequence[Tensor], **settings: bool
) -> tuple[Tensor, ...]:
    """Gradients of the product of `outputs` and `along`; 0 where there is no path."""
    return torch.autograd.grad(outputs, inputs, along, allow_unused=True, materialize_grads=True, **settings)


def conjugate_gradients(product: Callable[[Tensor], Tensor], v: Tensor, *, damping: float, iterations: int) -> Tensor:
    """Solve (F + λ) k = v by conjugate gradients; ends early once the residual is 1e-6 of v.

    Args:
        product: u → F u, F symmetric and positive semi-definite.
        v: Right-hand side.
        damping: λ.
        iterations: At most so many products.
    """
    k, residual = torch.zeros_like(v), v.clone()
    direction, size = residual.clone(), residual @ residual
    for _ in range(iterations):
        if size.sqrt() <= 1e-6 * v.norm():
            break
        image = product(direction) + damping * direction
        step = size / (direction @ image)
        k += step * direction
        residual -= step * image
        smaller = residual @ residual
        direction, size = residual + smaller / size * direction, smaller
    return k
