"""From a frozen dataclass to a command line: each field is default, type, help text and flag at once.

`transformers.HfArgumentParser` has the same idea; importing it takes longer than a `--help` should, and it knows no
ranges. Values are checked here once, for the command line and for Python alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from salun_diffusers.errors import UserError

T = TypeVar("T")
MOST, LARGEST, ANY_SEED = 10**6, 1e38, 2**63 - 1
"""The largest count and the largest number of a setting without a maximum of its own: with a billion steps, pictures or
classes no work ends, and float32 ends at 3.4e38. A seed costs nothing and names ANY_SEED as its maximum."""


def setting(
    default: Any,
    help: str,
    *,
    group: str = "Settings",
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    alias: str | None = None,
) -> Any:
    """A dataclass field that knows its help text, its group in ``--help`` and its range.

    Args:
        default: The value when nothing is said; None means "as the preset says".
        help: One sentence for ``--help``.
        group: Heading it stands under in ``--help``.
        minimum: Smallest allowed value.
        above: The value must be larger than this.
        maximum: Largest allowed value; by default `MOST` of a whole number, `LARGEST` of another.
        alias: A second name of the flag.
    """
    metadata = {"help": help, "group": group, "minimum": minimum, "above": above, "maximum": maximum,
                "alias": alias}  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


def optional_word(help: str, *, group: str = "Settings") -> Any:
    """A dataclass field of a flag that may stand alone: None without it, empty where nothing follows it."""
    shown = setting(None, help, group=group)
    return dataclasses.field(default=None, metadata={**shown.metadata, "alone": ""})


def choice_alone(default: str, help: str, *, alone: str, group: str = "Settings") -> Any:
    """A dataclass field of a flag with choices that may stand alone.

    Args:
        default: The value without the flag.
        help: As for `setting`.
        alone: The value where nothing follows the flag.
        group: As for `setting`.
    """
    return dataclasses.field(default=default, metadata={**setting(default, help, group=group).metadata,
                                                        "alone": alone})  # fmt: skip


def secret(help: str, *, group: str = "Settings") -> Any:
    """A dataclass field of a password: no record, no command that is written down and no `repr` shows its value."""
    return dataclasses.field(default=None, repr=False, metadata={**setting(None, help, group=group).metadata,
                                                                 "secret": True})  # fmt: skip


def secrets(config_type: Any) -> tuple[str, ...]:
    """Names of the fields that were made with `secret`."""
    return tuple(field.name for field in dataclasses.fields(config_type) if "secret" in field.metadata)


def without_secrets(words: Sequence[str], config_type: Any) -> list[str]:
    """The words of a command line without the flags that hold a secret, and without their values."""
    flags = {form for name in secrets(config_type) for form in (f"--{name}", "--" + name.replace("_", "-"))}
    kept: list[str] = []
    following = False
    for text in words:
        if not following and text.split("=")[0] not in flags:
            kept.append(text)
        following = not following and text in flags
    return kept


def word(help: str, *, group: str = "Settings", left_out: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that is given as a bare word, without a flag.

    Args:
        help: As for `setting`.
        group: As for `setting`.
        left_out: The value where the word is left out; without one it is required.
    """
    metadata = {**setting("", help, group=group).metadata, "positional": True}
    return dataclasses.field(default=left_out, metadata=metadata)


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are a `UserError`, so one line without the usage page in front."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def parse(
    config_type: type[T],
    arguments: Sequence[str] | None = None,
    *,
    name: str | None = None,
    description: str = "",
    left_open: str = "",
) -> T:
    """Read a command line into a dataclass.

    Flags may be written with underscores, as diffusers' scripts do, or with hyphens.

    Args:
        config_type: A frozen dataclass whose fields were made with `setting`.
        arguments: The words of the command line; by default those of the process.
        name: What ``--help`` calls the program; by default the file's name.
        description: Text above the flags in ``--help``.
        left_open: What ``--help`` says of a setting without a value of its own.

    Raises:
        UserError: If a flag is unknown, or a value has the wrong type or is outside its range.
        SystemExit: With code 0 after ``--help``.
    """
    parser = OneLineParser(
        prog=name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    hints = typing.get_type_hints(config_type)
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(config_type):  # type: ignore[arg-type]
        title = field.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        names = [f"--{field.name}"]
        if "_" in field.name:
            names.append("--" + field.name.replace("_", "-"))
        if field.metadata["alias"]:
            names.append("--" + field.metadata["alias"])
        if "positional" in field.metadata:
            bare = _argument(hints[field.name], field, left_open)
            if "choices" not in bare:
                bare["metavar"] = field.name.upper()
            if field.default is not dataclasses.MISSING:
                bare |= {"nargs": "?", "default": field.default}
            groups[title].add_argument(field.name, **bare)
            continue
        groups[title].add_argument(
            *names, dest=field.name, default=field.default, **_argument(hints[field.name], field, left_open)
        )
    words = list(sys.argv[1:] if arguments is None else arguments)
    for text in words:
        if any(0xD800 <= ord(letter) < 0xE000 for letter in text):
            raise UserError(f"The command line must be UTF-8, {text!a} is not.")
    # Intermixed: a word that may be left out is not given up because a flag stands before it.
    given = vars(parser.parse_intermixed_args(words))
    values = {name: _plain(value, hints[name]) for name, value in given.items()}
    config = config_type(**{name: _expanded(value) for name, value in values.items()})
    check(config)
    return config


def _plain(value: Any, hint: Any) -> Any:
    """What argparse made of a flag as its field has it: words as a tuple, one as a text where that will do."""
    if not isinstance(value, list):
        return value
    return value[0] if len(value) == 1 and _fits(value[0], hint) else tuple(value)


def _expanded(value: Any) -> Any:
    """A path below the home folder written out: shells leave ``--flag=~/folder`` as it is."""
    return str(Path(value).expanduser()) if isinstance(value, str) and value.startswith("~/") else value


def _argument(hint: Any, field: dataclasses.Field[Any], left_open: str) -> dict[str, Any]:
    """What argparse needs to know of a field's type."""
    inner = [part for part in typing.get_args(hint) if part is not type(None)]
    if typing.get_origin(hint) in (types.UnionType, typing.Union) and len(inner) == 1:
        hint = inner[0]
    shown = {None: left_open, dataclasses.MISSING: ""}.get(field.default, field.default)
    text = field.metadata["help"].replace("%", "%%")
    if hint is bool:
        return {"action": "store_true", "help": text}
    text += f" (default: {shown})" if shown not in ((), "") else ""
    if typing.get_origin(hint) is Literal:
        alone = {"nargs": "?", "const": field.metadata["alone"]} if "alone" in field.metadata else {}
        return {"choices": typing.get_args(hint), "help": text, **alone}
    if typing.get_origin(hint) is tuple or any(typing.get_origin(part) is tuple for part in inner):
        return {"nargs": "+", "help": text, "metavar": "TEXT"}
    if "alone" in field.metadata:
        return {"type": str, "nargs": "?", "const": field.metadata["alone"], "help": field.metadata["help"],
                "metavar": "WORD"}  # fmt: skip
    if hint is int:
        return {"type": _integer, "help": text, "metavar": "N"}
    if hint is float:
        return {"type": _number, "help": text, "metavar": "X"}
    return {"type": str, "help": text, "metavar": "TEXT"}


def _integer(text: str) -> int:
    return int(text)


def _number(text: str) -> float:
    return float(text)


_integer.__name__, _number.__name__ = "whole number", "number"  # argparse puts these names into its messages.


def check(config: Any) -> None:
    """Check every value of a config against its field's type and range.

    Raises:
        UserError: Naming the setting, what is required and what arrived.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not _fits(value, hints[field.name]):
            raise UserError(f"--{field.name} must be {_in_words(hints[field.name])}, got {value!r}.")
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UserError(f"--{field.name} must be a whole number of at most 64 bits, got {value.bit_length()} bits.")
        limits = field.metadata
        most = MOST if int in (hints[field.name], *typing.get_args(hints[field.name])) else LARGEST
        if limits["maximum"] is None and most < abs(value) < math.inf:
            raise UserError(f"--{field.name} must be at most {most:,}, got {value}; more would have no end.")
        words = []
        if limits["minimum"] is not None:
            words.append(f"at least {limits['minimum']}")
        if limits["above"] is not None:
            words.append(f"above {limits['above']}")
        if limits["maximum"] is not None:
            words.append(f"at most {limits['maximum']}")
        too_low = limits["minimum"] is not None and value < limits["minimum"]
        too_low |= limits["above"] is not None and value <= limits["above"]
        too_high = limits["maximum"] is not None and value > limits["maximum"]
        if too_low or too_high or not math.isfinite(value):
            percent = too_high and limits["maximum"] == 1 and value <= 100
            hint = f" It is a fraction: {value / 100:g} is {value:g} %." if percent else ""
            raise UserError(f"--{field.name} must be {' and '.join(words) or 'a finite number'}, got {value}.{hint}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a field declares; a whole number will do for a fraction."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple | list) and all(isinstance(item, str) for item in value)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint)


def _in_words(hint: Any) -> str:
    """A field's type for people."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(_in_words(part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return "a tuple of texts"
    return {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}.get(hint, "None")
