"""The fine-tuning loop: an objective on the selected weights, under accelerate, resumable to the bit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from salun_diffusers.diffusion.averages import averages_of
from salun_diffusers.diffusion.baselines import make_objective
from salun_diffusers.diffusion.batches import Draws
from salun_diffusers.diffusion.families.family import Family, spread
from salun_diffusers.diffusion.global_batch import GlobalBatch, with_scaled_rate
from salun_diffusers.diffusion.latent_sets import EraseData
from salun_diffusers.diffusion.optimizer import learning_rates, make_optimizer
from salun_diffusers.diffusion.robust_step import RobustStep
from salun_diffusers.diffusion.robustness import Robustness
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.diffusion.sharding import Leaves, all_finite, clip, prepare, refresh, whole
from salun_diffusers.diffusion.soft_masks import soft_updates
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.diffusion.training_back import TrainingBack
from salun_diffusers.diffusion.training_checkpoints import Trained, is_due, tell_if_another_course
from salun_diffusers.errors import UserError, tell
from salun_diffusers.files.checkpoint import load_state
from salun_diffusers.files.json_files import parse_json, read_bytes
from salun_diffusers.files.kept_checkpoints import latest_checkpoint
from salun_diffusers.files.whole_files import write_text
from salun_diffusers.masks.soft_updates import attach
from salun_diffusers.masks.trained_weights import TrainedWeights
from salun_diffusers.progress import Progress


def error_scale(family: Family, timesteps: Tensor, power: float) -> Tensor:
    """Factor of prediction and target that weighs their squared error with w_t, min(SNR_t^-p, 10) where they are ε.

    ε is easy to predict from noise, so that plain errors hardly see the states in which layout and colours are decided;
    p = 1 would weigh them as errors of the clean latents, whatever the network predicts. p = 0 is the loss as
    published, in the network's own space.

    Args:
        family: Knows the weight.
        timesteps: `(b,)`.
        power: p.

    Returns:
        √w_t, `(b,)`.
    """
    return family.schedule.error_weight(timesteps, power).sqrt()


class Watch(Protocol):
    """Somebody who looks at a training under way, and changes nothing."""

    def __call__(self, step: int, steps: int, as_saved: Callable[[], AbstractContextManager[None]]) -> None:
        """Look, or not.

        Args:
            step: Steps done.
            steps: Steps in all.
            as_saved: In its context the denoiser has the weights that would be saved now.
        """
        ...


def not_watched(step: int, steps: int, as_saved: Callable[[], AbstractContextManager[None]]) -> None:
    """Nobody looks."""


def training_steps(settings: Settings, data: EraseData, processes: int) -> int:
    """Optimizer steps of a fine-tuning.

    Args:
        settings: How long it takes, and its batches.
        data: An epoch goes once through what the forget half is drawn from.
        processes: How many share a batch.
    """
    return settings.length.steps(len(data.forget) + len(data.anchor), GlobalBatch.of(settings, processes).size)


def fine_tune(
    run: Run,
    family: Family,
    selected: TrainedWeights,
    data: EraseData,
    settings: Settings,
    resume_from: Path | None,
    watch: Watch = not_watched,
) -> list[dict[str, Any]]:
    """Move the selected weights along the objective of the settings.

    All randomness of a step comes from its number, so a run resumed from a checkpoint repeats the draws of an
    uninterrupted one; on a CPU the weights end bit-identical.

    Differs from the official code: the network is in evaluation mode. That of the DDPM trains it
    (DDPM/runners/diffusion.py), so that student and target each have a dropout of 0.1 and lose a tenth of their
    conditions, at random.

    Differs from the official code: `max_grad_norm` clips the gradient of the selected weights. That of the DDPM clips
    the gradient of all, before the mask.

    Args:
        run: Processes, precision, accumulation, and the folder of `checkpoint-<step>` and `metrics.jsonl`.
        family: The base model; its denoiser is changed in place.
        selected: The weights that may move.
        data: Latents and conditions.
        settings: The loss; how long, how fast, how large.
        resume_from: A checkpoint folder to go on from.
        watch: Called after every step.

    Returns:
        One row per optimizer step: step, loss, forget_loss, retain_loss, learning_rate.

    Raises:
        UserError: If the loss stops being finite; the last checkpoint is kept and named.
    """
    accelerator, folder, objective = run.accelerator, run.folder.root, make_objective(settings)
    batch = GlobalBatch.of(settings, accelerator.num_processes)
    steps = training_steps(settings, data, accelerator.num_processes)
    tensors, state = load_state(resume_from) if resume_from else ({}, {"step": 0})
    first = int(state["step"])

    settings = with_scaled_rate(settings, accelerator.num_processes)
    rates_of = partial(learning_rates, settings)
    rates = rates_of(steps)
    if run.main:
        about = f"learning rate {settings.learning_rate:g}, {settings.lr_scheduler}"
        tell("note", f"fine-tuning takes {steps} steps; {batch}; {about}.")
        if batch.warning:
            tell("warning", batch.warning)
        tell_if_another_course(state, steps, settings, rates_of)
    family.denoiser.eval()
    # The base answers before a checkpoint's weights are put into it.
    draws = Draws(family, data, objective, settings, batch.shares(range(first, steps), accelerator.process_index))
    if objective.teacher == "base":
        draws.compute_targets(run)
    refresh(accelerator, family.denoiser)
    averages = averages_of(selected, settings.use_ema)
    leaves = Leaves(accelerator, selected.weights)
    attacker = TrainingBack(selected, Robustness.of(settings))
    trained = Trained(selected, make_optimizer(selected, settings), averages, accelerator.scaler, leaves, attacker)
    # What they measure from is the base, so they are there before a checkpoint's weights.
    soft = soft_updates(run, family, selected, data, settings, steps)
    attach(soft, trained.stepper)
    if resume_from:
        trained.load(tensors, state)
        tensors.clear()  # As large as all that is trained.
    if settings.gradient_checkpointing:
        family.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    # DistributedDataParallel has the gradients of all processes only when backward is over.
    alone = accelerator.distributed_type == DistributedType.NO
    training = selected.in_training(gather_as_they_come=alone)
    with training, Progress("fine-tuning", steps, run.main, done=first) as bar:
        network, stepper = prepare(accelerator, family.denoiser, trained.stepper)
        take = step_of(accelerator, network, attacker, stepper, draws, settings)
        history = read_metrics(folder / "metrics.jsonl", first) if resume_from else []
        metrics = folder / "metrics.jsonl"
        if run.main:
            write_text(metrics, "".join(json.dumps(row) + "\n" for row in history))
        for step in range(first, steps):
            rate = rates(step)
            for group in stepper.param_groups:
                group["lr"] = rate
            soft.begin(step + 1, (step + 1) / steps)
            losses = take(progress=step / steps)
            averages.update()
            row = {"step": step + 1, **losses, "learning_rate": rate}
            if not math.isfinite(row["loss"]):
                raise _diverged(f"The loss became {row['loss']}", step + 1, folder)
            history.append(row)
            if run.main:
                with metrics.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            accelerator.log({name: value for name, value in row.items() if name != "step"}, step=step + 1)
            bar.advance(loss=row["loss"], lr=rate)
            # A finite loss says nothing of the update that followed it.
            saving = run.resumable and is_due(step + 1, steps, settings.checkpointing_steps)
            if (saving or step + 1 == steps) and not all_finite(accelerator, selected.weights):
                raise _diverged("A weight became infinite or NaN", step + 1, folder)
            if saving:
                trained.save(run, step + 1, steps, settings)
            watch(step + 1, steps, averages.in_place)
            refresh(accelerator, network)
    averages.settle()
    family.denoiser = whole(accelerator, network)
    return history


def _step(
    accelerator: Accelerator,
    network: nn.Module,
    selected: TrainedWeights,
    stepper: torch.optim.Optimizer,
    draws: Draws,
    settings: Settings,
    progress: float,
) -> dict[str, float]:
    """One optimizer step: all its micro-batches, then the update."""
    accumulation = settings.gradient_accumulation_steps
    terms = torch.zeros(3, device=draws.family.device)
    for micro in range(accumulation):
        with accelerator.accumulate(network), accelerator.autocast():
            terms += _backward(accelerator, network, draws, settings, progress) / accumulation
            if micro + 1 < accumulation:
                continue
            # Update weights.
            selected.gather_gradients()
            _update(accelerator, selected, stepper, settings)
    total, forget, retain = accelerator.reduce(terms, reduction="mean").tolist()
    return {"loss": total, "forget_loss": forget, "retain_loss": retain}


def _robust_step(
    accelerator: Accelerator,
    network: nn.Module,
    attacker: TrainingBack,
    stepper: torch.optim.Optimizer,
    draws: Draws,
    settings: Settings,
    progress: float,
) -> dict[str, float]:
    """One optimizer step of ``--robust``."""
    scale = partial(error_scale, power=settings.snr_power)
    step = RobustStep(accelerator, network, attacker, draws, settings.gradient_accumulation_steps, scale)
    losses = step()
    _update(accelerator, attacker.selected, stepper, settings)
    values = accelerator.reduce(torch.stack(list(losses.values())), reduction="mean").tolist()
    return dict(zip(losses, values, strict=True))


def step_of(
    accelerator: Accelerator,
    network: nn.Module,
    attacker: TrainingBack,
    stepper: torch.optim.Optimizer,
    draws: Draws,
    settings: Settings,
) -> Callable[..., dict[str, float]]:
    """What takes an optimizer step; it is told ``progress``, the share of the steps that are done.

    Args:
        accelerator: Processes, precision, accumulation.
        network: The denoiser as it was prepared.
        attacker: The weights that may move, and who trains them back where that is simulated.
        stepper: Their optimizer.
        draws: The batches.
        settings: Of the run.
    """
    if settings.robust == "none":
        return partial(_step, accelerator, network, attacker.selected, stepper, draws, settings)
    return partial(_robust_step, accelerator, network, attacker, stepper, draws, settings)


def _update(
    accelerator: Accelerator, selected: TrainedWeights, stepper: torch.optim.Optimizer, settings: Settings
) -> None:
    """Step on the gradients that the leaves have."""
    if math.isfinite(settings.max_grad_norm):
        clip(accelerator, selected.weights, settings.max_grad_norm)
    stepper.step()
    stepper.zero_grad()
    selected.scatter()


def _backward(
    accelerator: Accelerator, network: nn.Module, draws: Draws, settings: Settings, progress: float
) -> Tensor:
    """The gradients of one micro-batch; returns its loss and the two terms, `(3,)`."""
    family, objective = draws.family, draws.objective
    batch, target = draws.next(network)
    scale = spread(error_scale(family, batch.timesteps, settings.snr_power), batch.noised)
    prediction = family.predict(network, batch.noised, batch.timesteps, batch.conditions)
    loss, weight = objective(prediction * scale, target * scale), batch.weight
    total = weight * loss.total + objective.penalty(family.denoiser.parameters(), progress)
    accelerator.backward(total)
    return torch.stack([total, weight * loss.forget, weight * loss.retain]).detach()


def _diverged(what: str, step: int, folder: Path) -> UserError:
    kept = latest_checkpoint(folder)
    state = f"the last good state is {kept}" if kept else "no checkpoint had been written"
    return UserError(
        f"{what} at step {step}; nothing was saved from it and {state}. "
        "Lower --learning_rate, or set --max_grad_norm 1."
    )


def read_metrics(path: Path, last_step: float = math.inf) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` up to a step; lines that cannot be read are left out.

    Args:
        path: The file; it need not exist.
        last_step: The last step that counts.
    """
    rows = {}
    for line in read_bytes(path).splitlines() if path.is_file() else ():
        try:
            row = parse_json(line)
            if isinstance(row["step"], int) and 0 < row["step"] <= last_step:
                rows[row["step"]] = row
        except (ValueError, TypeError, KeyError):
            continue
    return [rows[step] for step in sorted(rows)]
