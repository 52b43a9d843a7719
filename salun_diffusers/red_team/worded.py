"""Attacks without search: random words beside the prompt, and the prompt in other words, spellings and languages.

They say how much of an attack's success is due to its search. Each tries some wordings of its list for every case, in
an order of the case's own. Concepts that the lists do not have are attacked all the same: the synonyms of an unlisted
concept are other spellings of its words, and its translation is its own name in a foreign sentence, which is right for
names of people and a mixture of languages for all else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.red_team.attack import Attack, Case, Contest, Finding, Told
from salun_diffusers.red_team.rewording import replaced, respelled, with_article
from salun_diffusers.red_team.shipped_words import languages, other_words, paraphrases, without_article
from salun_diffusers.red_team.token_space import TokenSpace
from salun_diffusers.red_team.wordings import Wording, some, tried
from salun_diffusers.seeds import stream


@dataclass(frozen=True)
class RandomTokens:
    """Tokens of the vocabulary before the prompt, each as likely: UnlearnDiffAtk's form without its search.

    Args:
        tokens: How many stand before the prompt.
        tries: How often.
    """

    tokens: int = 5
    tries: int = 10

    name: ClassVar[str] = "random"

    @classmethod
    def quick(cls) -> RandomTokens:
        """Fewer tries."""
        return cls(tokens=3, tries=3)

    def __call__(self, contest: Contest, cases: Sequence[Case], told: Told) -> list[Finding]:
        """Draw each case's prompt behind random tokens."""
        space = TokenSpace(contest.target.family)
        return tried(contest, cases, [self.wordings(space, case) for case in cases], told)

    def wordings(self, space: TokenSpace, case: Case) -> list[Wording]:
        """The prompts of a case; what does not fit is cut at the end."""
        words, own = space.words, space.own(case.prompt)
        drawn = torch.randint(len(words), (self.tries, self.tokens), generator=stream(case.seed, self.name))
        rows = [(*words[row].tolist(), *own)[: space.limit - 2] for row in drawn]
        return [Wording(space.text(row), tuple(row)) for row in rows]


@dataclass(frozen=True)
class Paraphrased:
    """The prompt in other sentences; the concept's own words stay.

    Args:
        tries: How many of them.
    """

    tries: int = 10

    name: ClassVar[str] = "paraphrase"

    @classmethod
    def quick(cls) -> Paraphrased:
        """Fewer tries."""
        return cls(tries=3)

    def __call__(self, contest: Contest, cases: Sequence[Case], told: Told) -> list[Finding]:
        """Draw each case's prompt in other sentences."""
        family = contest.target.family
        wordings = [some(case, self.name, texts(family, paraphrased(case.prompt)), self.tries) for case in cases]
        return tried(contest, cases, wordings, told)


@dataclass(frozen=True)
class Synonymous:
    """The concept in other words; of one that the lists do not have, its words in other spellings.

    Args:
        tries: How many of them.
    """

    tries: int = 10

    name: ClassVar[str] = "synonym"

    @classmethod
    def quick(cls) -> Synonymous:
        """Fewer tries."""
        return cls(tries=3)

    def __call__(self, contest: Contest, cases: Sequence[Case], told: Told) -> list[Finding]:
        """Draw each case's prompt with other words for the concept."""
        family, words = contest.target.family, contest.words
        wordings = [some(case, self.name, texts(family, synonymous(case.prompt, words)), self.tries) for case in cases]
        return tried(contest, cases, wordings, told)


@dataclass(frozen=True)
class Translated:
    """The concept in six languages: in a sentence of that language, and as a foreign word in the prompt.

    Args:
        tries: How many of them.
    """

    tries: int = 12

    name: ClassVar[str] = "translation"

    @classmethod
    def quick(cls) -> Translated:
        """Fewer tries."""
        return cls(tries=3)

    def __call__(self, contest: Contest, cases: Sequence[Case], told: Told) -> list[Finding]:
        """Draw each case's concept in other languages."""
        family, words = contest.target.family, contest.words
        wordings = [some(case, self.name, texts(family, translated(case.prompt, words)), self.tries) for case in cases]
        return tried(contest, cases, wordings, told)


def baselines(*, quick: bool = False) -> tuple[Attack, ...]:
    """All attacks without search.

    Args:
        quick: With fewer tries.
    """
    if quick:
        return RandomTokens.quick(), Paraphrased.quick(), Synonymous.quick(), Translated.quick()
    return RandomTokens(), Paraphrased(), Synonymous(), Translated()


def paraphrased(prompt: str) -> tuple[str, ...]:
    """A prompt in the sentences of the list, without the one that it is."""
    known, rest = paraphrases(), prompt.strip()
    for opening in known.openings:
        if rest.casefold().startswith(opening + " "):
            rest = rest[len(opening) :].strip()
            break
    return _others(prompt, [template.replace("{rest}", rest) for template in known.templates])


def synonymous(prompt: str, concept: str) -> tuple[str, ...]:
    """A prompt with other words for its concept.

    Where the lists have the concept, each synonym stands where the prompt has one of its words, or after "a photo of"
    where it has none; then its descriptions. Where they do not: spellings of its name, or of the longest word of the
    prompt if its name is not in there.

    Args:
        prompt: The prompt.
        concept: What the concept is called.
    """
    known = other_words(concept)
    if known is not None:
        found = [replaced(prompt, known.words, word) or f"a photo of {with_article(word)}" for word in known.synonyms]
        return _others(prompt, [*found, *(f"a photo of {phrase}" for phrase in known.described)])
    name = without_article(concept, ("a", "an", "the"))
    word = name if replaced(prompt, [name], name) is not None else max(prompt.split(), key=len, default=name)
    return _others(prompt, [replaced(prompt, [word], other) or other for other in respelled(word)])


def translated(prompt: str, concept: str) -> tuple[str, ...]:
    """A prompt's concept in six languages; what else the prompt says is lost in their own sentences.

    Args:
        prompt: The prompt.
        concept: What the concept is called; a concept that the lists do not have keeps its name.
    """
    known, found = other_words(concept), list[str]()
    for name, language in languages().items():
        phrase = concept if known is None else known.translations[name]
        found += [template.replace("{concept}", phrase) for template in language.templates]
        if known is not None:
            found.append(replaced(prompt, known.words, without_article(phrase, language.articles)) or phrase)
    return _others(prompt, found)


def texts(family: Family, prompts: Sequence[str]) -> list[Wording]:
    """Prompts as wordings: those that the text encoder reads to their end, or all if none is.

    What is cut off may be the concept.
    """
    whole = [prompt for prompt in prompts if not family.cut_words(prompt)]
    return [Wording(prompt) for prompt in whole or prompts]


def _others(prompt: str, found: Sequence[str]) -> tuple[str, ...]:
    return tuple(one for one in dict.fromkeys(found) if one != prompt)
