"""The fine-tuning loop: an objective on the selected weights, under accelerate, resumable to the bit."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from salun_diffusers.diffusion.batches import Draws
from salun_diffusers.diffusion.families.family import Family, spread
from salun_diffusers.diffusion.latent_sets import EraseData
from salun_diffusers.diffusion.objectives import Objective
from salun_diffusers.diffusion.optimizer import learning_rates, make_optimizer
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.errors import UserError
from salun_diffusers.files.checkpoint import load_optimizer_state, load_state, optimizer_state, save_state
from salun_diffusers.files.json_files import parse_json, read_bytes
from salun_diffusers.files.kept_checkpoints import checkpoints, latest_checkpoint
from salun_diffusers.files.whole_files import full_disk_is_told, write_text
from salun_diffusers.masks.selected_weights import SelectedWeights
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


def fine_tune(
    run: Run,
    family: Family,
    selected: SelectedWeights,
    data: EraseData,
    objective: Objective,
    settings: Settings,
    resume_from: Path | None,
) -> list[dict[str, Any]]:
    """Move the selected weights along the objective.

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
        objective: The loss.
        settings: How long, how fast, how large.
        resume_from: A checkpoint folder to go on from.

    Returns:
        One row per optimizer step: step, loss, forget_loss, retain_loss, learning_rate.

    Raises:
        UserError: If the loss stops being finite; the last checkpoint is kept and named.
    """
    accelerator, folder = run.accelerator, run.folder.root
    accumulation, world, rank = (
        settings.gradient_accumulation_steps, accelerator.num_processes, accelerator.process_index
    )  # fmt: skip
    steps = settings.length.steps(len(data.forget) + len(data.anchor), settings.train_batch_size * world * accumulation)
    stepper, rates = make_optimizer(selected, settings), learning_rates(settings, steps)
    tensors, state = load_state(resume_from) if resume_from else ({}, {"step": 0})
    first = int(state["step"])
    positions = [
        (step * accumulation + micro) * world + rank for step in range(first, steps) for micro in range(accumulation)
    ]
    family.denoiser.eval()
    # The base answers before a checkpoint's weights are put into it.
    draws = Draws(family, data, objective, settings, positions)
    if objective.teacher == "base":
        draws.compute_targets(run)
    if resume_from:
        selected.load(_named("weight.", tensors))
        load_optimizer_state(stepper, _named("optimizer.", tensors), state["optimizer"])
        tensors.clear()  # As large as all that is trained.
    if settings.gradient_checkpointing:
        family.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    # DistributedDataParallel has the gradients of all processes only when backward is over.
    alone = accelerator.distributed_type == DistributedType.NO
    training = selected.in_training(gather_as_they_come=alone)
    with training, Progress("fine-tuning", steps, run.main, done=first) as bar:
        network, stepper = accelerator.prepare(family.denoiser, stepper)
        if accelerator.scaler and state.get("scaler"):
            accelerator.scaler.load_state_dict(state["scaler"])
        history = read_metrics(folder / "metrics.jsonl", first) if resume_from else []
        metrics = folder / "metrics.jsonl"
        if run.main:
            write_text(metrics, "".join(json.dumps(row) + "\n" for row in history))
        for step in range(first, steps):
            rate = rates(step)
            for group in stepper.param_groups:
                group["lr"] = rate
            losses = _step(accelerator, network, selected, stepper, draws, settings, progress=step / steps)
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
            saving = (step + 1) % settings.checkpointing_steps == 0 or step + 1 == steps
            if saving and not all(bool(leaf.isfinite().all()) for leaf in selected.weights):
                raise _diverged("A weight became infinite or NaN", step + 1, folder)
            if saving and step + 1 < steps and run.main:
                _save_checkpoint(run, step + 1, selected, stepper, settings)
    family.denoiser = accelerator.unwrap_model(network)
    return history


def _step(
    accelerator: Accelerator,
    network: nn.Module,
    selected: SelectedWeights,
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
            if math.isfinite(settings.max_grad_norm):
                accelerator.clip_grad_norm_(selected.weights, settings.max_grad_norm)
            stepper.step()
            stepper.zero_grad()
            selected.scatter()
    total, forget, retain = accelerator.reduce(terms, reduction="mean").tolist()
    return {"loss": total, "forget_loss": forget, "retain_loss": retain}


def _backward(
    accelerator: Accelerator, network: nn.Module, draws: Draws, settings: Settings, progress: float
) -> Tensor:
    """The gradients of one micro-batch; returns its loss and the two terms, `(3,)`.

    Where it ends the graph is gone: with checkpointing that holds the activations that were kept, also after backward.
    """
    family, objective = draws.family, draws.objective
    batch, target = draws.next(network)
    scale = spread(error_scale(family, batch.timesteps, settings.snr_power), batch.noised)
    prediction = family.predict(network, batch.noised, batch.timesteps, batch.conditions)
    loss = objective(prediction * scale, target * scale)
    total = loss.total + objective.penalty(family.denoiser.parameters(), progress)
    accelerator.backward(total)
    return torch.stack([total, loss.forget, loss.retain]).detach()


def _named(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names begin with a word, without it."""
    return {name.removeprefix(kind): tensor for name, tensor in tensors.items() if name.startswith(kind)}


def _save_checkpoint(
    run: Run, step: int, selected: SelectedWeights, stepper: torch.optim.Optimizer, settings: Settings
) -> None:
    limit = settings.checkpoints_total_limit
    folder, scaler = run.folder.root, run.accelerator.scaler
    moments, state = optimizer_state(getattr(stepper, "optimizer", stepper))
    tensors = {f"weight.{name}": tensor for name, tensor in selected.state().items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in moments.items()}
    with full_disk_is_told(f"checkpoint-{step}"):
        loss_scale = scaler.state_dict() if scaler else None  # fp16 only
        values = {"step": step, "optimizer": state, "scaler": loss_scale, "fingerprint": run.marks.training}
        values["use_8bit_adam"] = settings.use_8bit_adam
        save_state(folder / f"checkpoint-{step}", tensors, values)
    # Old ones go when the new one is safe: a run killed in between still has a whole one to go on from.
    for old in checkpoints(folder)[: -int(limit)] if math.isfinite(limit) else ():
        shutil.rmtree(old)


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
