"""What lies around a concept: the broader word that it becomes, and its neighbours, which stay."""

from __future__ import annotations

from dataclasses import dataclass

from salun_diffusers.diffusion.presets.everyday import content_words
from salun_diffusers.diffusion.presets.text_space import TextSpace
from salun_diffusers.diffusion.presets.word_list import Section, same_thing, section_of, sections

NEIGHBOURS = 12
_VOTERS = 3  # Words of a section that say how near it lies.
_ARTICLES = ("a", "an", "the", "some", "one", "two", "three", "my", "his", "her", "their", "this", "that")
_SIGNS = ("logo", "emblem", "trademark", "brand", "badge")
_FIGURES = ("cartoon", "superhero", "comic", "anime", "character", "mascot")
_MANNERS = ("style", "art", "painting", "drawing", "illustration", "artwork")


@dataclass(frozen=True)
class Surroundings:
    """What was found around a concept.

    Args:
        broader: What it can become; empty where nothing says so.
        neighbours: Words beside it, the nearest first.
        section: Where it belongs, as its broader word; empty where nothing says so.
    """

    broader: str = ""
    neighbours: tuple[str, ...] = ()
    section: str = ""


def guessed_kind(name: str) -> tuple[str, str]:
    """The kind of a free text, and why, in words.

    >>> guessed_kind("a red car")
    ('object', 'as nothing says otherwise')
    >>> guessed_kind("Jane Doe")
    ('person', 'by two names with capitals')
    >>> guessed_kind("the Acme logo")[0], guessed_kind("cubism")[0], guessed_kind("Cat")[0]
    ('logo', 'style', 'object')
    """
    bare = without_article(name)
    if section := section_of(bare):
        return section.kind, f"as {bare!r} is {'one' if section.kind == 'artist' else section.broader}"
    words = bare.split()
    for kind, signs in (("logo", _SIGNS), ("character", _FIGURES), ("style", _MANNERS)):
        if sign := next((word for word in words if word.lower() in signs), ""):
            return kind, f"by the word {sign!r}"
    if words and words[-1].lower().endswith("ism"):
        return "style", "by its ending -ism"
    named = [word for word in words if word[:1].isupper() and not word.isupper()]
    if len(named) >= 2 and len(named) == len(words):
        return "person", "by two names with capitals"
    return "object", "as nothing says otherwise"


def without_article(name: str) -> str:
    """A name without the article that it begins with.

    >>> without_article("a star")
    'star'
    """
    first, _, rest = name.partition(" ")
    return rest if rest and first.lower() in _ARTICLES else name


def in_a_sentence(name: str, kind: str) -> str:
    """A name as it stands in a sentence: things have an article, one of them is meant.

    >>> [in_a_sentence(name, "object") for name in ("apple", "a star", "shoes", "glass", "Big Ben")]
    ['an apple', 'a star', 'shoes', 'a glass', 'Big Ben']
    >>> in_a_sentence("Acme", "logo"), in_a_sentence("Van Gogh", "artist")
    ('the Acme logo', 'Van Gogh')
    """
    words = name.split()
    if kind == "logo":
        bare = without_article(name)
        return f"the {bare}" if {word.lower() for word in words} & set(_SIGNS) else f"the {bare} logo"
    if kind not in ("object", "person") or without_article(name) != name or name != name.lower():
        return name
    if name.endswith("s") and not name.endswith(("ss", "us", "is")):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def around(name: str, kind: str, space: TextSpace) -> Surroundings:
    """Find what lies around a concept, among the words of its kind.

    The section whose three nearest words are nearest says the broader word. A name of the list has its own section, and
    where the encoder is not at hand yet, that one's words in their order.

    Args:
        name: The concept, without an article.
        kind: Its kind.
        space: How near words lie.
    """
    within = [one for one in sections() if one.kind == kind and without_article(one.broader) != name.lower()]
    own = next((one for one in within if name.lower() in map(str.lower, one.words)), None)
    words = tuple(word for one in within for word in one.words if _beside(word, name))
    near = space.similarities(name, words)
    if not near:
        mine = [word for word in own.words if _beside(word, name)] if own else []
        broader = own.broader if own else ""
        return Surroundings(broader, _one_name_each(mine)[:NEIGHBOURS], broader)
    ranked = sorted(near, key=lambda word: -near[word])
    best = own or max(within, key=lambda one: _nearness(one, near))
    return Surroundings(best.broader, _one_name_each(ranked)[:NEIGHBOURS], best.broader)


def _nearness(section: Section, near: dict[str, float]) -> float:
    best = sorted((near[word] for word in section.words if word in near), reverse=True)[:_VOTERS]
    return sum(best) / len(best) if best else -1.0


def _one_name_each(ranked: list[str]) -> tuple[str, ...]:
    """Words without other names of what came before."""
    found: list[str] = []
    for word in ranked:
        if not same_thing(word) & set(found):
            found.append(word)
    return tuple(found)


def _beside(word: str, name: str) -> bool:
    """Whether a word is another thing than the concept, and does not name it."""
    own = content_words(" ".join(same_thing(name.lower())))
    return not own & content_words(word) and not any(len(one) > 3 and other.startswith(one)
                                                     for one in own for other in content_words(word))  # fmt: skip
