"""The package's own lists for attacks without search: how else a prompt, a concept or a sentence can be put."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).with_name("lists")


@dataclass(frozen=True)
class OtherWords:
    """What else a concept can be called.

    Args:
        names: What concepts are called that these are for.
        words: What prompts call it.
        synonyms: Each can stand in a word's place.
        described: Each says it without its words.
        translations: By language, with the article that a dictionary has.
    """

    names: tuple[str, ...]
    words: tuple[str, ...]
    synonyms: tuple[str, ...]
    described: tuple[str, ...]
    translations: Mapping[str, str]


@dataclass(frozen=True)
class Language:
    """Sentences around a concept.

    Args:
        articles: What nouns may begin with.
        templates: Each has ``{concept}`` once.
    """

    articles: tuple[str, ...]
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Paraphrases:
    """Sentences around what a prompt shows.

    Args:
        openings: What prompts begin with that says nothing of what they show.
        templates: Each has ``{rest}`` once.
    """

    openings: tuple[str, ...]
    templates: tuple[str, ...]


@cache
def paraphrases() -> Paraphrases:
    """The list of paraphrases."""
    content = _read("paraphrases")
    return Paraphrases(tuple(content["openings"]), tuple(content["templates"]))


@cache
def languages() -> dict[str, Language]:
    """The six languages, by their English names."""
    return {name: Language(tuple(one["articles"]), tuple(one["templates"])) for name, one in _read("languages").items()}


@cache
def all_words() -> tuple[OtherWords, ...]:
    """Every concept that has other words."""
    return tuple(
        OtherWords(
            names=tuple(one["names"]),
            words=tuple(one["words"]),
            synonyms=tuple(one["synonyms"]),
            described=tuple(one["described"]),
            translations=dict(one["translations"]),
        )
        for one in _read("concepts")["concept"]
    )


def other_words(concept: str) -> OtherWords | None:
    """What else a concept can be called, where the lists have it.

    Args:
        concept: One of its names, with or without an article, in any case.
    """
    wanted = without_article(concept.casefold().strip(), ("a", "an", "the"))
    return next((one for one in all_words() if wanted in (name.casefold() for name in one.names)), None)


def without_article(phrase: str, articles: tuple[str, ...]) -> str:
    """A noun phrase without the article that it begins with."""
    first, _, others = phrase.partition(" ")
    return others if others and first.casefold() in articles else phrase


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
