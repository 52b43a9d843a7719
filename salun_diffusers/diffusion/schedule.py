"""How many steps fine-tuning takes, and the learning rate of each."""

from __future__ import annotations

import math

from salun_diffusers.diffusion.config import EraseConfig


def learning_rate(config: EraseConfig, step: int, steps: int) -> float:
    """The rate of one optimizer step: linear warm-up, then constant, half a cosine to 0, or a line to 0."""
    assert config.learning_rate is not None
    warm_up = min(1.0, (step + 1) / (config.lr_warmup_steps + 1))
    progress = max(0.0, (step - config.lr_warmup_steps) / max(1, steps - config.lr_warmup_steps))
    course = {"constant": 1.0, "cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress}
    return config.learning_rate * warm_up * course[config.lr_scheduler or "constant"]


def total_steps(config: EraseConfig, forget_count: int, processes: int) -> int:
    """Optimizer steps of a run: `max_train_steps`, or the epochs' worth of forget batches."""
    if config.max_train_steps is not None:
        return config.max_train_steps
    assert config.num_train_epochs is not None and config.train_batch_size is not None
    batches = math.ceil(forget_count / (config.train_batch_size * processes * config.gradient_accumulation_steps))
    return config.num_train_epochs * batches
