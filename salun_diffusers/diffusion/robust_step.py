"""A step of `--robust`: forgetting also holds where somebody looks for the concept, or begins to train it back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from salun_diffusers.diffusion.batches import Draws
from salun_diffusers.diffusion.families.family import Conditions, Family, spread
from salun_diffusers.diffusion.global_batch import Share
from salun_diffusers.diffusion.inner_attack import attacked
from salun_diffusers.diffusion.objectives import EraseBatch, Half, Objective, ObjectiveLoss
from salun_diffusers.diffusion.training_back import TrainingBack
from salun_diffusers.masks.conflict import without_conflict

Scale = Callable[[Family, Tensor], Tensor]
Gradients = list[Tensor]


def alone(objective: Objective, prediction: Tensor, target: Tensor, half: Half) -> ObjectiveLoss:
    """An objective's loss of one half, as if the other were answered without an error.

    Args:
        objective: Takes both halves.
        prediction: Of this half.
        target: Of this half.
        half: Which one it is.
    """
    other = torch.zeros_like(target)
    order = 1 if half == "forget" else -1
    return objective(torch.cat([prediction, other][::order]), torch.cat([target, other][::order]))


@dataclass(frozen=True)
class Rows:
    """One half of a micro-batch.

    Args:
        batch: The rows of this half only.
        target: What they are compared with.
        scale: Of prediction and target, one for each row.
        half: Which one it is.
    """

    batch: EraseBatch
    target: Tensor
    scale: Tensor
    half: Half

    @classmethod
    def of(cls, batch: EraseBatch, target: Tensor, scale: Tensor, half: Half) -> Rows:
        """One half of a micro-batch of both."""
        middle = len(batch.noised) // 2
        mine = slice(0, middle) if half == "forget" else slice(middle, None)
        conditions = {name: tensor[mine] for name, tensor in batch.conditions.items()}
        part = EraseBatch(batch.noised[mine], batch.timesteps[mine], batch.truth[mine], conditions, weight=batch.weight)
        return cls(part, target[mine], scale[mine], half)


@dataclass(frozen=True)
class RobustStep:
    """The gradients of one optimizer step, which are left at the leaves.

        g = P(∇ℓ_f(θ, c) + ∇ℓ_f(θ, c + δ) + μ ∇ℓ_f(θ′, c)) + ∇ α ℓ_r(θ),    P(g_f) = g_f - min(0, ⟨g_f, g_r⟩)/‖g_r‖² g_r

    δ is found by `attacked`, and θ′ is where the attacker of `TrainingBack` has come after one more step; the gradient
    there is applied to θ as it is (first order, as in meta-unlearning, arXiv 2410.12777). Terms that are not asked for
    are left out.

    Args:
        accelerator: Processes, precision and accumulation.
        network: The denoiser as accelerate prepared it.
        attacker: The weights that may move, and who trains them back.
        draws: Where the batches come from.
        accumulation: Micro-batches of a step.
        scale: What `error_scale` says of timesteps.
    """

    accelerator: Accelerator
    network: nn.Module
    attacker: TrainingBack
    draws: Draws
    accumulation: int
    scale: Scale

    def __call__(self) -> dict[str, Tensor]:
        """Take the step's gradients; returns its losses, of this process."""
        shares = self.draws.upcoming(self.accumulation)
        with self.accelerator.autocast():
            both = [self.draws.next(self.network) for _ in shares]
        forget, retain = (
            [Rows.of(batch, target, self._scale_of(batch), half) for batch, target in both]
            for half in ("forget", "retain")
        )
        kept, g_r = self._gradients(retain)
        plain, g_f = self._gradients(forget)
        told = {"loss": kept[0] + plain[0], "forget_loss": plain[1], "retain_loss": kept[2]}
        robustness = self.attacker.robustness
        if robustness.condition_steps:
            found, more = self._gradients(forget, self._attacked)
            g_f = _sum(g_f, more)
            told["attacked_loss"] = found[1]
        if robustness.weight_steps:
            with self.attacker.in_place(shares[0].step):
                self._train_back(shares)
                found, more = self._gradients(forget)
            g_f = _sum(g_f, more, robustness.weight_share)
            told["relearning_loss"] = found[1]
        for leaf, one, other in zip(self.attacker.selected.weights, without_conflict(g_f, g_r), g_r, strict=True):
            leaf.grad = one.add_(other)
        return told

    def _scale_of(self, batch: EraseBatch) -> Tensor:
        return spread(self.scale(self.draws.family, batch.timesteps), batch.noised)

    def _gradients(
        self, parts: Sequence[Rows], conditions: Callable[[Rows], Conditions] = lambda rows: rows.batch.conditions
    ) -> tuple[Tensor, Gradients]:
        """Losses and gradients of one half over all micro-batches."""
        terms = torch.zeros(3, device=self.draws.family.device)
        for rows in parts:
            told = conditions(rows)
            with self.accelerator.accumulate(self.network), self.accelerator.autocast():
                loss = self._loss(self.network, rows, told)
                self.accelerator.backward(rows.batch.weight * loss.total)
            values = torch.stack([loss.total, loss.forget, loss.retain]).detach()
            terms += rows.batch.weight * values / len(parts)
        return terms, self._taken()

    def _loss(self, network: nn.Module, rows: Rows, conditions: Conditions) -> ObjectiveLoss:
        batch = rows.batch
        prediction = self.draws.family.predict(network, batch.noised, batch.timesteps, conditions)
        return alone(self.draws.objective, prediction * rows.scale, rows.target * rows.scale, rows.half)

    def _attacked(self, rows: Rows) -> Conditions:
        """Of one micro-batch, each row's moved by itself; no gradient of a weight is taken, so no process waits."""

        scaler = self.accelerator.scaler
        # Slopes of fp16 would vanish as those of weights do; of these only signs count.
        scale = scaler.get_scale() if scaler else 1.0

        def loss(conditions: Conditions) -> Tensor:
            with self.accelerator.autocast():
                return scale * self._loss(self.draws.family.denoiser, rows, conditions).total

        wanted = self.attacker.robustness
        return attacked(rows.batch.conditions, loss, steps=wanted.condition_steps, budget=wanted.condition_budget)

    def _train_back(self, shares: Sequence[Share]) -> None:
        """One step of who wants the concept back, on rows that are cut up like those of the training."""
        family = self.draws.family
        for share in shares:
            with self.accelerator.accumulate(self.network), self.accelerator.autocast():
                batch = self.draws.relearning(share)
                answer = family.predict(self.network, batch.noised, batch.timesteps, batch.conditions)
                self.accelerator.backward(batch.weight * F.mse_loss(answer, batch.truth))
        self.attacker.go_on(self._taken())

    def _taken(self) -> Gradients:
        """The gradients of the leaves, which forget them."""
        self.attacker.selected.gather_gradients()
        found = []
        for leaf in self.attacker.selected.weights:
            found.append(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
            leaf.grad = None
        return [gradient.detach() for gradient in found]


def _sum(first: Gradients, second: Gradients, share: float = 1.0) -> Gradients:
    """Of gradients, the second ones weighed; in the place of the first."""
    return [one.add_(other, alpha=share) for one, other in zip(first, second, strict=True)]
