"""Names of classes as people write them, and the labels of a classifier that they mean."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

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
    for index, label in enumerate(labels):
        synonyms = {comparable(part) for part in label.split(",")} | {comparable(label.split(":")[-1])}
        if wanted == comparable(label) or wanted in synonyms:
            return index
    return None


def nearest(name: str, known: Iterable[str], at_least: float = 0.0) -> str:
    """The known name that is most like another; empty where none is."""
    written = {comparable(item): item for item in known}
    found = difflib.get_close_matches(comparable(name), written, n=1, cutoff=at_least)
    return written[found[0]] if found else ""
