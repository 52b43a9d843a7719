"""The attacker inside a step of training: what a prompt means is moved to where the loss is largest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from salun_diffusers.diffusion.families.family import Conditions
from salun_diffusers.errors import UserError

STATES = "encoder_hidden_states"
"""The conditions that are moved: what the text encoder made of each token."""


def moved(values: Tensor, gradient: Tensor, start: Tensor, rate: Tensor, budget: Tensor) -> Tensor:
    """One sign step up a gradient, kept in reach of where it began.

        v ← v₀ + clamp(v + r sign(g) - v₀, -B, B)

    Args:
        values: v.
        gradient: g of the loss that is to grow.
        start: v₀.
        rate: r, of each row.
        budget: B, of each row.
    """
    change = values + rate * gradient.nan_to_num().sign() - start
    return start + torch.minimum(torch.maximum(change, -budget), budget)


def attacked(
    conditions: Conditions, loss: Callable[[Conditions], Tensor], *, steps: int, budget: float, reach: float = 2.0
) -> Conditions:
    """Conditions near to the given ones at which a loss is larger.

    The last hidden states c of each row take K sign steps c ← c + r sign(∇_c ℓ), each of them ρ/K of the budget
    B = b · std(c) of that row, from which none of their values departs by more. A row does not depend on those beside
    it where the loss is a mean of theirs.

    Source: the inner attacks of AdvUnlearn (arXiv 2405.15234) and AEGIS (arXiv 2602.06771).

    Differs from the official code: OPTML-Group/AdvUnlearn moves the embedding of a word before the prompt, by 30 steps
    of 1e-3; here it is what the text encoder makes of the prompt, which costs no text encoder and few steps.

    Args:
        conditions: Of the rows.
        loss: Of the rows, by their conditions; its gradient reaches no weight.
        steps: K.
        budget: b.
        reach: ρ, how many budgets the steps are long together.

    Raises:
        UserError: If nothing a text encoder says is among the conditions.
    """
    if STATES not in conditions:
        raise UserError(
            f"States of a text encoder are required to be attacked, this model has {', '.join(conditions)}; use "
            "--robust relearning."
        )
    start = conditions[STATES].detach()
    limit = budget * start.flatten(1).std(dim=1).view(-1, *[1] * (start.dim() - 1))
    states = start
    for _ in range(steps):
        states = states.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss({**conditions, STATES: states}), states)
        states = moved(states.detach(), gradient, start, reach / steps * limit, limit)
    return {**conditions, STATES: states.detach()}
