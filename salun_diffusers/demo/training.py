"""Train one network: AdamW, warm-up and cosine decay, an average of the weights, checkpoints to go on from."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from salun_diffusers.files.checkpoint import load_optimizer_state, load_state, optimizer_state, save_state
from salun_diffusers.progress import Progress

LOG_EVERY = 50
WARM_UP = 100


@dataclass
class Fit:
    """One training run of one network.

    Every random draw of step i comes from a generator seeded with (seed, i, rank): a resumed run repeats nothing and
    skips nothing.

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

    def run(self, accelerator: Accelerator, output: Path) -> nn.Module:
        """Train to the last step and return the module with its averaged weights.

        Args:
            accelerator: The engine: processes and precision.
            output: Folder for `<name>-checkpoint/` and `<name>.jsonl`; a checkpoint there is gone on from. Its
                state says what `seconds` its steps took, over all runs.
        """
        folder = output / f"{self.name}-checkpoint"
        self.module.to(accelerator.device).train()
        optimizer = torch.optim.AdamW(
            self.module.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, betas=(0.9, 0.99),
            fused=True,
        )  # fmt: skip
        average = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
        first, spent = 0, 0.0
        if folder.exists():
            tensors, state = load_state(folder)
            first, spent = state["step"], state.get("seconds", 0.0)
            self.module.load_state_dict(_under("model.", tensors))
            average = {name: tensor.to(accelerator.device) for name, tensor in _under("ema.", tensors).items()}
            load_optimizer_state(optimizer, _under("optimizer.", tensors), state["optimizer"])
        network, prepared = accelerator.prepare(self.module, optimizer)
        log = output / f"{self.name}.jsonl"
        losses: list[float] = []
        started = time.perf_counter() - spent
        with Progress(self.name, self.steps, accelerator.is_main_process, done=first) as bar:
            for step in range(first, self.steps):
                rate = self.learning_rate * self.schedule(step)
                for group in prepared.param_groups:
                    group["lr"] = rate
                generator = torch.Generator(accelerator.device).manual_seed(
                    (self.seed * 1_000_003 + step) * 64 + accelerator.process_index
                )
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
                if saving and accelerator.is_main_process:
                    moments, state = optimizer_state(optimizer)
                    packed = {f"optimizer.{name}": tensor for name, tensor in moments.items()}
                    packed |= {f"model.{name}": tensor for name, tensor in self.module.state_dict().items()}
                    packed |= {f"ema.{name}": tensor for name, tensor in average.items()}
                    spent = time.perf_counter() - started
                    save_state(folder, packed, {"step": step + 1, "optimizer": state, "seconds": spent})
        accelerator.wait_for_everyone()
        self.module.load_state_dict(average)
        return self.module.eval().requires_grad_(False)

    def schedule(self, step: int) -> float:
        """Share of the learning rate: linear warm-up, a constant, then half a cosine down to 0."""
        decayed = max(0, self._decaying(step))
        decay = 0.5 * (1 + math.cos(math.pi * decayed / (self.decay_steps or self.steps)))
        return min(1.0, (step + 1) / WARM_UP) * decay

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


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
