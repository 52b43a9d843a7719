"""Which object a picture shows, and what an erased model draws in place of the forgotten one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.class_names import comparable, find_label, require_apart
from salun_diffusers.evaluation.image_classifier import EMBEDDED_SIDES, ImageClassifier
from salun_diffusers.evaluation.label_rates import presence, share_right
from salun_diffusers.files.pipeline_folder import embedded_detector
from salun_diffusers.reports.measurement import Measurement


class ObjectClassifier:
    """Any transformers image classifier; labels like ``shape:circle`` are ranked within their group only."""

    def __init__(self, weights: str, classes: Sequence[str], device: torch.device | None = None) -> None:
        """Load a classifier and find the asked classes among its labels.

        Args:
            weights: Local folder or hub id.
            classes: Names of the classes that the pictures should show.
            device: Where it runs; by default the GPU where there is one.

        Raises:
            UserError: If it cannot be had, or a class is none of its labels.
        """
        # The embedded classifiers have no preprocessing of their own: they take [-1, 1] at the size of their pictures.
        grey = Path(weights) == embedded_detector("digits")
        side = EMBEDDED_SIDES["digits" if grey else "demo"]
        self._classifier = ImageClassifier(weights, "The classifier", side=side, preprocessed=True, device=device)
        labels = self._classifier.labels
        places = {name: find_label(name, labels) for name in classes}
        unknown = [name for name, place in places.items() if place is None]
        if unknown:
            raise UserError(
                f"The classifier {weights} has no class {unknown[0]!r}; it has {', '.join(labels[:12])}"
                f"{', …' if len(labels) > 12 else ''}. Name the classes of the prompt file so."
            )
        require_apart(places, f"the classifier {weights}")
        written = [comparable(label) for label in labels]
        if several := [
            name for name, place in places.items() if place is not None and written.count(written[place]) > 1
        ]:
            raise UserError(
                f"A class must be one label, the classifier {weights} has several that read {several[0]!r}; leave its "
                "pictures out, or take --clip."
            )
        groups = {labels[place].split(":")[0] for place in places.values() if place is not None}
        if self._classifier.grouped and len(groups) == 1:
            [group] = groups
            self._kept = self._classifier.groups[group]
            among = f"the {len(self._kept)} labels of group {group!r}"
        else:
            self._kept = list(range(len(labels)))
            among = f"{len(labels)} labels"
        self._names = {place: label.split(":")[-1].split(",")[0] for place, label in enumerate(labels)}
        self._names |= {place: name for name, place in places.items() if place is not None}
        described = f"{self._classifier.architecture} (weights {self._classifier.weights_hash})"
        self.protocol = f"{described}, top-1 of {among}"

    def classify(self, pictures: Sequence[Image.Image]) -> list[str]:
        """The top-1 name of each picture; a class that was asked for has the name it was asked by."""
        return [self._names[place] for (place,) in self._classifier.best(pictures, [self._kept])]


class ClipZeroShot:
    """CLIP with one prompt per class: ``a photo of a <class>``."""

    def __init__(self, weights: str, classes: Sequence[str]) -> None:
        """Load CLIP and embed the classes.

        Args:
            weights: Local folder or hub id.
            classes: Names of the classes to choose from.

        Raises:
            UserError: If it cannot be had.
        """
        from salun_diffusers.evaluation.alignment import ClipScore

        require_apart({name: comparable(name) for name in classes}, "the pictures")
        self._clip, self._classes = ClipScore(weights), list(classes)
        self._texts = self._clip.texts([f"a photo of a {name}" for name in classes])
        listed = ", ".join(classes)
        self.protocol = f"{self._clip.protocol.replace('CLIP score, 100 · max(cos, 0)', 'CLIP zero-shot')}, of {listed}"

    def classify(self, pictures: Sequence[Image.Image]) -> list[str]:
        """The class whose prompt is nearest to each picture."""
        nearest = (self._clip.images(pictures) @ self._texts.T).argmax(dim=1)
        return [self._classes[int(index)] for index in nearest]


def measure_objects(
    shown: Sequence[str], expected: Sequence[str], forget: Sequence[str], *, protocol: str, command: str = ""
) -> list[Measurement]:
    """Unlearning and retained accuracy.

        UA = share of pictures for the forgotten classes that show another class
        RA = share of pictures for the other classes that show their own

    SalUn, arXiv 2310.12508, section 5: UA = 1 - accuracy on the forgotten class.

    Args:
        shown: The class that each picture shows.
        expected: The class that it was drawn for.
        forget: Classes that should be gone.
        protocol: How `shown` was found.
        command: The command that measures it again.

    Returns:
        UA (group ``concept``), RA (group ``retained``), then the accuracy of each other class.

    Raises:
        UserError: If no picture was drawn for a forgotten class.
    """
    about: dict[str, Any] = {"protocol": protocol, "command": command}
    labels = [frozenset({name}) for name in shown]
    measured: list[Measurement] = []
    for name in forget:
        mine = [found for found, wanted in zip(labels, expected, strict=True) if wanted == name]
        if not mine:
            raise UserError(
                f"--forget must name classes that pictures were drawn for; none was drawn for {name!r}, there are "
                f"{', '.join(dict.fromkeys(filter(None, expected))) or 'none'}."
            )
        others = frozenset(shown) - {name}
        measured.append(presence(f"UA: {name} is not drawn", mine, others, direction="higher", **about))
    kept = ["" if wanted in forget else wanted for wanted in expected]
    rest = share_right("RA: other classes are right", labels, kept, **about)
    if rest:
        # Without another class it is another measure, and so is one over other classes.
        others_named = ", ".join(sorted({name for name in kept if name}))
        digest = hashlib.sha256(others_named.encode()).hexdigest()[:8]
        listed = others_named if len(others_named) <= 60 else f"{len(set(filter(None, kept)))} classes {digest}"
        measured.append(rest.of(f"without {', '.join(sorted(forget))}: {listed}"))
    for name in dict.fromkeys(filter(None, kept)):
        only = [wanted if wanted == name else "" for wanted in kept]
        single = share_right(f"{name} is right", labels, only, group="retained, by class", **about)
        if single:
            measured.append(single)
    return measured


def turned_into(shown: Sequence[str], expected: Sequence[str], name: str) -> list[tuple[str, int]]:
    """What the pictures for a class show, the most frequent first."""
    return Counter(found for found, wanted in zip(shown, expected, strict=True) if wanted == name).most_common()
