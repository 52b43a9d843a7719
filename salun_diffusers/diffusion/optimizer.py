"""The optimizer of the selected weights, and the course of its rate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.optimization import get_scheduler

from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.masks.selected_weights import SelectedWeights


def learning_rates(settings: Settings, steps: int) -> Callable[[int], float]:
    """The rate of every optimizer step, by one of diffusers' schedules; a function of the step alone, for resuming.

    Args:
        settings: The largest rate, the schedule's name and its numbers.
        steps: How many there are in all.
    """
    bare = torch.optim.SGD([torch.zeros(1)], lr=settings.learning_rate)  # A schedule wants an optimizer to act on.
    (factor,) = get_scheduler(
        settings.lr_scheduler,
        bare,
        step_rules=settings.lr_step_rules,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=steps,
        num_cycles=settings.lr_num_cycles,
        power=settings.lr_power,
    ).lr_lambdas
    return lambda step: settings.learning_rate * factor(step)


def make_optimizer(selected: SelectedWeights, settings: Settings) -> torch.optim.Optimizer:
    """Adam on the selected weights; AdamW where they decay."""
    kind = torch.optim.Adam if settings.adam_weight_decay == 0 else torch.optim.AdamW
    return kind(
        selected.weights,
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        eps=settings.adam_epsilon,
        weight_decay=settings.adam_weight_decay,
        fused=True,
    )
