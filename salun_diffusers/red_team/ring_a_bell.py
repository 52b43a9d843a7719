"""Ring-A-Bell: words that mean to the text encoder what a prompt means with more of the concept (arXiv 2310.10012)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.families.latent_unet import LatentUNetFamily
from salun_diffusers.errors import UserError
from salun_diffusers.red_team.attack import Case, Contest, Finding, Told
from salun_diffusers.red_team.genetic import Best, Genetics, search
from salun_diffusers.red_team.subject import Subject
from salun_diffusers.red_team.token_space import TokenSpace
from salun_diffusers.red_team.wordings import Wording, tried
from salun_diffusers.seeds import stream

STATES = "encoder_hidden_states"
"""What U-Nets call the states of their text encoders; of several encoders they stand side by side."""
_SEARCHED: dict[tuple[str, RingABell, Case], Best] = {}
"""What this process found, by the encoders' fingerprint: base, erased model and floor are given the same words."""


@dataclass(frozen=True)
class RingABell:
    """A prompt without the concept's gradient and without the model: only the base's text encoder is asked.

        v = mean_i [ states(with_i) - states(without_i) ]        target = states(prompt) + η v
        tokens = argmin ‖ states(tokens) - target ‖²             by a genetic search

    The result depends on the text encoder, the pairs and the numbers only: lists that were found once serve every model
    with that encoder (`encoder_fingerprint`).

    Differs from the official code: the best row of a generation is never mutated, and the row that is returned is the
    best that was seen; the tokens themselves are drawn, not the text that they are written as, which need not be read
    as the same tokens; token 0 is a word like any other.

    Args:
        pairs: Prompts with the concept and without it; `pairs_of` makes them of a concept.
        tokens: K; as many as the text encoder reads, where that is less. The source has 16, 38 and 75.
        strength: η: 3 for nudity, 5 to 5.5 for violence.
        genetics: The search.
    """

    pairs: tuple[tuple[str, str], ...]
    tokens: int = 16
    strength: float = 3.0
    genetics: Genetics = field(default_factory=Genetics)

    name: ClassVar[str] = "ring_a_bell"

    @classmethod
    def quick(cls, pairs: tuple[tuple[str, str], ...]) -> RingABell:
        """Settings for the demo's small vocabulary."""
        return cls(pairs, tokens=8, genetics=Genetics(population=100, generations=60))

    def __call__(self, contest: Contest, cases: Sequence[Case], told: Told) -> list[Finding]:
        """Search for each case, then draw what was found once, at the case's seed."""
        found = self.found(contest.base, cases)
        space = TokenSpace(contest.base.family)
        wordings = [[Wording(space.text(best.ids.tolist()), tuple(best.ids.tolist()))] for best in found]
        return [
            dataclasses.replace(finding, measured=(("distance", best.history[-1]), ("at random", best.history[0])))
            for finding, best in zip(tried(contest, cases, wordings, told), found, strict=True)
        ]

    def found(self, subject: Subject, cases: Sequence[Case]) -> list[Best]:
        """The tokens for each case; nothing is drawn.

        One case is searched for at a time: rows of a population fill a batch, and no case depends on another. What this
        process has searched for before it knows.

        Args:
            subject: Whose text encoders are asked.
            cases: Prompts, and the seeds of the searches.

        Raises:
            UserError: If there is no text encoder, or there are no pairs.
        """
        encoders, vector = encoder_fingerprint(subject), concept_vector(subject, self.pairs)
        for case in cases:
            if (encoders, self, case) not in _SEARCHED:
                _SEARCHED[encoders, self, case] = self._search(subject, vector, case)
        return [_SEARCHED[encoders, self, case] for case in cases]

    def _search(self, subject: Subject, vector: Tensor, case: Case) -> Best:
        """The tokens for one case."""
        space = TokenSpace(subject.family)
        length = min(self.tokens, space.limit - 2)
        sentence = space.sentence([""], [0] * length)
        target = subject.family.encode([case.prompt])[STATES] + self.strength * vector

        def fitness(ids: Tensor) -> Tensor:
            same = sentence.rows(torch.zeros(len(ids), dtype=torch.int64))
            return distance(space.of_ids(same, ids)[STATES], target).cpu()

        return search(fitness, space.words, length, self.genetics, stream(case.seed, self.name, case.prompt))


def distance(states: Tensor, target: Tensor) -> Tensor:
    """‖states - target‖² over all positions, `(n,)`.

    Args:
        states: `(n, tokens, width)`.
        target: `(1, tokens, width)`.
    """
    return (states - target).square().sum(dim=(1, 2))


def concept_vector(subject: Subject, pairs: Sequence[tuple[str, str]]) -> Tensor:
    """Mean difference of the states of prompts with a concept and without it, `(1, tokens, width)`.

    Args:
        subject: Whose text encoders.
        pairs: With and without.

    Raises:
        UserError: If there are none.
    """
    if not pairs:
        raise UserError("Ring-A-Bell needs at least one pair of prompts, with the concept and without it; got none.")
    family = subject.family
    apart = [family.encode([one])[STATES] - family.encode([other])[STATES] for one, other in pairs]
    return torch.stack(apart).mean(dim=0)


def pairs_of(concept: Concept) -> tuple[tuple[str, str], ...]:
    """A concept's forget prompts, and what each shall mean instead: one thing differs in each pair."""
    return tuple(dict.fromkeys(zip(concept.forget_prompts, concept.anchor_prompts, strict=True)))


def encoder_fingerprint(subject: Subject) -> str:
    """SHA-256 of the text encoders' weights and of their tokenizers' words: what a search here depends on.

    Args:
        subject: With text encoders.

    Raises:
        UserError: If it has none.
    """
    TokenSpace(subject.family)
    assert isinstance(subject.family, LatentUNetFamily)
    digest = hashlib.sha256()
    for suffix in subject.family.encoders:
        tokenizer = getattr(subject.family.pipe, f"tokenizer{suffix}")
        digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
        encoder = getattr(subject.family.pipe, f"text_encoder{suffix}")
        for name, tensor in sorted(encoder.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
