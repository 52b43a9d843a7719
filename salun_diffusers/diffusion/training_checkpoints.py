"""Checkpoints of a fine-tuning: when one is due, what is in it, and which of them a training goes on from."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from salun_diffusers.accelerator import decided_by_main
from salun_diffusers.diffusion.averages import Averages
from salun_diffusers.diffusion.request import Request
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.diffusion.sharding import Leaves
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.diffusion.training_back import TrainingBack
from salun_diffusers.errors import UserError, tell
from salun_diffusers.files.checkpoint import load_optimizer_state, optimizer_state, save_state
from salun_diffusers.files.kept_checkpoints import (
    checkpoints,
    latest_checkpoint,
    named_checkpoint,
    read_state,
    whole_checkpoint,
)
from salun_diffusers.files.whole_files import full_disk_is_told
from salun_diffusers.masks.trained_weights import TrainedWeights

RatesOf = Callable[[int], Callable[[int], float]]


def is_due(step: int, steps: int, every: int) -> bool:
    """Whether a checkpoint is written after a step: at every n-th, the last one included, as in diffusers' scripts.

    A training that is too short for one writes it at its end: a longer one can then go on from there.

    Args:
        step: Steps that are done.
        steps: Steps in all.
        every: n.
    """
    return step % every == 0 or (step == steps < every)


@dataclass(frozen=True)
class Trained:
    """Everything that moves in a fine-tuning.

    Args:
        selected: The weights.
        stepper: Their optimizer, as accelerate prepared it or bare.
        averages: What is kept beside them.
        scaler: fp16's loss scale, or None.
        leaves: Puts together what several processes hold of them.
        attacker: Who trains them back beside it.
    """

    selected: TrainedWeights
    stepper: torch.optim.Optimizer
    averages: Averages
    scaler: Any
    leaves: Leaves
    attacker: TrainingBack

    def save(self, run: Run, step: int, steps: int, settings: Settings) -> None:
        """Write ``checkpoint-<step>``, and remove the oldest ones beyond a limit; every process calls this.

        Args:
            run: Where.
            step: Steps that are done.
            steps: Steps that there were to be in all.
            settings: How many checkpoints are kept.
        """
        folder, limit = run.folder.root, settings.checkpoints_total_limit
        moments, state = optimizer_state(getattr(self.stepper, "optimizer", self.stepper))
        kinds = {"weight": self.selected.state(), "optimizer": moments, "average": self.averages.state(),
                 "attacker": self.attacker.state()}  # fmt: skip
        tensors = {
            f"{kind}.{name}": self.leaves.join(self._leaf(kind, name), tensor)
            for kind, found in kinds.items() for name, tensor in found.items()
        }  # fmt: skip
        if not run.main:
            return
        with full_disk_is_told(f"checkpoint-{step}"):
            loss_scale = self.scaler.state_dict() if self.scaler else None  # fp16 only
            values = {"step": step, "steps": steps, "optimizer": state, "scaler": loss_scale,
                      "fingerprint": run.marks.training, "use_8bit_adam": settings.use_8bit_adam}  # fmt: skip
            save_state(folder / f"checkpoint-{step}", tensors, values)
        # Old ones go when the new one is safe: a run killed in between still has a whole one to go on from.
        older = [path for path in checkpoints(folder) if number_of(path) < step]
        for old in older[: max(0, len(older) - int(limit) + 1)] if math.isfinite(limit) else ():
            shutil.rmtree(old)

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take up what `save` wrote; before accelerate prepares the optimizer."""
        self.selected.load(self._mine("weight", tensors))
        load_optimizer_state(self.stepper, self._mine("optimizer", tensors), state["optimizer"])
        self.averages.load(self._mine("average", tensors), int(state["step"]))
        self.attacker.load(self._mine("attacker", tensors))
        if self.scaler and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])

    def _leaf(self, kind: str, name: str) -> int:
        """The number of the leaf that a tensor belongs to; an optimizer's begin with it."""
        if kind == "optimizer":
            return int(name.split(".")[0])
        return self.selected.names.index(name) if name in self.selected.names else -1

    def _mine(self, kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this process holds of the tensors of one kind, by name."""
        names = [name.removeprefix(f"{kind}.") for name in tensors if name.startswith(f"{kind}.")]
        return {name: self.leaves.mine(self._leaf(kind, name), tensors[f"{kind}.{name}"]) for name in names}


def checkpoint_to_resume(run: Run, request: Request, steps: int) -> Path | None:
    """The checkpoint that fine-tuning goes on from, if the user asked for that and there is one.

    The number of steps is no setting of it: a longer training goes on from a shorter one's. Of `latest` a damaged one
    is passed over for the newest that is whole. Checkpoints of other settings of the training are no part of this one:
    they go, and it begins anew.

    Args:
        run: Where they lie.
        request: What the user asked for.
        steps: Steps in all.

    Raises:
        UserError: If the one that the user named is of other settings or lies beyond the last step, or none is whole.
    """
    wanted = request.config.resume_from_checkpoint
    if wanted is None:
        return None
    if wanted != "latest":
        named = named_checkpoint(run.folder.root, wanted)
        if not _is_of(read_state(named), run, request):
            raise UserError(f"--resume_from_checkpoint: {named} is of a training with other settings; take `latest`.")
        if number_of(named) > steps:
            raise UserError(
                f"--resume_from_checkpoint: {named} lies beyond the {steps} steps of this training; raise "
                "--max_train_steps, or take `latest`, which goes on from the last one before that."
            )
        return named
    return decided_by_main(run.accelerator, lambda: _newest_of_these_settings(run, request, steps))


def _newest_of_these_settings(run: Run, request: Request, steps: int) -> Path | None:
    root = run.folder.root
    newest = latest_checkpoint(root)
    if newest is None:
        return None
    # Where none is whole, the newest says what is wrong with it.
    found, state = whole_checkpoint(root) or (newest, read_state(newest))
    if not _is_of(state, run, request):
        tell("note", "the settings of the training have changed since its last checkpoint: it begins anew.")
        for old in checkpoints(root):
            shutil.rmtree(old)
        return None
    if found != newest:
        tell("note", f"{newest.name} is damaged; the training goes on from {found.name}, the newest that is whole.")
    while number_of(found) > steps:
        earlier = whole_checkpoint(root, before=found)
        if earlier is None:
            return None
        found, _ = earlier
    return found


def _is_of(state: Mapping[str, Any], run: Run, request: Request) -> bool:
    """Whether a checkpoint is of this training; moments of 8 bits do not go on as others, nor the other way round."""
    same_adam = state.get("use_8bit_adam", False) == request.settings.use_8bit_adam
    return same_adam and state.get("fingerprint") == run.marks.training


def tell_if_another_course(state: Mapping[str, Any], steps: int, settings: Settings, rates: RatesOf) -> None:
    """Say so where the steps up to a checkpoint were taken otherwise than those of this training would have been.

    Args:
        state: Of the checkpoint; empty at the start.
        steps: Steps of this training in all.
        settings: Of this training.
        rates: The learning rates of a training of so many steps.
    """
    planned, done = int(state.get("steps", steps)), int(state.get("step", 0))
    if planned == steps or done == 0:
        return
    before, now = rates(planned), rates(steps)
    # l1_sparse's penalty and the proximal share decay over the steps as well.
    decays = settings.objective == "l1_sparse" or settings.soft_threshold == "proximal"
    if decays or any(before(step) != now(step) for step in range(done)):
        tell(
            "note",
            f"the first {done} steps were those of a training of {planned}: its learning rate "
            f"(--lr_scheduler {settings.lr_scheduler}) depends on that number, so this is not the uninterrupted "
            f"training of {steps} steps.",
        )


def number_of(checkpoint: Path) -> int:
    """The step of a checkpoint folder."""
    return int(checkpoint.name.removeprefix("checkpoint-"))
