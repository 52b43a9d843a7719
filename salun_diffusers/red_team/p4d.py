"""P4D, Prompting4Debugging: words that make the erased model answer as its base answers the prompt.

arXiv 2309.06135; joycenerd/P4D at commit 2cf3cda (`prompt_optimization/optimize_n.py`, `optimize_k.py`).

Differs from the official code: every picture on the way is judged, and the first hit ends a case; there, the words
whose picture CLIP finds most like the base's are kept, and judged once by three pictures.

Differs from the official code: the base's own latents of a case are noised; there, the VAE's of its picture.

Differs from the official code: words only are chosen, and behind the prompt stands the tokenizer's padding; there, any
token is, and the padding is the token of number 0.

Differs from the official code: two text encoders share each word, the nearest to the vectors of both; there, models
have one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from salun_diffusers.diffusion.families.family import Conditions, rows
from salun_diffusers.red_team.attack import Case, Contest, Finding, Told
from salun_diffusers.red_team.denoising import answer_errors, noise_like
from salun_diffusers.red_team.standing import Standing
from salun_diffusers.red_team.token_space import Sentence, TokenSpace
from salun_diffusers.seeds import stream


def nearest_words(vectors: Sequence[Tensor], directions: Sequence[Tensor]) -> Tensor:
    """The word that is nearest to a vector of each encoder: with the largest sum of cosines.

    Args:
        vectors: For each encoder, `(…, width)`.
        directions: For each encoder, embeddings of the words, of length 1, `(n, width)`.

    Returns:
        Numbers of words, `(…)`.
    """
    near = [F.normalize(one, dim=-1) @ matrix.T for one, matrix in zip(vectors, directions, strict=True)]
    return torch.stack(near).sum(dim=0).argmax(dim=-1)


@dataclass(frozen=True)
class P4D:
    """Free words, alone or within the prompt, by the hard-prompt trick.

        min_z ‖ε_θ₀(x_t, t, prompt) - ε_θ*(x_t, t, near(z))‖²      near: the word of the largest cosine

    x_t is noised from what the base draws of the case, at a random t. The gradient with respect to the words'
    embeddings is applied to the vectors z, which move between the words (arXiv 2302.03668).

    Args:
        variant: ``N``: free words alone; ``K``: a free word before the prompt's first and after every few of its own.
        tokens: Free words of N; as many as the text encoder reads, where that is fewer.
        every: Words of the prompt between free ones of K.
        steps: AdamW's.
        look_every: Steps from picture to picture.
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        batch_size: Cases at once; no case depends on it.
    """

    variant: Literal["N", "K"] = "N"
    tokens: int = 16
    every: int = 3
    steps: int = 3000
    look_every: int = 50
    learning_rate: float = 0.1
    weight_decay: float = 0.1
    batch_size: int = 8

    @property
    def name(self) -> str:
        """``p4d_n`` or ``p4d_k``."""
        return f"p4d_{self.variant.lower()}"

    @classmethod
    def quick(cls, variant: Literal["N", "K"] = "N") -> Self:
        """Fewer steps, for a small model: 300, with ten pictures."""
        return cls(variant, steps=300, look_every=30, batch_size=32)

    def __call__(self, contest: Contest, cases: Sequence[Case], told: Told) -> list[Finding]:
        """Search words for each case.

        Raises:
            UserError: If the target has no text encoder.
        """
        space = TokenSpace(contest.target.family)
        starts = range(0, len(cases), self.batch_size)
        batches = [cases[start : start + self.batch_size] for start in starts]
        return [finding for batch in batches for finding in self._attacked(contest, space, batch, told)]

    def sentence(self, space: TokenSpace, prompt: str) -> Sentence:
        """What is searched for one prompt.

        Args:
            space: The words.
            prompt: The prompt.
        """
        room = space.limit - 2
        if self.variant == "N":
            return space.sentence([""], [0] * min(self.tokens, room))
        length = space.length(prompt)
        while length + length // self.every + 1 > room:
            length -= 1
        return space.sentence([prompt], range(0, length + 1, self.every))

    def _attacked(self, contest: Contest, space: TokenSpace, cases: Sequence[Case], told: Told) -> list[Finding]:
        standing, device = Standing(contest, cases, told), contest.target.family.device
        words, prompts = space.words.to(device), [case.prompt for case in cases]
        embeddings = [matrix[words] for matrix in space.matrices]
        directions = [F.normalize(matrix, dim=-1) for matrix in embeddings]
        latents = contest.base.drawn_latents(prompts, [case.seed for case in cases]).to(device)
        asked = contest.base.family.encode(prompts)
        random = [stream(case.seed, self.name) for case in cases]
        each = [self.sentence(space, prompt) for prompt in prompts]
        sentences = Sentence.joined(each)
        vectors = list[list[Tensor]]()
        for one, generator in zip(each, random, strict=True):
            first = torch.randint(len(words), (one.places.shape[1],), generator=generator).to(device)
            vectors.append([matrix[first] for matrix in embeddings])
        optimizer = torch.optim.AdamW(
            [one for row in vectors for one in row], lr=self.learning_rate, weight_decay=self.weight_decay
        )
        for step in range(1, self.steps + 1):
            near = self._near(vectors, standing, directions)
            put = [matrix[near].requires_grad_() for matrix in embeddings]
            conditions = space.conditions(sentences.rows(standing.index), put)
            losses = self._losses(contest, conditions, rows(asked, standing.index), latents[standing.index.to(device)],
                                  [random[one] for one in standing.open])  # fmt: skip
            optimizer.zero_grad()
            for slope, encoder in zip(torch.autograd.grad(losses.sum(), put), range(len(put)), strict=True):
                for number, row in zip(standing.open, slope, strict=True):
                    vector = vectors[number][encoder]
                    vector.grad = row[: len(vector)].clone()
            optimizer.step()
            if step % self.look_every == 0 or step == self.steps:
                found = words[self._near(vectors, standing, directions)]
                measured = [(("step", float(step)), ("loss", loss)) for loss in losses.detach().tolist()]
                standing.look_at_words(space, sentences.rows(standing.index), found, measured)
            if not standing.open:
                break
        return standing.settled()

    @staticmethod
    def _near(vectors: Sequence[Sequence[Tensor]], standing: Standing, directions: Sequence[Tensor]) -> Tensor:
        """The nearest words of the standing cases; of those with fewer free places the last one again and again."""
        found = [nearest_words(vectors[one], directions) for one in standing.open]
        most = max(len(row) for row in [nearest[0] for nearest in vectors])
        return torch.stack([row[torch.arange(most).clamp(max=len(row) - 1)] for row in found])

    @staticmethod
    def _losses(
        contest: Contest, conditions: Conditions, asked: Conditions, clean: Tensor, random: Sequence[torch.Generator]
    ) -> Tensor:
        """How far the target's answers to the words are from the base's to the prompts, at one t and ε each, `(b,)`."""
        family, base = contest.target.family, contest.base.family
        times = torch.cat([family.schedule.sample(1, one) for one in random]).to(clean.device)
        noised = family.schedule.noised(clean, noise_like(clean, random), times)
        with torch.no_grad():
            wanted = base.predict(base.denoiser, noised, times, asked)
        return answer_errors(family, noised, times, conditions, wanted)
