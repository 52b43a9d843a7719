"""Concepts written down as data: the TOML files of this folder, and a user's own, read and checked in the same way."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from salun_diffusers.arguments import check
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.settings import Length, Numbers
from salun_diffusers.diffusion.source_config import ConceptKind
from salun_diffusers.errors import UserError, one_line
from salun_diffusers.evaluation.detector_choice import find_detector
from salun_diffusers.files.json_files import read_bytes

GROUPS = ("harms", "artists", "imagenette")
KINDS: tuple[str, ...] = typing.get_args(ConceptKind)
_ENDING = ".toml"
_LARGEST, _LONGEST, _MOST = 1_000_000, 1_000, 10_000  # Bytes of a file, letters of a prompt, prompts of a concept.
_LENGTHS = {"num_train_epochs": "epochs", "max_train_steps": "steps"}
_NUMBERS = {one.name for one in dataclasses.fields(Numbers)} - {"length"} | set(_LENGTHS)
_PLACE = re.compile(r"\{(\w*)\}")
_OWN_PLACES = ("name", "anchor", "neighbour")

Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Written:
    """One concept of a file; what it leaves out is its kind's, or is found.

    Args:
        name: What it is called.
        kind: Which template it has.
        phrase: Its name as it stands in a sentence, such as ``a tench``.
        about: A sentence for lists.
        aliases: Other names.
        explicit: Whether its pictures are blurred, and its latents leave with the run.
        detector: As in ``--detector``.
        labels: Labels of the detector that mean it.
        anchor: What it becomes.
        words: Lists that the places of prompts are filled from, in the order in which they vary, the first slowest.
        swaps: Prompts and what they shall mean.
        keep: Prompts that stay.
        neighbours: Words beside it, which stay.
        ask: Prompts of the report that ask for it.
        ask_kept: Those that ask for something else.
        paper: The swap under the paper's recipe.
        paper_keep: What stays there; by default what it becomes.
        sources: Where this comes from.
        numbers: Settings of its own.
        paper_numbers: The same under the paper's recipe.
    """

    name: str
    kind: str = "object"
    phrase: str = ""
    about: str = ""
    aliases: tuple[str, ...] = ()
    explicit: bool = False
    detector: str = "none"
    labels: tuple[str, ...] = ()
    anchor: str = ""
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    swaps: tuple[Pair, ...] = ()
    keep: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()
    ask_kept: tuple[str, ...] = ()
    paper: tuple[str, ...] = ()
    paper_keep: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    paper_numbers: Mapping[str, Any] = field(default_factory=dict)


@cache
def written(group: str) -> dict[str, Written]:
    """The concepts of a file of this folder, by name."""
    file = Path(__file__).with_name(group + _ENDING)
    return {one.name: one for one in _concepts(file, _read(file).get("concept"))}


@cache
def all_written() -> dict[str, Written]:
    """The concepts of all groups, by name."""
    return {name: one for group in GROUPS for name, one in written(group).items()}


def is_file(concept: str) -> bool:
    """Whether `--concept` names a file and not a concept."""
    return concept.lower().endswith(_ENDING)


def read_own(path: Path) -> Written:
    """A user's file: the keys of one concept, or a list `[[concept]]` of one.

    Args:
        path: The file.

    Raises:
        UserError: If it cannot be read, is no TOML, or says what a concept cannot be.
    """
    content = _read(path)
    listed = content.get("concept")
    if listed is None:
        return _concept(path, content)
    found = _concepts(path, listed)
    if len(found) != 1 or len(content) != 1:
        raise UserError(
            f"{path} must hold one concept: its keys, or one [[concept]] and nothing beside it; found {len(found)} "
            f"concepts and {len(content) - 1} other keys."
        )
    return found[0]


def filled(patterns: Sequence[tuple[str, ...]], words: Mapping[str, Sequence[str]]) -> list[tuple[str, ...]]:
    """Patterns with their places filled in every way, each result once.

    Neighbours in the list that have the same places vary together.

    >>> filled([("{a} x", "{a} y"), ("{a} z", "w")], {"a": ("1", "2")})
    [('1 x', '1 y'), ('1 z', 'w'), ('2 x', '2 y'), ('2 z', 'w')]

    Args:
        patterns: Texts with places such as ``{opening}``.
        words: What may stand in each.
    """
    found: dict[tuple[str, ...], None] = {}
    for places, group in itertools.groupby(patterns, lambda texts: _places(texts, words)):
        alike = list(group)
        for values in itertools.product(*(words[place] for place in places)):
            put = dict(zip(places, values, strict=True))
            for texts in alike:
                found[tuple(_PLACE.sub(lambda place: put.get(place[1], place[0]), text) for text in texts)] = None  # noqa: B023
    return list(found)


def replaced(numbers: Numbers, given: Mapping[str, Any]) -> Numbers:
    """Numbers with those of a concept in their place."""
    plain = {name: value for name, value in given.items() if name not in _LENGTHS}
    for name, unit in _LENGTHS.items():
        if name in given:
            plain["length"] = Length(given[name], "epochs" if unit == "epochs" else "steps")
    return dataclasses.replace(numbers, **plain)


def _places(texts: Sequence[str], words: Mapping[str, Sequence[str]]) -> list[str]:
    asked = {place for text in texts for place in _PLACE.findall(text)}
    return [place for place in words if place in asked]


def _read(path: Path) -> dict[str, Any]:
    """The table of a TOML file."""
    data = read_bytes(path, limit=_LARGEST)
    try:
        return tomllib.loads(data.decode("utf-8-sig").replace("\r\n", "\n"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no TOML: {one_line(error, 160) or type(error).__name__}.") from error


def _concepts(path: Path, listed: object) -> list[Written]:
    if not isinstance(listed, list):
        raise UserError(f"{path}: `concept` must be a list of tables, [[concept]]; found {_found(listed)}.")
    return [_concept(path, one) for one in listed]


def _concept(path: Path, table: object) -> Written:
    """A table as a concept, with every key checked."""
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise UserError(f'{path}: a concept needs a `name = "…"`, found {_found(table)}.')
    hints = typing.get_type_hints(Written)
    for key in table:
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)
            raise UserError(f"{path}: a concept has no key {key[:40]!r}; the nearest is `{close[0]}`.")
    try:
        values = {key: _value(key, table[key], hints[key]) for key in table}
        made = Written(**values)
        _check(made)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return made


def _value(key: str, value: object, hint: Any) -> Any:
    """A key's value in the type of its field."""
    if hint is bool:
        return _of(key, value, bool, "true or false")
    if hint is str:
        return _text(key, value)
    if key in ("numbers", "paper_numbers"):
        return _of(key, value, dict, "a table of settings")
    if key == "words":
        return {name: _texts(f"words.{name}", some) for name, some in _of(key, value, dict, "a table").items()}
    if key != "swaps":
        return _texts(key, value)
    pairs = tuple(_texts("swaps", pair) for pair in _of(key, value, list, "a list of pairs"))
    for pair in pairs:
        if len(pair) != 2:
            raise UserError(f'`swaps` must be pairs such as ["a dog", "an animal"], found {len(pair)} texts in one.')
    return pairs


