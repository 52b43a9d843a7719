"""Detectors: which labels are in a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from salun_diffusers.errors import UserError
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
        from transformers import AutoModelForImageClassification

        self.protocol = f"{folder.parent.name} {folder.name}: largest logit of each group"
        self._model = AutoModelForImageClassification.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
        self._mode = "L" if getattr(self._model.config, "num_channels", 3) == 1 else "RGB"
        self.names = [self._model.config.id2label[index] for index in range(self._model.config.num_labels)]
        self._groups: dict[str, list[int]] = {}
        for index, label in enumerate(self.names):
            self._groups.setdefault(label.split(":")[0], []).append(index)

    @torch.no_grad()
    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        """One label per group for each picture."""
        found: list[frozenset[str]] = []
        for start in range(0, len(pictures), 64):
            batch = [
                np.atleast_3d(np.asarray(picture.convert(self._mode), dtype=np.float32))
                for picture in pictures[start : start + 64]
            ]
            pixels = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2) / 127.5 - 1
            logits = self._model(pixels).logits
            best = {group: logits[:, index].argmax(dim=1) for group, index in self._groups.items()}
            for row in range(len(logits)):
                found.append(frozenset(self.names[index[best[group][row]]] for group, index in self._groups.items()))
        return found


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
