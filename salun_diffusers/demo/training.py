"""Train one network: AdamW, warm-up and cosine decay, an average of the weights, checkpoints to go on from."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from salun_diffusers.errors import UserError
from salun_diffusers.files.checkpoint import load_optimizer_state, load_state, optimizer_state, save_state
from salun_diffusers.progress import Progress

LOG_EVERY = 50
WARM_UP = 100


@dataclass
class Fit:
    """One training run of one network.

    Every random draw of step i, dropout's among them, comes from a generator seeded with (seed, i, rank): a resumed run
    repeats nothing and skips nothing. What decides the training is kept with every checkpoint, and another training is
    not gone on with.

    Only the number of steps may change, and only where the course up to the checkpoint is the same under both numbers:
    the rate and the average depend on it from the first step of the decay on. By default the decay begins at once, so
    that a longer run needs a folder of its own.

    Args:
        name: Of the bar, the checkpoint folder and the log.
        module: The network; changed in place.
        loss: Maps the (prepared) network, the step and the step's generator to a scalar.
        steps: Optimizer steps.
        learning_rate: The largest; after 100 steps of warm-up it stays until the decay.
        decay_steps: The last steps, in which the rate follows half a cosine down to 0 and the weights are averaged; by
            default all. A run with none can be gone on from by longer ones, which then share its steps.
        seed: Of all draws.
        checkpointing_steps: Steps between checkpoints.
        ema_decay: Of the average of the weights, reached after a warm-up.
        weight_decay: AdamW's.
        max_grad_norm: The gradient is clipped to this norm.
        decided_by: What else decides the training, as JSON values by the names that the user knows: settings of the
            loss, where the weights start, and the identity of the data (see `tensors_sha256`).
        goes_on_from: Checkpoint of another training of the same network, whose steps count as this one's first; what it
            was made of is part of what decides this one.
    """

    name: str
    module: nn.Module
    loss: Callable[[nn.Module, int, torch.Generator], Tensor]
    steps: int
    learning_rate: float
    decay_steps: int | None = None
    seed: int = 0
    checkpointing_steps: int = 500
    ema_decay: float = 0.999
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    decided_by: Mapping[str, Any] = field(default_factory=dict)
    goes_on_from: Path | None = None

    def run(self, accelerator: Accelerator, output: Path) -> nn.Module:
        """Train to the last step and return the module with its averaged weights.

        Args:
            accelerator: The engine: processes and precision.
            output: Folder for `<name>-checkpoint/` and `<name>.jsonl`; a checkpoint there is gone on from. Its
                state says what `seconds` its steps took, over all runs.

        Raises:
            UserError: If the checkpoint is of another training, or this one diverges; the last checkpoint stays.
        """
        folder = output / f"{self.name}-checkpoint"
        record = self._record(accelerator)
        self.module.to(accelerator.device).train()
        optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, betas=(0.9, 0.99),
            fused=True,
        )  # fmt: skip
        average = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
        first, spent = 0, 0.0
        if folder.exists() or self.goes_on_from is not None:
            tensors, state = load_state(folder if folder.exists() else Path(str(self.goes_on_from)))
            self._refuse_another(folder, state, record)
            first, spent = state["step"], state.get("seconds", 0.0)
            self.module.load_state_dict(_under("model.", tensors))
            average = {name: tensor.to(accelerator.device) for name, tensor in _under("ema.", tensors).items()}
            load_optimizer_state(optimizer, _under("optimizer.", tensors), state["optimizer"])
            if accelerator.scaler is not None and state.get("scaler"):  # fp16 only
                accelerator.scaler.load_state_dict(state["scaler"])
        network, prepared = accelerator.prepare(self.module, optimizer)
        log = output / f"{self.name}.jsonl"
        losses: list[float] = []
        started = time.perf_counter() - spent
        with Progress(self.name, self.steps, accelerator.is_main_process, done=first) as bar:
            for step in range(first, self.steps):
                rate = self.learning_rate * self.schedule(step)
                for group in prepared.param_groups:
                    group["lr"] = rate
                of_step = (self.seed * 1_000_003 + step) * 64 + accelerator.process_index
                generator = torch.Generator(accelerator.device).manual_seed(of_step)
                torch.manual_seed(of_step)  # Dropout draws from torch's own stream.
                loss = self.loss(network, step, generator)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(network.parameters(), self.max_grad_norm)
                prepared.step()
                prepared.zero_grad()
                self._average(average, step)
                losses.append(float(loss.detach()))
                if (step + 1) % LOG_EVERY == 0:
                    row = {"step": step + 1, "loss": float(np.mean(losses)), "learning_rate": rate}
                    accelerator.log({name: value for name, value in row.items() if name != "step"}, step=step + 1)
                    if accelerator.is_main_process:
                        with log.open("a") as file:
                            file.write(json.dumps(row) + "\n")
                    losses.clear()
                bar.advance(loss=float(loss.detach()), lr=rate)
                saving = (step + 1) % self.checkpointing_steps == 0 or step + 1 == self.steps
                if saving and not all(bool(tensor.isfinite().all()) for tensor in average.values()):
                    raise UserError(
                        f"The training of {self.name} diverged: its weights hold NaN or infinity after {step + 1} "
                        "steps, and none of it was kept; use a lower learning rate."
                    )
                if saving and accelerator.is_main_process:
                    moments, state = optimizer_state(optimizer)
                    packed = {f"optimizer.{name}": tensor for name, tensor in moments.items()}
                    packed |= {f"model.{name}": tensor for name, tensor in self.module.state_dict().items()}
                    packed |= {f"ema.{name}": tensor for name, tensor in average.items()}
                    spent = time.perf_counter() - started
                    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
                    progress = {"step": step + 1, "optimizer": state, "scaler": scaler, "seconds": spent}
                    save_state(folder, packed, {**progress, **record})
        accelerator.wait_for_everyone()
        self.module.load_state_dict(average)
        return self.module.eval().requires_grad_(False)

    def schedule(self, step: int) -> float:
        """Share of the learning rate: linear warm-up, a constant, then half a cosine down to 0."""
        decayed = max(0, self._decaying(step))
        decay = 0.5 * (1 + math.cos(math.pi * decayed / (self.decay_steps or self.steps)))
        return min(1.0, (step + 1) / WARM_UP) * decay

    def _record(self, accelerator: Accelerator) -> dict[str, Any]:
        """What a checkpoint says of its training: its course, and everything that decides its weights."""
        own = ("learning_rate", "seed", "ema_decay", "weight_decay", "max_grad_norm")
        shapes = {name: list(tensor.shape) for name, tensor in self.module.state_dict().items()}
        decided = {
            **self.decided_by,
            **{name: getattr(self, name) for name in own},
            # Draws are those of a rank, and batches are shared out.
            "number of processes": accelerator.num_processes,
            "mixed_precision": accelerator.mixed_precision,
            "network": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
        }
        if self.goes_on_from is not None:
            earlier = load_state(self.goes_on_from)[1]
            decided["first steps"] = {"step": earlier["step"], **earlier.get("decided_by", {})}
        # As it will be read back: tuples are lists then.
        written: dict[str, Any] = json.loads(json.dumps(decided, default=str))
        return {"decided_by": written, "steps": self.steps, "decay_begins": -self._decaying(0)}

    def _refuse_another(self, folder: Path, state: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Refuse a checkpoint that this training would not have made.

        Raises:
            UserError: Naming the first setting that differs.
        """
        elsewhere = "use the same settings, another --output_dir, or delete that folder"
        known, asked = state.get("decided_by"), record["decided_by"]
        if not folder.exists() and known is not None:  # Of another training on purpose, but of the same network.
            known = {**asked, "network": known["network"]}
        if known is None:
            raise UserError(
                f"{folder} does not say what it was trained with, so it cannot be gone on with; {elsewhere}."
            )
        for name in sorted(known.keys() | asked.keys()):
            if known.get(name) != asked.get(name):
                then, now = (str(values.get(name))[:40] for values in (known, asked))
                raise UserError(
                    f"{folder} is of a training with other settings: {name} was {then} and is {now}; {elsewhere}."
                )
        same = all(state[name] == record[name] for name in ("steps", "decay_begins"))
        if not same and state["step"] > min(state["decay_begins"], record["decay_begins"]):
            raise UserError(
                f"{folder} has {state['step']} steps of a course of {state['steps']}, whose learning rate falls from "
                f"step {state['decay_begins']} on; in one of {self.steps} they would have been others: {elsewhere}."
            )

    def _decaying(self, step: int) -> int:
        """Steps since the decay began; negative before."""
        return step if self.decay_steps is None else step - (self.steps - self.decay_steps)

    @torch.no_grad()
    def _average(self, average: dict[str, Tensor], step: int) -> None:
        averaged = self._decaying(step)
        decay = min(self.ema_decay, (1 + averaged) / (10 + averaged)) if averaged >= 0 else 0.0
        for name, tensor in self.module.state_dict().items():
            if tensor.is_floating_point():
                average[name].lerp_(tensor, 1 - decay)
            else:
                average[name].copy_(tensor)


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """The identity of some tensors: names, shapes, data types and every value."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_kept(path: Path, mark: str) -> dict[str, Tensor]:
    """Read tensors that an earlier run kept, sure to be made of the same.

    Args:
        path: A safetensors file whose metadata says in ``decided_by`` what it was made of.
        mark: What it would be made of now.

    Raises:
        UserError: If the two differ.
    """
    with safe_open(path, framework="pt") as file:
        known = (file.metadata() or {}).get("decided_by", "something unknown")
    if known != mark:
        raise UserError(f"{path} was made of {known}, asked for is {mark}; delete it, or use another --output_dir.")
    return load_file(path)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