def _check(made: Written) -> None:
    """Refuse what a concept cannot be."""
    if made.kind not in KINDS:
        raise UserError(f"`kind` must be one of {', '.join(KINDS)}, got {made.kind!r}.")
    if made.paper and len(made.paper) != 2:
        raise UserError(f"`paper` must be two prompts, what is forgotten and what it becomes; found {len(made.paper)}.")
    if made.labels and made.detector == "none":
        raise UserError("`labels` are those of a `detector`, which is missing.")
    find_detector(made.detector)
    if made.words.keys() & set(_OWN_PLACES) or not all(re.fullmatch(r"\w+", name) for name in made.words):
        raise UserError(f"`words` must have names of their own, not {', '.join(_OWN_PLACES)}; got {list(made.words)}.")
    _check_places(made)
    for numbers in (made.numbers, made.paper_numbers):
        for name in numbers:
            if name not in _NUMBERS:
                raise UserError(f"`numbers` has no {name[:40]!r}; it may have {', '.join(sorted(_NUMBERS))}.")
        check(EraseConfig(**numbers))


def _check_places(made: Written) -> None:
    """Refuse prompts with places that nothing fills, or that would be too many."""
    words = dict(made.words) if made.swaps else {**written("templates")[made.kind].words, **made.words}
    own = {"name", "anchor"}
    swaps = tuple(itertools.chain.from_iterable(made.swaps))
    for texts, places in (
        (made.paper, own),
        ((*swaps, *made.ask), own | words.keys()),
        (made.keep, own | words.keys() | {"neighbour"}),
    ):
        for text in texts:
            for place in _PLACE.findall(text):
                if place not in places:
                    raise UserError(f"{text!r} has a place {{{place}}}, which nothing fills; `words` may have a list.")
    for patterns in (made.swaps, tuple((text,) for text in made.keep)):
        for pattern in patterns:
            count = math.prod(len(words[place]) for place in _places(pattern, words))
            if count > _MOST:
                raise UserError(f"{pattern[0]!r} makes {count:,} prompts; at most {_MOST:,} are required.")


def _texts(key: str, value: object) -> tuple[str, ...]:
    found = tuple(_text(key, one) for one in _of(key, value, list, "a list of texts"))
    if not found:
        raise UserError(f"`{key}` is an empty list; leave it out, or write what belongs there.")
    return found


def _text(key: str, value: object) -> str:
    text: str = _of(key, value, str, "a text")
    plain = " ".join(text.split())
    if not plain or len(plain) > _LONGEST or not plain.isprintable():
        raise UserError(f"`{key}` must be a text of 1 to {_LONGEST:,} printable letters, got {one_line(text, 40)!r}.")
    return plain


def _of(key: str, value: object, kind: type, words: str) -> Any:
    if not isinstance(value, kind):
        raise UserError(f"`{key}` must be {words}, found {_found(value)}.")
    return value


def _found(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {one_line(value, 40)!r}"
