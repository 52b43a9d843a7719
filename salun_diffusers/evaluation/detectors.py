"""Detectors: which labels are in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.alignment import ClipScore
from salun_diffusers.evaluation.detector_choice import FACE, DetectorChoice, find_detector
from salun_diffusers.evaluation.image_classifier import ImageClassifier
from salun_diffusers.evaluation.image_folder import batches
from salun_diffusers.evaluation.nudity import NudeNet
from salun_diffusers.evaluation.protocols import PROTOCOLS, NudityProtocol
from salun_diffusers.files.pipeline_folder import EMBEDDED, embedded_detector


class Detector(Protocol):
    """Finds labels in pictures; its protocol says how, and numbers of different ones are never compared."""

    @property
    def protocol(self) -> str:
        """How labels are found."""
        ...

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


class ClassDetector:
    """Any image classifier of transformers: of its labels the one with the largest logit, or one of each group."""

    def __init__(self, weights: str) -> None:
        """Load the classifier.

        Args:
            weights: Local folder or hub id.

        Raises:
            UserError: If it cannot be had.
        """
        self._classifier = ImageClassifier(weights, "The detector", preprocessed=True)
        self.names = self._classifier.labels
        self._groups = [*self._classifier.groups.values()] if self._classifier.grouped else [[*range(len(self.names))]]
        named = f"{self._classifier.architecture} (weights {self._classifier.weights_hash})"
        self.protocol = f"{named}, top-1 of {len(self.names)} labels{' in groups' if self._classifier.grouped else ''}"

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        """The label of each picture, of each group one."""
        found = [places for batch in batches(pictures, 32) for places in self._classifier.best(batch, self._groups)]
        return [frozenset(self.names[place] for place in places) for places in found]


class ClipDetector:
    """CLIP: whether a picture is nearer to the concept's words than to any of those that stand for it afterwards."""

    def __init__(self, weights: str, texts: Sequence[str]) -> None:
        """Load CLIP and embed the texts.

        Args:
            weights: Local folder or hub id.
            texts: The concept's words, then those that it is told from.

        Raises:
            UserError: If it cannot be had, or there is nothing to tell the concept from.
        """
        if len(texts) < 2:
            raise UserError(
                f"--detector clip: tells the concept's words from the anchor prompts, and those are {texts[0]!r}, too: "
                "describe the concept in other words."
            )
        self.clip, self._texts = ClipScore(weights), tuple(texts)
        self._embedded = self.clip.texts(self._texts)
        against = ", ".join(map(repr, self._texts[1:5])) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")
        where = self.clip.protocol.partition("; ")[2]
        self.protocol = f"CLIP zero-shot, {self._texts[0]!r} against {against}; {where}"

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        """The nearest text of each picture."""
        if not pictures:
            return []
        nearest = (self.clip.images(pictures) @ self._embedded.T).argmax(dim=1)
        return [frozenset({self._texts[int(place)]}) for place in nearest]


class NudityDetector:
    """NudeNet under a named protocol: the counting body parts of each picture, and whether it shows a face."""

    def __init__(self, protocol: NudityProtocol = PROTOCOLS["core"]) -> None:
        """Load NudeNet's own checkpoint.

        Args:
            protocol: Which classes count, from which score on.

        Raises:
            UserError: If NudeNet is not installed, or is not what the protocols need.
        """
        self.nudenet, self.rules = NudeNet(protocol.channels), protocol
        self._faces = replace(protocol, classes=("FACE_FEMALE", "FACE_MALE"))
        self.protocol = protocol.sentence

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        """Classes of the counting boxes in each picture, and `FACE` where a face scores as high."""
        found = self.nudenet.boxes(pictures)
        parts = [{box.part for box in boxes if self.rules.counts(box.part, box.score)} for boxes in found]
        faces = [any(self._faces.counts(box.part, box.score) for box in boxes) for boxes in found]
        return [frozenset(part | {FACE} if face else part) for part, face in zip(parts, faces, strict=True)]


class NoDetector:
    """Stands for "nobody looks": finds nothing."""

    protocol = "none"

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        """Empty sets."""
        return [frozenset() for _ in pictures]


def make_detector(choice: DetectorChoice | str) -> Detector:
    """Load a detector: one that was chosen, or a concept's by its name.

    Raises:
        UserError: If it cannot be had.
    """
    chosen = find_detector(choice) if isinstance(choice, str) else choice
    if chosen.parts:
        loaded = {part: make_detector(part) for part in dict.fromkeys(chosen.parts)}
        return SeveralDetectors(tuple(loaded[part] for part in chosen.parts))
    made: Detector
    if chosen.name in EMBEDDED:
        made = GroupDetector(embedded_detector(chosen.name))
    elif chosen.name == "nudenet":
        made = NudityDetector()
    elif chosen.name == "clip":
        made = ClipDetector(chosen.weights, chosen.labels)
    elif chosen.name == "classifier":
        made = ClassDetector(chosen.weights)
    else:
        made = NoDetector()
    return WithClip(made, ClipScore(chosen.clip)) if chosen.clip and chosen.name != "clip" else made


@dataclass(frozen=True)
class WithClip:
    """A detector, and CLIP beside it for what has no label.

    Args:
        detector: Finds labels.
        clip: Says how like two pictures are.
    """

    detector: Detector
    clip: ClipScore

    @property
    def protocol(self) -> str:
        """The detector's."""
        return self.detector.protocol

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        """The detector's."""
        return self.detector.labels(pictures)


@dataclass(frozen=True)
class SeveralDetectors:
    """A detector for each of several concepts; those of the same name are one.

    Args:
        parts: In the order of the concepts.
    """

    parts: tuple[Detector, ...]

    @property
    def protocol(self) -> str:
        """All of theirs."""
        return "; ".join(dict.fromkeys(part.protocol for part in self.parts))

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        """What any of them finds."""
        found = [part.labels(pictures) for part in dict.fromkeys(self.parts)]
        return [frozenset().union(*row) for row in zip(*found, strict=True)]
