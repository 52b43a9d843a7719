"""The card of a base model: what it says of its licence, and the name it keeps beside the card of what was made of it.

A base's README.md does not describe the erased model. In an erased folder it is called BASE_README.md, to the byte; one
that was so called in the base, which had been erased itself, is BASE_BASE_README.md.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salun_diffusers.errors import UserError, one_line, tell
from salun_diffusers.files.json_files import read_bytes
from salun_diffusers.files.pipeline_folder import public_name

CARD, KEPT = "README.md", "BASE_"
MADE_BY = "salun_diffusers"
"""Key in a card's metadata under which this package says what it made."""
_LONGEST = 300  # characters of a licence's name or link
_LARGEST, _LARGEST_BLOCK = 4_000_000, 100_000  # bytes of a card, and characters of its metadata, which parse slowly


@dataclass(frozen=True)
class BaseCard:
    """What a card says of a model's licence and origin; empty where it says nothing.

    Args:
        license: Identifiers, as the hub knows them.
        license_name: Name of one that the hub does not know.
        license_link: Where it stands.
        base_model: What the base itself was made of.
        made: What this package wrote into it, if it made the base.
    """

    license: tuple[str, ...] = ()
    license_name: str = ""
    license_link: str = ""
    base_model: tuple[str, ...] = ()
    made: Mapping[str, Any] | None = None


def is_card(name: str) -> bool:
    """Whether a file beside the components is a card: the folder's own, or one kept of a base."""
    return re.fullmatch(rf"({KEPT})*{re.escape(CARD)}", name) is not None


def carry_cards(base: Path, erased: Path) -> str:
    """Keep a base's cards in the folder of what was made of it, under names that say whose they are.

    Args:
        base: The base's folder.
        erased: The other one, where the caller writes a README.md of its own next.

    Returns:
        The name of the base's own card; empty where it has none.
    """
    for card in _cards(erased):
        if card.name != CARD:
            card.unlink()
    for card in _cards(base):
        shutil.copyfile(card, erased / f"{KEPT}{card.name}")
    return KEPT + CARD if (base / CARD).is_file() else ""


def restore_cards(folder: Path) -> None:
    """Undo `carry_cards` in a copy of an erased folder that holds the base's weights again.

    A card that neither this package wrote nor stands in a base's place is the base's, and stays.
    """
    own = folder / CARD
    if own.is_file() and ((folder / f"{KEPT}{CARD}").is_file() or _made_here(own)):
        own.unlink()
    for card in sorted(_cards(folder), key=lambda path: len(path.name)):
        if card.name != CARD:
            card.replace(folder / card.name.removeprefix(KEPT))


def _made_here(card: Path) -> bool:
    try:
        return read_card(card).made is not None
    except UserError:  # Of whatever a stranger wrote.
        return False


def _cards(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file() and is_card(path.name)]


def card_of(name: str, folder: Path, revision: str | None) -> BaseCard | None:
    """What is known of a model's licence; None where nothing could be read.

    Args:
        name: As the user named the model.
        folder: Where it lies.
        revision: Hub revision.
    """
    kind = public_name(name)[1]
    if kind == "embedded":
        return BaseCard(license=("apache-2.0",))
    if (folder / CARD).is_file():
        try:
            return read_card(folder / CARD)
        except UserError as error:
            tell("note", f"the base's card is kept, but no licence was read from it: {error}")
            return None
    # For a folder that is here nobody is asked.
    return hub_card(name, revision) if kind == "hub" and not Path(name).expanduser().exists() else None


def read_card(file: Path) -> BaseCard:
    """What a model card says.

    Args:
        file: A README.md with or without metadata.

    Raises:
        UserError: If it cannot be read as one.
    """
    from huggingface_hub import RepoCard

    try:
        text = read_bytes(file, limit=_LARGEST).decode("utf-8-sig")
        block = re.match(r"\s*---(\r\n|\r|\n).*?(\r\n|\r|\n)---[ \t]*(\r\n|\n|$)", text, flags=re.DOTALL)
        if block is None:
            return BaseCard()
        if len(block[0]) > _LARGEST_BLOCK:
            raise UserError(f"{file} is no model card: its metadata have {len(block[0])} characters.")
        return said(RepoCard(text, ignore_metadata_errors=True).data.to_dict())
    except UserError:
        raise
    except Exception as error:  # YAML and the hub raise a dozen unrelated types.
        raise UserError(f"{file} is no model card: {type(error).__name__} {one_line(error, 120)}.") from error


def said(metadata: Mapping[str, Any]) -> BaseCard:
    """What a card's metadata say of licence and origin; whatever is no short line of text is left out."""
    made = metadata.get(MADE_BY)
    return BaseCard(
        license=_lines(metadata.get("license")),
        license_name=next(iter(_lines(metadata.get("license_name"))), ""),
        license_link=next(iter(_lines(metadata.get("license_link"))), ""),
        base_model=_lines(metadata.get("base_model")),
        made=made if isinstance(made, dict) else None,
    )


def hub_card(name: str, revision: str | None) -> BaseCard | None:
    """What the card of a model on the hub says; None where the hub does not answer.

    It is asked for the metadata alone: a README.md in the cache would make the base another one for `identity_of`.

    Args:
        name: Hub id.
        revision: Hub revision.
    """
    from huggingface_hub import HfApi

    try:
        told = HfApi().model_info(name, revision=revision).card_data
    except Exception:  # The hub raises a dozen unrelated types.
        return None
    return said(told.to_dict() if told is not None else {})


def _lines(value: Any) -> tuple[str, ...]:
    """Short texts of one line, of one or of a list."""
    values = value if isinstance(value, list) else [value]
    return tuple(
        text for text in values[:20] if isinstance(text, str) and text and text == one_line(text, _LONGEST)
    )  # fmt: skip
