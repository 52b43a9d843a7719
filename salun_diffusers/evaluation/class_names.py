"""Names of classes as people write them, and the labels of a classifier that they mean."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable, Mapping, Sequence

from salun_diffusers.errors import UserError

# Imagenette's ten classes and their places among ImageNet's thousand (fastai/imagenette; the same list in
# OPTML-Group/Diffusion-MU-Attack@0eea64d). A prompt file's `classidx` 0…9 counts in this order, not in ImageNet's.
IMAGENETTE = {
    "tench": 0,
    "english springer": 217,
    "cassette player": 482,
    "chain saw": 491,
    "church": 497,
    "french horn": 566,
    "garbage truck": 569,
    "gas pump": 571,
    "golf ball": 574,
    "parachute": 701,
}


def comparable(label: str) -> str:
    """A label as it is compared: lower-case words, underscores as spaces."""
    return " ".join(label.lower().replace("_", " ").split())


def find_label(name: str, labels: Sequence[str]) -> int | None:
    """The place of a class among labels: Imagenette's among a thousand, else the label or one of its synonyms."""
    wanted = comparable(name)
    if len(labels) == 1000 and wanted in IMAGENETTE:
        return IMAGENETTE[wanted]
    written = [comparable(label) for label in labels]
    if wanted in written:  # ImageNet has a `cardigan`, and before it a dog of that name.
        return written.index(wanted)
    for index, label in enumerate(labels):
        if wanted in {comparable(part) for part in label.split(",")} | {comparable(label.split(":")[-1])}:
            return index
    return None


def require_apart(places: Mapping[str, Hashable], what: str) -> None:
    """Refuse classes of two names that mean one thing: the pictures of one of them would all count as wrong.

    Args:
        places: What each name means.
        what: Whose classes they are.

    Raises:
        UserError: Naming the two.
    """
    first: dict[Hashable, str] = {}
    for name, place in places.items():
        if first.setdefault(place, name) != name:
            raise UserError(
                f"Each class must have one name, {first[place]!r} and {name!r} are one class of {what}; write it alike "
                "in every prompt file and folder."
            )


def nearest(name: str, known: Iterable[str], at_least: float = 0.0) -> str:
    """The known name that is most like another; empty where none is."""
    written = {comparable(item): item for item in known}
    found = difflib.get_close_matches(comparable(name), written, n=1, cutoff=at_least)
    return written[found[0]] if found else ""
