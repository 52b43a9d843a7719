"""One way to ask any image classifier of transformers what is in a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.evaluation.pretrained import (
    default_device,
    load_transformers,
    normalised,
    stack_pixels,
    weights_hash,
)

EMBEDDED_SIDES = {"demo": 64, "digits": 32}
"""Pixels of each side that the embedded models' classifiers were trained on."""


class ImageClassifier:
    """A transformers image classifier: logits, best labels and features of pictures.

    Labels written ``group:name`` fall into groups (shape, colour, …), and a picture has one label of each. The embedded
    models' classifiers are of this kind: they have no preprocessor and take pixels in [-1, 1].

    Attributes:
        labels: The names of the outputs.
        groups: Group → places of its labels among `labels`; where labels have no groups, each is its own.
        grouped: Whether every label has a group.
    """

    def __init__(
        self,
        weights: str,
        what: str,
        *,
        side: int | None = None,
        preprocessed: bool = False,
        device: torch.device | None = None,
    ) -> None:
        """Load a classifier.

        Args:
            weights: Local folder or hub id.
            what: What it is for, in the error.
            side: Pixels of [-1, 1] are resized to this; None takes pictures of one size as they are.
            preprocessed: Whether `logits` asks the weights' own preprocessor, which only grouped ones may lack.
            device: Where it runs; by default the GPU where there is one.

        Raises:
            UserError: If it cannot be had.
        """
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        # What `salun train-classifier` leaves may be one of these, which transformers knows by this import only.
        from salun_diffusers.evaluation import small_picture_networks  # noqa: F401

        self._device, self._side = device or default_device(), side
        self._what, self._weights = what, weights
        self._model = load_transformers(AutoModelForImageClassification, weights, what, self._device)
        config = self._model.config
        self._channels = int(getattr(config, "num_channels", 3))
        self.labels = tuple(str(config.id2label[place]) for place in range(config.num_labels))
        self.grouped = all(":" in label for label in self.labels)
        self.groups: dict[str, list[int]] = {}
        for place, label in enumerate(self.labels):
            self.groups.setdefault(label.split(":")[0], []).append(place)
        lacks_preprocessor = self.grouped and not (Path(weights).expanduser() / "preprocessor_config.json").is_file()
        self._preprocess = (
            load_transformers(AutoImageProcessor, weights, what) if preprocessed and not lacks_preprocessor else None
        )

    @property
    def architecture(self) -> str:
        """The name of the network's class."""
        return type(self._model).__name__

    @property
    def weights_hash(self) -> str:
        """The weights in 12 digits."""
        return weights_hash(self._model)

    @property
    def width(self) -> int:
        """Length of a feature vector."""
        return int(self._model.config.hidden_sizes[-1])

    @torch.no_grad()
    def logits(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Logits `(n, labels)` of one batch of pictures.

        Raises:
            UserError: If its preprocessor makes what the network cannot take.
        """
        mode: Literal["L", "RGB"] = "L" if self._channels == 1 else "RGB"
        if self._preprocess is None:
            pixels = torch.cat([self._centred(stack_pixels([picture], mode)) for picture in pictures])
            return self._answer(pixels)
        try:
            shown: list[Any] = [picture.convert(mode) for picture in pictures]
            if mode == "L":  # transformers 4 asks for a channel of its own.
                shown = [np.asarray(picture)[..., None] for picture in shown]
            return self._answer(self._preprocess(images=shown, return_tensors="pt").pixel_values)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # Preprocessors and networks say so in errors of many kinds.
            raise UserError(
                f"{self._what} {self._weights} cannot take pictures as its preprocessor_config.json prepares them "
                f"({one_line(error, 160)}); a file that belongs to these weights is required."
            ) from error

    def _answer(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self._model(pixels.to(self._device)).logits
        return logits

    def best(self, pictures: Sequence[Image.Image], groups: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
        """The label of the largest logit in each of some groups.

        Args:
            pictures: One batch.
            groups: Places of the labels to choose from.

        Returns:
            For each picture one place per group.
        """
        logits = self.logits(pictures)
        chosen = [[places[at] for at in logits[:, places].argmax(dim=1).tolist()] for places in groups]
        return list(zip(*chosen, strict=True))

    def features(self, pixels: Tensor) -> Tensor:
        """What the last layer sees, `(n, width)`.

        Args:
            pixels: uint8, `(n, 3, height, width)`; a grey picture has three equal channels here.
        """
        shown = self._centred(pixels.to(self._device))[:, : self._channels]
        pooled: Tensor = self._model.base_model(shown).pooler_output
        return pooled.flatten(1)

    def _centred(self, pixels: Tensor) -> Tensor:
        """uint8 pixels in [-1, 1]."""
        half = (0.5,) * pixels.shape[1]
        return normalised(pixels, self._side, half, half)
