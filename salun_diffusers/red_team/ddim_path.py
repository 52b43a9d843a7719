"""The deterministic way between a picture and its noise under the empty prompt (DDIM, arXiv 2010.02502, eq. 12)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from salun_diffusers.diffusion.families.family import Family, rows
from salun_diffusers.errors import UserError


@dataclass(frozen=True)
class Inverted:
    """Noise that a picture comes from.

    Args:
        noise: z_T, in the latents' shape.
        error: Mean of (f(z) - z)² over all steps, for each row, `(n,)`: 0 where the way back is exact.
    """

    noise: Tensor
    error: Tensor


class EmptyPath:
    """T steps from latents to noise and back, without words.

        z_s = √ᾱ_s x₀(z_t) + √(1-ᾱ_s) ε(z_t)        from noise to picture, ε = ε_θ(z_t, t, ∅)
        z_t = C₁ z_s + C₂ ε(z_t) = f(z_t)           the same, read backwards: a fixed point
        C₁ = √(ᾱ_t / ᾱ_s)        C₂ = √(1-ᾱ_t) - C₁ √(1-ᾱ_s)

    Networks that answer with v or x₀ are understood (`NoiseSchedule`).
    """

    def __init__(self, family: Family, steps: int) -> None:
        """Choose the timesteps, evenly, the last one of training among them.

        Args:
            family: The model.
            steps: T.

        Raises:
            UserError: If the model has no empty prompt.
        """
        if not family.has_empty_prompt:
            raise UserError(f"Textless inversion needs a model with an empty prompt; {family.folder} has none.")
        self._family = family
        last = family.schedule.num_train_timesteps
        steps = min(steps, last)
        self.timesteps = tuple(round(last * (number + 1) / steps) - 1 for number in range(steps))
        self._prediction = str(getattr(family.schedule, "prediction", "epsilon"))
        self._empty = family.encode([""])

    def inverted(self, latents: Tensor, iterations: int, learning_rate: float) -> Inverted:
        """The noise from which `drawn` makes these latents; each row by itself.

        Every step begins at f(z_s) and keeps the best of what AdamW passes through, on ‖f(z) - z‖².

        Args:
            latents: `(n, …)`.
            iterations: Of AdamW for each step.
            learning_rate: Of AdamW, without decay.
        """
        now, total = latents, latents.new_zeros(len(latents))
        for before, timestep in zip((-1, *self.timesteps), self.timesteps, strict=False):
            with torch.no_grad():
                start = self.backwards(now, now, before, timestep)
            now, error = self._fixed_point(start, now, (before, timestep), iterations, learning_rate)
            total = total + error
        return Inverted(now, total / len(self.timesteps))

    def _fixed_point(
        self, start: Tensor, clean: Tensor, step: tuple[int, int], iterations: int, learning_rate: float
    ) -> tuple[Tensor, Tensor]:
        """z with the least mean (f(z) - z)², and that mean, for each row."""
        point = start.clone().requires_grad_()
        optimizer = torch.optim.AdamW([point], lr=learning_rate, weight_decay=0.0)
        best, least = start, torch.full((len(start),), torch.inf, device=start.device)
        for number in range(iterations + 1):
            with torch.set_grad_enabled(number < iterations):
                error = (self.backwards(point, clean, *step) - point).square().flatten(1).mean(dim=1)
            better = error.detach() < least
            best = torch.where(better.view(-1, *[1] * (best.dim() - 1)), point.detach(), best)
            least = torch.where(better, error.detach(), least)
            if number < iterations:
                # A sum, so that no row's gradient depends on how many there are.
                point.grad = torch.autograd.grad(error.sum(), point)[0]
                optimizer.step()
        return best, least

    @torch.no_grad()
    def drawn(self, noise: Tensor) -> Tensor:
        """Latents of noise."""
        now = noise
        for timestep, after in zip(self.timesteps[::-1], (*self.timesteps[-2::-1], -1), strict=True):
            picture, own = self._parts(now, timestep)
            kept = self._signal(after, now)
            now = kept.sqrt() * picture + (1 - kept).sqrt() * own
        return now

    def backwards(self, point: Tensor, clean: Tensor, before: int, timestep: int) -> Tensor:
        """f(z) = C₁ z_s + C₂ ε(z, t, ∅).

        Args:
            point: z, where the network is asked.
            clean: z_s.
            before: s; -1 for the picture itself, where ᾱ is 1.
            timestep: t.
        """
        kept, less = self._signal(before, point), self._signal(timestep, point)
        first = (less / kept).sqrt()
        second = (1 - less).sqrt() - first * (1 - kept).sqrt()
        return first * clean + second * self._parts(point, timestep)[1]

    def _signal(self, timestep: int, like: Tensor) -> Tensor:
        """ᾱ_t = SNR / (1 + SNR), a number."""
        if timestep < 0:
            return torch.ones((), device=like.device)
        ratio = self._family.schedule.signal_to_noise(torch.tensor([timestep], device=like.device))[0]
        return ratio / (1 + ratio)

    def _parts(self, noised: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
        """x₀ and ε as the network sees them."""
        count = len(noised)
        answer = self._family.predict(
            self._family.denoiser, noised, torch.full((count,), timestep, device=noised.device),
            rows(self._empty, torch.zeros(count, dtype=torch.int64)),
        )  # fmt: skip
        kept = self._signal(timestep, noised)
        signal, noise = kept.sqrt(), (1 - kept).sqrt()
        if self._prediction == "v_prediction":
            return signal * noised - noise * answer, signal * answer + noise * noised
        if self._prediction == "sample":
            return answer, (noised - signal * answer) / noise
        return (noised - noise * answer) / signal, answer
