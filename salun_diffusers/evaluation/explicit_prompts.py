"""Which prompts ask for explicit pictures: by the columns of their file, and by their words."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from salun_diffusers.evaluation.prompt_tables import comparable_column

# Columns of lists that were made to draw what should not be drawn: I2P (so also the lists of UnlearnDiffAtk, P4D and
# SLD that are cut from it), MMA-Diffusion, Ring-A-Bell's pairs.
_COLUMNS = (
    "nudity_percentage", "inappropriate_percentage", "sd_safety_percentage", "q16_percentage", "prompt_toxicity",
    "adv_prompt", "sanitized_adv_prompt", "target_prompt", "sensitive_prompt", "nudity",
)  # fmt: skip
_WORDS = frozenset((
    "nude", "nudes", "naked", "nudity", "nudist", "topless", "bottomless", "undressed", "undressing", "unclothed",
    "shirtless", "nsfw", "porn", "porno", "pornographic", "pornography", "erotic", "erotica", "erotism", "hentai",
    "xxx", "sex", "sexy", "sexual", "sexually", "intercourse", "orgasm", "masturbating", "masturbation", "fucking",
    "fucked", "blowjob", "cum", "horny", "bdsm", "bondage", "boobs", "breasts", "nipple", "nipples", "areola", "tits",
    "titties", "cleavage", "vagina", "vulva", "pussy", "penis", "cock", "dick", "genital", "genitals", "genitalia",
    "testicles", "buttocks", "butt", "asshole", "lingerie", "panties", "thong", "upskirt", "striptease", "stripper",
    "playboy", "lewd", "lascivious", "carnal", "seductive", "seducing", "desnudo", "desnuda", "desnudos", "desnudas",
    "nackt", "nackte", "nackten", "nackter", "nacktes", "nudité", "nuda", "nudo", "nudi",
))  # fmt: skip
_PARTS = (
    "裸",
    "ヌード",
    "色情",
    "누드",
    "порно",
    "обнаж",
    "голая",
    "голый",
)  # Of words without spaces or of many ends.
_SHARE = 0.1


def explicit_words(prompts: Iterable[str]) -> list[str]:
    """The words in prompts that ask for explicit pictures, each once, in the order of their first use.

    Letters in other clothes (fullwidth, mathematical) and invisible ones between them are seen through.

    >>> explicit_words(["a Nude, standing", "a denuded hill", "ＮＵＤＥ and na\\u200bked"])
    ['nude', 'naked']
    """
    return list(dict.fromkeys(word for prompt in prompts for word in _explicit(prompt)))


def _explicit(prompt: str) -> list[str]:
    seen = unicodedata.normalize("NFKC", prompt).casefold()
    text = "".join(letter for letter in seen if unicodedata.category(letter) != "Cf")
    words = "".join(letter if letter.isalpha() else " " for letter in text).split()
    return [word for word in words if word in _WORDS] + [part for part in _PARTS if part in text]


def count_explicit(prompts: Sequence[str]) -> int:
    """How many prompts have such words."""
    return sum(bool(_explicit(prompt)) for prompt in prompts)


def deciding_rule(columns: Sequence[str], prompts: Sequence[str]) -> str:
    """Why a file counts as explicit, in words; empty where neither its columns nor its words say so.

    Args:
        columns: Names of its columns.
        prompts: Its prompts. COCO's 30,000 captions hold a few such words and no explicit picture, so a tenth of them
            must.
    """
    written = {comparable_column(name): name for name in columns}
    if known := [name for name in _COLUMNS if name in written]:
        return f"its column {written[known[0]]!r}"
    said = count_explicit(prompts)
    if said and said >= _SHARE * len(prompts):
        return f"words such as {explicit_words(prompts)[0]!r} in {said} of {len(prompts)} prompts"
    return ""
