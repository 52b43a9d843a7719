"""The fine-tuning loop: an objective on the selected weights, under accelerate, resumable to the bit."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from salun_diffusers.diffusion.batches import EraseData, draw
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.families import Family
from salun_diffusers.diffusion.objectives import EraseBatch, Objective
from salun_diffusers.diffusion.schedule import learning_rate, total_steps
from salun_diffusers.errors import UserError
from salun_diffusers.files.checkpoint import (
    latest_checkpoint,
    load_optimizer_state,
    load_state,
    optimizer_state,
    save_state,
)
from salun_diffusers.files.run_folder import checkpoints
from salun_diffusers.files.whole_files import full_disk_is_told, write_text
from salun_diffusers.masks.selected_weights import SelectedWeights
from salun_diffusers.progress import Progress


def error_scale(family: Family, timesteps: Tensor, power: float) -> Tensor:
    """Factor of prediction and target that weighs their squared error with w_t = min(SNR_t^-p, 10).

    ε is easy to predict from noise, so that plain errors hardly see the states in which layout and colours are decided;
    p = 1 would weigh them as errors of the clean latents. p = 0 is the loss as published.

    Args:
        family: Knows the SNR.
        timesteps: `(b,)`.
        power: p.

    Returns:
        √w_t, `(b, 1, 1, 1)`.
    """
    return family.signal_to_noise(timesteps).pow(-power).clamp(max=10).sqrt().view(-1, 1, 1, 1)


def base_targets(
    accelerator: Accelerator,
    family: Family,
    data: EraseData,
    objective: Objective,
    config: EraseConfig,
    positions: Sequence[int],
) -> dict[int, Tensor]:
    """The base model's targets for all draws to come, on the CPU, so that the loop holds one network."""
    targets = {}
    with Progress("targets", len(positions), accelerator.is_main_process) as bar, torch.no_grad():
        for position in positions:
            with accelerator.autocast():
                target = objective.target(family, family.denoiser, _batch(family, data, objective, config, position))
            targets[position] = target.float().cpu()
            bar.advance()
    return targets


def _batch(family: Family, data: EraseData, objective: Objective, config: EraseConfig, position: int) -> EraseBatch:
    assert config.train_batch_size is not None and config.empty_prompt_share is not None
    return draw(
        family, data, position,
        batch_size=config.train_batch_size, seed=config.seed, empty_prompt_share=config.empty_prompt_share,
        halves=objective.halves,
    )  # fmt: skip


def fine_tune(
    accelerator: Accelerator,
    family: Family,
    selected: SelectedWeights,
    data: EraseData,
    objective: Objective,
    config: EraseConfig,
    *,
    folder: Path,
    resume_from: Path | None,
) -> list[dict[str, Any]]:
    """Move the selected weights along the objective.

    All randomness of a step comes from its number, so a run resumed from a checkpoint repeats the draws of an
    uninterrupted one; on a CPU the weights end bit-identical.

    Args:
        accelerator: The engine: processes, precision, accumulation.
        family: The base model; its denoiser is changed in place.
        selected: The weights that may move.
        data: Latents and conditions.
        objective: The loss.
        config: Resolved settings.
        folder: Where `checkpoint-<step>` folders and `metrics.jsonl` go.
        resume_from: A checkpoint folder to go on from.

    Returns:
        One row per optimizer step: step, loss, forget_loss, retain_loss, learning_rate.

    Raises:
        UserError: If the loss stops being finite; the last checkpoint is kept and named.
    """
    steps = total_steps(config, len(data.forget) + len(data.anchor), accelerator.num_processes)
    optimizer = torch.optim.Adam if config.adam_weight_decay == 0 else torch.optim.AdamW
    stepper = optimizer(
        selected.weights, lr=config.learning_rate or 0.0, betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon, weight_decay=config.adam_weight_decay, fused=True,
    )  # fmt: skip
    first, rows_before = 0, []
    checkpoint = load_state(resume_from) if resume_from else None
    if checkpoint:
        first = int(checkpoint[1]["step"])
        rows_before = _read_metrics(folder / "metrics.jsonl", first)
    accumulation, world, rank = config.gradient_accumulation_steps, accelerator.num_processes, accelerator.process_index
    positions = [
        (step * accumulation + micro) * world + rank for step in range(first, steps) for micro in range(accumulation)
    ]
    family.denoiser.eval()
    targets: dict[int, Tensor] = {}
    if objective.teacher == "base":
        targets = base_targets(accelerator, family, data, objective, config, positions)
    if checkpoint:
        selected.load({n.removeprefix("weight."): t for n, t in checkpoint[0].items() if n.startswith("weight.")})
        moments = {n.removeprefix("optimizer."): t for n, t in checkpoint[0].items() if n.startswith("optimizer.")}
        load_optimizer_state(stepper, moments, checkpoint[1]["optimizer"])
    if config.gradient_checkpointing:
        family.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    network, stepper = accelerator.prepare(family.denoiser, stepper)
    if checkpoint and accelerator.scaler and checkpoint[1].get("scaler"):
        accelerator.scaler.load_state_dict(checkpoint[1]["scaler"])
    history = list(rows_before)
    metrics = folder / "metrics.jsonl"
    if accelerator.is_main_process:
        write_text(metrics, "".join(json.dumps(row) + "\n" for row in rows_before))
    remaining = iter(positions)
    with Progress("fine-tuning", steps, accelerator.is_main_process, done=first) as bar:
        for step in range(first, steps):
            rate = learning_rate(config, step, steps)
            for group in stepper.param_groups:
                group["lr"] = rate
            losses = _step(
                accelerator, family, network, selected, stepper, data, objective, config, remaining, targets,
                progress=step / steps,
            )  # fmt: skip
            row = {"step": step + 1, **losses, "learning_rate": rate}
            if not math.isfinite(row["loss"]):
                raise _diverged(f"The loss became {row['loss']}", step + 1, folder)
            history.append(row)
            if accelerator.is_main_process:
                with metrics.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            accelerator.log({name: value for name, value in row.items() if name != "step"}, step=step + 1)
            bar.advance(loss=row["loss"], lr=rate)
            # A finite loss says nothing of the update that followed it.
            saving = (step + 1) % config.checkpointing_steps == 0 or step + 1 == steps
            if saving and not all(bool(leaf.isfinite().all()) for leaf in selected.weights):
                raise _diverged("A weight became infinite or NaN", step + 1, folder)
            if saving and step + 1 < steps and accelerator.is_main_process:
                _save_checkpoint(
                    folder, step + 1, selected, stepper, accelerator.scaler, config.checkpoints_total_limit
                )
    family.denoiser = accelerator.unwrap_model(network)
    return history


