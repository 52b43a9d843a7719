"""Random streams by name: the same name gives the same numbers, whatever ran before."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def stream_seed(seed: int, *name: str | int) -> int:
    """A 63-bit seed for one purpose of a run: SHA-256 of the run's seed and the stream's name.

    Draws made from it depend on the run's seed and the name only: not on the order of stages, the batch size, the
    number of processes or an interruption.
    """
    text = "/".join(map(str, (seed, *name)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def stream(seed: int, *name: str | int) -> torch.Generator:
    """A CPU generator for one purpose of a run."""
    return torch.Generator().manual_seed(stream_seed(seed, *name))


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Whatever the block draws, Python's, numpy's and torch's random numbers go on after it as if it had drawn none."""
    python, numbers, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
