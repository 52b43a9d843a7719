"""How much each weight matters to a loss: the first line of SalUn."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Literal, TypeVar, final

import torch
from torch import Tensor, nn

from salun_diffusers.errors import UserError

_log = logging.getLogger(__name__)
BatchT = TypeVar("BatchT")


@final
class Saliency(Mapping[str, Tensor]):
    """One non-negative, finite score per weight: parameter name -> float32 tensor on the CPU, in the parameter's shape.

    The order of the names is the order in which equal scores enter a mask. Scores that already are float32 on the CPU
    are not copied (a U-Net's take 3.4 GB), so do not write to them afterwards.
    """

    def __init__(self, scores: Mapping[str, Tensor]) -> None:
        """Take over `scores`.

        Raises:
            UserError: If there is no tensor, or one holds NaN, infinite or negative values; the message names it.
        """
        if not scores:
            raise UserError("A saliency needs the scores of at least one tensor, got none.")
        for name, tensor in scores.items():
            _check_scores(name, tensor)
        self._scores = MappingProxyType({name: _float32_on_cpu(tensor) for name, tensor in scores.items()})

    def __getitem__(self, name: str) -> Tensor:
        return self._scores[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores)

    def __len__(self) -> int:
        return len(self._scores)

    def __repr__(self) -> str:
        return f"Saliency({len(self)} tensors, {self.number_of_weights} weights)"

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The shape of every tensor by name."""
        return {name: tensor.shape for name, tensor in self._scores.items()}

    @property
    def number_of_weights(self) -> int:
        """How many scores there are in all."""
        return sum(tensor.numel() for tensor in self._scores.values())


def gradient_saliency(
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[BatchT],
    loss: Callable[[BatchT], Tensor | Iterable[Tensor]],
    *,
    accumulate: Literal["signed", "absolute", "squared"] = "signed",
    reduce: Callable[[Tensor], Tensor] = lambda total: total,
    max_grad_norm: float = math.inf,
    offload: bool = False,
) -> Saliency:
    """Score every weight by the gradient of `loss`, summed over `batches`.

        signed:    s = | Σ_b ∇_θ ℓ_b(θ₀) |        (SalUn, arXiv 2310.12508)
        absolute:  s = Σ_b | ∇_θ ℓ_b(θ₀) |
        squared:   s = Σ_b ( ∇_θ ℓ_b(θ₀) )²          (the diagonal of the empirical Fisher matrix)

    with ℓ_b the loss of batch b and θ₀ the weights as they are; nothing is trained. Signed sums ignore the sign and the
    scale of the loss and, if ℓ_b is a sum over the batch, its size too; the others depend on how the data is cut
    into batches. The signed sum is the rule of OPTML-Group/Unlearn-Saliency@a6e89fd, SD/train-scripts/generate_mask.py;
    with `max_grad_norm=1.0` it is that of DDPM/runners/diffusion.py at the same commit.

    Where `max_grad_norm` is infinite every gradient is taken and freed as soon as backward has computed it, so that the
    sums are the only copy of the parameters' size, and with `offload` there is none on the device. For that reason
    `loss` must run the bare module: not one wrapped in DistributedDataParallel, whose gradients are reduced later. Sum
    over ranks with `reduce`. A loss in parts needs the memory of one part at a time; the gradients of a batch's parts
    are summed before they are clipped, squared or made absolute.

    Differs from the official code: a parameter that gets no gradient from any batch has score 0 (there: an error).

    Args:
        parameters: The weights to score, by name.
        batches: What `loss` takes, one after another; gone through once.
        loss: Maps a batch to a scalar with a graph to `parameters`, or to several that sum to it, each of which is
            differentiated before the next is asked for.
        accumulate: Whether the absolute value is taken of the sum or of each batch's gradient, or that is squared.
        reduce: Applied to the summed gradient of every tensor, in order, before the absolute value: for example
            ``accelerator.reduce`` to sum over ranks.
        max_grad_norm: Clip the norm over all parameters of each batch's gradient to this before it is added.
        offload: Keep the sums on the CPU.

    Returns:
        The scores, in the order and shapes of `parameters`. Every ``.grad`` is None before and after.

    Raises:
        UserError: If there is no parameter or no batch, `accumulate` is no such word, or a score is NaN or infinite.
    """
    if not parameters:
        raise UserError("gradient_saliency needs at least one parameter to score, got none.")
    if accumulate not in ("signed", "absolute", "squared"):
        raise UserError(f'accumulate must be "signed", "absolute" or "squared", got {accumulate!r}.')
    sums: dict[str, Tensor] = {}

    def take(name: str, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            return
        if accumulate != "signed":
            gradient = gradient.abs() if accumulate == "absolute" else gradient.float().square()
        gradient = gradient.to("cpu" if offload else gradient.device, torch.float32)
        # The first gradient becomes the sum: no buffer of zeros is needed.
        sums[name] = sums[name].add_(gradient) if name in sums else gradient

    at_once = False

    def take_at_once(name: str, parameter: Tensor) -> None:
        if at_once:
            take(name, parameter)

    _drop_gradients(parameters)
    hooks = [
        parameter.register_post_accumulate_grad_hook(partial(take_at_once, name))
        for name, parameter in parameters.items()
    ]
    clipped = math.isfinite(max_grad_norm)
    number_of_batches = 0
    try:
        for batch in batches:
            number_of_batches += 1
            losses = loss(batch)
            parts = [losses] if isinstance(losses, Tensor) else losses
            # Of a batch in parts only plain sums can be taken part by part.
            at_once = not clipped and (losses is not parts or accumulate == "signed")
            for part in parts:
                part.backward()  # type: ignore[no-untyped-call]
                del part  # No graph waits for the next one.
            del losses, parts
            if clipped:
                nn.utils.clip_grad_norm_(parameters.values(), max_grad_norm)
            for name, parameter in parameters.items():
                take(name, parameter)
    finally:
        for hook in hooks:
            hook.remove()
        _drop_gradients(parameters)
    if number_of_batches == 0:
        raise UserError("gradient_saliency needs at least one batch, got none: is the forget set empty?")

    untouched = [name for name in parameters if name not in sums]
    if untouched:
        _log.warning(
            "%d of %d tensors got no gradient and have saliency 0 (first: %s).",
            len(untouched),
            len(parameters),
            untouched[0],
        )
    scores = {}
    for name, parameter in parameters.items():
        # Every rank reduces every tensor, also one it has no gradient for, or the others would wait for ever.
        total = sums.pop(name) if name in sums else torch.zeros_like(parameter.detach(), dtype=torch.float32)
        scores[name] = reduce(total).abs()
    return Saliency(scores)


def saliency_ratio(forget: Saliency, retain: Saliency) -> Saliency:
    """Scores of what matters to the forget set and little to the retain set.

        s_i = F_i / (R_i + ε),   ε = mean_j R_j

    with F and R the squared gradients of both sets' losses (`gradient_saliency`, ``accumulate="squared"``): diagonals
    of their empirical Fisher matrices up to a factor, which no rank depends on. SFRon (arXiv 2409.19732) keeps weights
    whose ratio is above a threshold; here they are ranked by it, and ε, which the ratio does not have there, keeps
    weights without influence on either set from having any score at all. The forget scores are overwritten, as a
    U-Net's take 3.4 GB.

    Args:
        forget: F.
        retain: R, of the same tensors.

    Returns:
        The ratios, in order and shapes of `forget`.

    Raises:
        UserError: If tensors or shapes differ, or no retain score is above 0.

    Example:
        >>> forget = Saliency({"w": torch.tensor([4.0, 4.0, 0.0])})
        >>> saliency_ratio(forget, Saliency({"w": torch.tensor([1.0, 5.0, 0.0])}))["w"]
        tensor([1.3333, 0.5714, 0.0000])
    """
    if forget.shapes != retain.shapes:
        raise UserError("A ratio needs forget and retain scores of the same tensors in the same shapes.")
    mean = sum(float(tensor.double().sum()) for tensor in retain.values()) / retain.number_of_weights
    if not mean > 0:
        raise UserError("A ratio needs retain scores above 0, all are 0: does the retain loss depend on these weights?")
    return Saliency({name: scores.div_(retain[name] + mean) for name, scores in forget.items()})


def _drop_gradients(parameters: Mapping[str, nn.Parameter]) -> None:
    for parameter in parameters.values():
        parameter.grad = None


def _float32_on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _check_scores(name: str, tensor: Tensor) -> None:
    if tensor.numel() == 0:
        return
    # NaN is both the smallest and the largest value of a tensor that holds one: no temporary tensors are needed.
    low, high = (bound.item() for bound in torch.aminmax(tensor.detach()))
    if math.isnan(low):
        kind = "NaN"
    elif math.isinf(high):
        kind = "infinite values"
    elif low < 0:
        kind = f"negative values (down to {low:g})"
    else:
        return
    raise UserError(
        f"saliency of {name} holds {kind}; scores must be finite and >= 0. "
        "Compute the gradients in float32 or bfloat16 and check that the loss is finite for every batch."
    )
