"""Steps of a run and the course of its learning rate."""

from __future__ import annotations

import dataclasses
import math

import pytest

from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.schedule import learning_rate, total_steps

CONFIG = EraseConfig(concept="disc", train_batch_size=2)


@pytest.mark.parametrize(
    ("kind", "warmup", "rates"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("constant", 3, [1 / 4, 2 / 4, 3 / 4, 1]),
        # 1/2 (1 + cos(π k / 4))
        ("cosine", 0, [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
        ("linear", 0, [1, 3 / 4, 2 / 4, 1 / 4]),
        # Two steps of warm-up at 1/3 and 2/3, then half the line.
        ("linear", 2, [1 / 3, 2 / 3, 1, 1 / 2]),
    ],
)
def test_rates_by_hand(kind, warmup, rates):
    config = dataclasses.replace(CONFIG, learning_rate=0.01, lr_scheduler=kind, lr_warmup_steps=warmup)
    assert [learning_rate(config, step, 4) for step in range(4)] == pytest.approx([0.01 * rate for rate in rates])


@pytest.mark.parametrize(
    ("count", "processes", "accumulation", "epochs", "steps"),
    [
        (963, 1, 1, 5, 605),  # Imagenette's class 0 in the official script: 5 · ⌈963 / 8⌉.
        (800, 1, 1, 1, 100),
        (800, 2, 1, 1, 50),
        (800, 2, 3, 2, 34),  # 2 · ⌈800 / 48⌉
    ],
)
def test_steps_by_hand(count, processes, accumulation, epochs, steps):
    config = dataclasses.replace(
        CONFIG, train_batch_size=8, max_train_steps=None, num_train_epochs=epochs,
        gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    assert total_steps(config, count, processes) == steps
    assert total_steps(dataclasses.replace(config, max_train_steps=9), count, processes) == 9
