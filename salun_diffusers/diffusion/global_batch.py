"""The latents of one optimizer step, and who takes which of them: processes, and the micro-batches of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from salun_diffusers.diffusion.settings import Settings


class Share(NamedTuple):
    """What one process takes of a step in one micro-batch.

    Attributes:
        step: The optimizer step, from 0.
        size: Forget latents of the whole step; as many retain latents go with them.
        rows: Which of them these are.
        weight: Its loss counts so much: the mean over all shares of weight times mean loss is the step's mean loss.
    """

    step: int
    size: int
    rows: range
    weight: float


@dataclass(frozen=True)
class GlobalBatch:
    """The forget latents of one optimizer step, shared by `processes × accumulation` micro-batches.

    A step is drawn as a whole and cut up afterwards, and the loss of a cut counts by its rows: what is trained depends
    on `size` alone, also where the cuts are not of one size.

    Args:
        size: Forget latents of a step.
        processes: How many take part.
        accumulation: Micro-batches of each process.

    Example:
        >>> batch = GlobalBatch(size=8, processes=3, accumulation=1)
        >>> [batch.rows(part) for part in range(3)]
        [range(0, 2), range(2, 5), range(5, 8)]
    """

    size: int
    processes: int
    accumulation: int

    @classmethod
    def of(cls, settings: Settings, processes: int) -> GlobalBatch:
        """The batch that settings mean: a preset's is that of a step, the flag's that of a process and micro-batch."""
        accumulation = settings.gradient_accumulation_steps
        cuts = processes * accumulation if settings.batch_of == "process" else 1
        return cls(settings.train_batch_size * cuts, processes, accumulation)

    @property
    def parts(self) -> int:
        """How many micro-batches there are in all."""
        return self.processes * self.accumulation

    @property
    def largest(self) -> int:
        """Forget latents of the largest micro-batch, which is what has to fit into memory."""
        return -(-self.size // self.parts)

    def rows(self, part: int) -> range:
        """The latents of one micro-batch: ⌊part·size/parts⌋ to ⌊(part+1)·size/parts⌋."""
        return range(part * self.size // self.parts, (part + 1) * self.size // self.parts)

    def shares(self, steps: Iterable[int], rank: int) -> list[Share]:
        """What a process takes, in order.

        Where there are more micro-batches than latents, some take one that does not count: all have to take part.
        """
        cuts = [self.rows(micro * self.processes + rank) for micro in range(self.accumulation)]
        weights = [len(rows) * self.parts / self.size for rows in cuts]
        return [
            Share(step, self.size, rows or range(1), weight)
            for step in steps
            for rows, weight in zip(cuts, weights, strict=True)
        ]

    def __str__(self) -> str:
        each = f"{self.size // self.parts}" + (f" or {self.largest}" if self.size % self.parts else "")
        return (
            f"global batch {self.size} + {self.size} ({each} + as many per process and micro-batch, processes "
            f"{self.processes}, accumulated {self.accumulation})"
        )

    @property
    def warning(self) -> str:
        """What is amiss with the cut; empty if nothing is."""
        if self.size % self.parts == 0:
            return ""
        return (
            f"a global batch of {self.size} cannot be cut evenly for {self.processes} processes × {self.accumulation} "
            "accumulated; the training is the same, but some processes wait for others. A multiple of "
            f"{self.parts} wastes nothing: --train_batch_size {max(1, round(self.size / self.parts))} is "
            f"{self.parts * max(1, round(self.size / self.parts))} in all."
        )


def with_scaled_rate(settings: Settings, processes: int) -> Settings:
    """The settings with the rate of a run, which --scale_lr multiplies by the global batch.

    Args:
        settings: As the flags and presets have them.
        processes: How many share a batch.
    """
    size = GlobalBatch.of(settings, processes).size if settings.scale_lr else 1
    return replace(settings, learning_rate=settings.learning_rate * size)
