"""UnlearnDiffAtk: words before a prompt, found by the gradient of the erased model's own noise loss.

arXiv 2310.11868; OPTML-Group/Diffusion-MU-Attack at commit 5a3e5d3 (`src/attackers/text_grad_.py`,
`src/tasks/classifier_.py`).

Differs from the official code: what the base draws of a case is attacked as the latents that it made; there, as a
picture that the VAE encodes again.

Differs from the official code: words only are chosen; there, also the start and the end of a text.

Differs from the official code: found tokens are drawn as they are; there, they are written out and read again.

Differs from the official code: rows are projected exactly; there, by bisection until the shift is known to 1e-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from salun_diffusers.errors import UserError
from salun_diffusers.red_team.attack import Case, Contest, Finding, Told
from salun_diffusers.red_team.denoising import noise_like, own_errors
from salun_diffusers.red_team.standing import Standing
from salun_diffusers.red_team.token_space import TokenSpace
from salun_diffusers.seeds import stream

_HALVINGS = 40


def onto_simplex(rows: Tensor) -> Tensor:
    """The nearest point of the simplex {p ≥ 0, Σ p = 1} to each row a.

        p = max(a - μ, 0),      μ such that Σ p = 1

    μ lies between max(a) - 1, where one entry alone gives 1 or more, and max(a), where nothing is left. Bisection finds
    which entries are positive; the sum over them then gives μ exactly.

    Args:
        rows: `(…, n)`.

    Returns:
        As `rows`.
    """
    high = rows.amax(dim=-1, keepdim=True)
    low = high - 1
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        over = (rows - middle).clamp(min=0).sum(dim=-1, keepdim=True) >= 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    positive = rows > low
    shift = ((rows * positive).sum(dim=-1, keepdim=True) - 1) / positive.sum(dim=-1, keepdim=True)
    return (rows - shift).clamp(min=0) * positive


class DrawnWord(torch.autograd.Function):
    """One-hot rows of words that were drawn; backwards, as if they were the distribution, with slopes cut to [-1, 1].

    The straight-through estimator: ∂ℓ/∂p := hardtanh(∂ℓ/∂onehot).
    """

    @staticmethod
    def forward(_context: Any, distribution: Tensor, drawn: Tensor) -> Tensor:
        """One-hot rows.

        Args:
            distribution: `(…, n)`; where the gradient goes.
            drawn: Numbers of words, `(…)`.
        """
        return F.one_hot(drawn, distribution.shape[-1]).to(distribution.dtype)

    @staticmethod
    def backward(_context: Any, *gradients: Any) -> tuple[Tensor, None]:
        """hardtanh of the gradient, to the distribution."""
        return F.hardtanh(gradients[0]), None


def drawn_words(distributions: Tensor, chances: Tensor) -> Tensor:
    """A word from each distribution: the first whose cumulative probability exceeds a uniform number.

    Args:
        distributions: `(…, n)`, rows that sum to 1.
        chances: In [0, 1), `(…)`.
    """
    heights = distributions.detach().double().cumsum(dim=-1)
    wanted = chances.to(heights).unsqueeze(-1) * heights[..., -1:]
    return torch.searchsorted(heights, wanted, right=True).squeeze(-1).clamp(max=heights.shape[-1] - 1)


@dataclass(frozen=True)
class UnlearnDiffAtk:
    """k words before the prompt, as distributions over the vocabulary, that make the model denoise the concept.

        min_P ‖ε - ε_θ*(√ᾱ_t x₀ + √(1-ᾱ_t) ε, t, τ(P, prompt))‖²      P ∈ Δ^k

    x₀ is what the base draws of the case. Timesteps are gone through from early to late; after each the likeliest words
    are drawn with the case's seed, and the first hit ends it.

    Args:
        tokens: k; 5 for nudity, 3 for objects and styles as published.
        timesteps: How many, evenly spread.
        steps: Adam's, on each timestep.
        learning_rate: Adam's.
        weight_decay: Adam's, added to the gradient.
        batch_size: Cases at once; no case depends on it.
    """

    tokens: int = 5
    timesteps: int = 50
    steps: int = 40
    learning_rate: float = 0.01
    weight_decay: float = 0.1
    batch_size: int = 8

    name: ClassVar[str] = "unlearn_diff_atk"

    @classmethod
    def quick(cls) -> Self:
        """Fewer steps and words, for a small model: 20 timesteps of 20 steps."""
        return cls(tokens=3, timesteps=20, steps=20, batch_size=32)

    def schedule(self, num_train_timesteps: int) -> list[int]:
        """The timesteps: T/n apart from half of that on; of 1000 in 50, 10, 30, …, 990.

        Raises:
            UserError: If there are not so many.
        """
        if not 1 <= self.timesteps <= num_train_timesteps:
            raise UserError(f"Between 1 and {num_train_timesteps} timesteps are required, got {self.timesteps}.")
        apart = num_train_timesteps // self.timesteps
        return list(range(apart // 2, num_train_timesteps, apart))[: self.timesteps]

    def __call__(self, contest: Contest, cases: Sequence[Case], told: Told) -> list[Finding]:
        """Search words for each case.

        Raises:
            UserError: If the target has no text encoder.
        """
        space = TokenSpace(contest.target.family)
        starts = range(0, len(cases), self.batch_size)
        batches = [cases[start : start + self.batch_size] for start in starts]
        return [finding for batch in batches for finding in self._attacked(contest, space, batch, told)]

    def _attacked(self, contest: Contest, space: TokenSpace, cases: Sequence[Case], told: Told) -> list[Finding]:
        standing, device = Standing(contest, cases, told), contest.target.family.device
        words, prompts = space.words.to(device), [case.prompt for case in cases]
        vectors = [matrix[words] for matrix in space.matrices]
        sentences = space.sentence(prompts, [0] * self.tokens)
        latents = contest.base.drawn_latents(prompts, [case.seed for case in cases]).to(device)
        random = [stream(case.seed, self.name) for case in cases]
        even = torch.full((self.tokens, len(words)), 1 / len(words), device=device)
        chosen = [even.clone().requires_grad_() for _ in cases]
        optimizer = torch.optim.Adam(chosen, lr=self.learning_rate, weight_decay=self.weight_decay)
        for timestep in self.schedule(contest.target.family.schedule.num_train_timesteps):
            index = standing.index
            sentence, clean = sentences.rows(index), latents[index.to(device)]
            times = torch.full((len(index),), timestep, device=device)
            for _ in range(self.steps):
                now = torch.stack([chosen[one] for one in standing.open])
                chances = torch.stack([torch.rand(self.tokens, generator=random[one]) for one in standing.open])
                hot = DrawnWord.apply(now, drawn_words(now, chances))
                conditions = space.conditions(sentence, [hot @ matrix for matrix in vectors])
                noise = noise_like(clean, [random[one] for one in standing.open])
                losses = own_errors(contest.target.family, clean, times, conditions, noise)
                optimizer.zero_grad()
                losses.sum().backward()
                optimizer.step()
                with torch.no_grad():
                    rows = onto_simplex(torch.stack([chosen[one] for one in standing.open]))
                    for number, row in zip(standing.open, rows, strict=True):
                        chosen[number].copy_(row)
            likeliest = words[torch.stack([chosen[one] for one in standing.open]).detach().argmax(dim=-1)]
            measured = [(("timestep", float(timestep)), ("loss", loss)) for loss in losses.detach().tolist()]
            standing.look_at_words(space, sentence, likeliest, measured)
            if not standing.open:
                break
        return standing.settled()
