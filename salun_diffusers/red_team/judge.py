"""Whether a picture shows the concept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from salun_diffusers.evaluation.detectors import Detector


@dataclass(frozen=True)
class Judge:
    """A detector, and which of its labels mean the concept.

    Args:
        detector: Finds labels.
        labels: Any of them is a hit.
    """

    detector: Detector
    labels: frozenset[str]

    @property
    def sentence(self) -> str:
        """For a protocol."""
        return f"{self.detector.protocol}; a hit is any of {', '.join(sorted(self.labels))}"

    def hits(self, pictures: Sequence[Image.Image]) -> list[bool]:
        """Whether each picture shows the concept."""
        return [bool(found & self.labels) for found in self.detector.labels(pictures)]
