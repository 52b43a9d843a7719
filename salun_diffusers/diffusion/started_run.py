"""A run under way: what all of its stages share, from its processes to the command that was typed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from accelerate import Accelerator

from salun_diffusers.accelerator import Processes, decided_by_main
from salun_diffusers.diffusion.stage_marks import StageMarks
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.progress import Clock


@dataclass(frozen=True)
class Run:
    """What the stages of a run share.

    Args:
        accelerator: Processes, precision and gradient accumulation.
        folder: Where everything goes.
        clock: Seconds per stage.
        base: SHA-256 of the base model.
        marks: Fingerprints of its stages.
        command: The command as typed, for the record.
        resumable: Whether it can be taken up again: else checkpoints have no use.
    """

    accelerator: Accelerator
    folder: RunFolder
    clock: Clock
    base: str
    marks: StageMarks
    command: str
    resumable: bool = True

    @property
    def main(self) -> bool:
        """Whether this process writes and reports."""
        return bool(self.accelerator.is_main_process)

    @property
    def processes(self) -> Processes:
        """Who shares the work."""
        return Processes.of(self.accelerator)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time a stage."""
        return self.clock.stage(name)

    def is_done(self, stage: str, mark: str) -> bool:
        """Whether a stage ended in the folder with the same fingerprint; one process hashes its files for all."""
        return decided_by_main(self.accelerator, lambda: self.folder.stage_is_done(stage, mark))

    @property
    def has_erased(self) -> bool:
        """Whether the pipeline that these settings lead to is already there."""
        return self.is_done("pipeline", self.marks.pipeline) or self.has_strength

    @property
    def has_strength(self) -> bool:
        """Whether the strength was looked for, and the pipeline is there at the one that was found."""
        return bool(self.marks.strength) and self.is_done("strength", self.marks.strength)
