"""Adversarial pictures, in pixel space: targeted L2-PGD and one signed step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from salun_diffusers.classification.classifier import Classifier


def pgd_l2(
    classifier: Classifier,
    pixels: Tensor,
    targets: Tensor,
    generator: torch.Generator,
    *,
    radius: float,
    step_size: float = 0.1,
    steps: int = 100,
) -> Tensor:
    """Push pictures towards target classes within an L2 ball.

        x ← x - step · g / ‖g‖₂,   g = ∇_x CE(logits(x), ȳ)
        x ← x₀ + (x - x₀) · min(1, radius / ‖x - x₀‖₂),   x ← clip(x, 0, 1)

    from a random start in the ball. Madry et al., arXiv 1706.06083; L2UL, csm9493/L2UL@5fb777b. Clipping moves each
    pixel towards x₀, which lies in [0, 1], so the picture stays in the ball.

    Args:
        classifier: Evaluated in evaluation mode; its weights get no gradient.
        pixels: x₀, `(n, channels, height, width)` in [0, 1].
        targets: ȳ, `(n,)`.
        generator: Gives the random start; on the CPU.
        radius: ε, in pixels of [0, 1].
        step_size: Length of a step.
        steps: Number of steps.

    Returns:
        x, like `pixels`.
    """
    classifier.eval()
    start = torch.randn(pixels.shape, generator=generator).to(pixels.device)
    length = torch.rand(len(pixels), generator=generator).to(pixels.device) * radius
    changed = (pixels + start * _per_picture(length / _norms(start))).clamp(0, 1)
    for _ in range(steps):
        changed.requires_grad_(True)
        loss = F.cross_entropy(classifier.logits(changed), targets, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, changed)
        with torch.no_grad():
            # A zero gradient has no direction: the picture stays.
            moved = changed - step_size * gradient / _per_picture(_norms(gradient).clamp_min(1e-12))
            change = moved - pixels
            shrink = (radius / _norms(change).clamp_min(1e-12)).clamp_max(1.0)
            changed = (pixels + change * _per_picture(shrink)).clamp(0, 1)
    return changed.detach()


def fgsm(classifier: Classifier, pixels: Tensor, labels: Tensor, *, step_size: float) -> Tensor:
    """Step away from the true class along the sign of the gradient.

        x′ = round₂₅₅( clip( x + step · sign ∇_x CE(logits(x), y), 0, 1 ) )

    Rounded to multiples of 1/255, as a stored picture would be. Goodfellow et al., arXiv 1412.6572; as
    OPTML-Group/Unlearn-Saliency@a6e89fd, Classification/unlearn/boundary_sh.py.

    Args:
        classifier: In evaluation mode afterwards.
        pixels: x, `(n, channels, height, width)` in [0, 1].
        labels: y, `(n,)`.
        step_size: Step per pixel.
    """
    classifier.eval()
    pixels = pixels.detach().requires_grad_(True)
    loss = F.cross_entropy(classifier.logits(pixels), labels)
    (gradient,) = torch.autograd.grad(loss, pixels)
    changed = (pixels.detach() + step_size * gradient.sign()).clamp(0, 1)
    return (changed * 255).round() / 255


def _norms(tensor: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(tensor.flatten(1), dim=1)
    return norms


def _per_picture(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