def _step(
    accelerator: Accelerator,
    family: Family,
    network: nn.Module,
    selected: SelectedWeights,
    stepper: torch.optim.Optimizer,
    data: EraseData,
    objective: Objective,
    config: EraseConfig,
    positions: Iterator[int],
    targets: dict[int, Tensor],
    progress: float,
) -> dict[str, float]:
    """One optimizer step: all its micro-batches, then the update."""
    terms = torch.zeros(3, device=family.device)
    for micro in range(config.gradient_accumulation_steps):
        position = next(positions)
        batch = _batch(family, data, objective, config, position)
        with accelerator.accumulate(network), accelerator.autocast():
            if objective.teacher == "base":
                target = targets.pop(position).to(family.device)
            else:
                target = objective.target(family, network, batch)
            scale = error_scale(family, batch.timesteps, config.snr_power or 0.0)
            prediction = family.predict(network, batch.noised, batch.timesteps, batch.conditions)
            loss = objective(prediction * scale, target * scale)
            total = loss.total + objective.penalty(family.denoiser.parameters(), progress)
            accelerator.backward(total)
            terms += torch.stack([total, loss.forget, loss.retain]).detach() / config.gradient_accumulation_steps
            if micro + 1 < config.gradient_accumulation_steps:
                continue
            # Update weights.
            selected.gather_gradients()
            if config.max_grad_norm is not None:
                accelerator.clip_grad_norm_(selected.weights, config.max_grad_norm)
            stepper.step()
            stepper.zero_grad()
            selected.scatter()
    total, forget, retain = accelerator.reduce(terms, reduction="mean").tolist()
    return {"loss": total, "forget_loss": forget, "retain_loss": retain}


def _save_checkpoint(
    folder: Path,
    step: int,
    selected: SelectedWeights,
    stepper: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    limit: int | None,
) -> None:
    moments, state = optimizer_state(getattr(stepper, "optimizer", stepper))
    tensors = {f"weight.{name}": tensor for name, tensor in selected.state().items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in moments.items()}
    with full_disk_is_told(f"checkpoint-{step}"):
        loss_scale = scaler.state_dict() if scaler else None  # fp16 only
        save_state(folder / f"checkpoint-{step}", tensors, {"step": step, "optimizer": state, "scaler": loss_scale})
    # Old ones go when the new one is safe: a run killed in between still has a whole one to go on from.
    if limit is not None:
        for old in checkpoints(folder)[:-limit]:
            shutil.rmtree(old)


def _diverged(what: str, step: int, folder: Path) -> UserError:
    kept = latest_checkpoint(folder)
    state = f"the last good state is {kept}" if kept else "no checkpoint had been written"
    return UserError(
        f"{what} at step {step}; nothing was saved from it and {state}. "
        "Lower --learning_rate, or set --max_grad_norm 1."
    )


def _read_metrics(path: Path, last_step: int) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [row for row in lines if row["step"] <= last_step]
