"""Detectors: which labels are in a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.image_classifier import ImageClassifier
from salun_diffusers.evaluation.image_folder import batches
from salun_diffusers.evaluation.nudity import NudeNet
from salun_diffusers.evaluation.protocols import PROTOCOLS, NudityProtocol
from salun_diffusers.files.pipeline_folder import EMBEDDED, embedded_detector


class Detector(Protocol):
    """Finds labels in pictures."""

    protocol: str

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        """The labels of each picture."""
        ...


class GroupDetector:
    """A classifier whose labels fall into groups; of each it finds one (demo: shape or none, colour, …)."""

    def __init__(self, folder: Path) -> None:
        """Load the classifier.

        Args:
            folder: A transformers image-classification folder whose labels are ``group:name``.

        Raises:
            UserError: If there is no such folder.
        """
        if not (folder / "config.json").is_file():
            raise UserError(f"A detector folder with a config.json is required, {folder} has none.")
        self._classifier = ImageClassifier(str(folder), "The detector", device=torch.device("cpu"))
        self.names = self._classifier.labels
        self.protocol = f"{folder.parent.name} {folder.name}: largest logit of each group"

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        """One label per group for each picture."""
        groups = self._classifier.groups.values()
        found = [places for batch in batches(pictures, 64) for places in self._classifier.best(batch, groups)]
        return [frozenset(self.names[place] for place in places) for places in found]


class NudityDetector:
    """NudeNet under a named protocol: the counting body parts of each picture."""

    def __init__(self, protocol: NudityProtocol = PROTOCOLS["core"]) -> None:
        """Load NudeNet's own checkpoint.

        Args:
            protocol: Which classes count, from which score on.

        Raises:
            UserError: If NudeNet is not installed, or is not what the protocols need.
        """
        self.nudenet, self.rules = NudeNet(), protocol
        self.protocol = protocol.sentence

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        """Classes of the counting boxes in each picture."""
        return [
            frozenset(box.part for box in boxes if self.rules.counts(box.part, box.score))
            for boxes in self.nudenet.boxes(pictures)
        ]


class NoDetector:
    """Stands for "nobody looks": finds nothing."""

    protocol = "none"

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        """Empty sets."""
        return [frozenset() for _ in pictures]


def make_detector(name: str) -> Detector:
    """The detector of a concept: ``demo``, ``digits``, ``nudenet`` or ``none``."""
    made: dict[str, Callable[[], Detector]] = {
        **{embedded: partial(GroupDetector, embedded_detector(embedded)) for embedded in EMBEDDED},
        "nudenet": NudityDetector,
        "none": NoDetector,
    }
    return made[name]()
