"""The optimizer of the selected weights, and the course of its rate."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from diffusers.optimization import get_scheduler

from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.errors import UserError
from salun_diffusers.masks.trained_weights import TrainedWeights


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


def make_optimizer(selected: TrainedWeights, settings: Settings) -> torch.optim.Optimizer:
    """Adam on the selected weights; AdamW where they decay; on request with moments of 8 bits.

    Those are bitsandbytes', as in diffusers' own scripts: 2 bytes a selected weight instead of 8, in blocks of 256 with
    a scale each, but whole for tensors below 4,096. It takes leaves of any size, and its state is plain tensors, which
    a checkpoint holds as they are. (torchao's has 8 bits only for sizes that 256 divides, and compiles a kernel for
    every size: a mask selects another number of every tensor.) On all weights, with gradients zeroed, its moments
    would move 97 % of the frozen weights; here these are none of its parameters.
    """
    common = {
        "lr": settings.learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "eps": settings.adam_epsilon,
        "weight_decay": settings.adam_weight_decay,
    }
    if settings.use_8bit_adam:
        optimizer: torch.optim.Optimizer = _bitsandbytes().optim.AdamW8bit(selected.weights, **common)
        return optimizer
    kind = torch.optim.Adam if settings.adam_weight_decay == 0 else torch.optim.AdamW
    return kind(selected.weights, fused=True, **common)  # type: ignore[arg-type]


def _bitsandbytes() -> Any:
    """The package, without its remarks on kernels of quantized networks.

    Raises:
        UserError: If it is not there.
    """
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError("--use_8bit_adam needs bitsandbytes: pip install 'salun-diffusers[8bit]'.") from error
    finally:
        logger.setLevel(level)
    return bitsandbytes
