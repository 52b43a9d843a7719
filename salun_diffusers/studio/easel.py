"""Where pictures are drawn: one pipeline in memory, moved along the lines to the erased models as it is asked."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from PIL import Image

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.evaluation.drawing_pipeline import is_class_conditional, require_prompts, require_steps
from salun_diffusers.evaluation.generation import Sampling, draw
from salun_diffusers.evaluation.manifest import PictureRow
from salun_diffusers.files.pipeline_folder import denoiser_folder, model_index
from salun_diffusers.studio.line import STRONGEST, walk
from salun_diffusers.studio.shown import Shown

BASE = -1
"""Stands for the base where others are numbered."""
MOST_STEPS, MOST_GUIDANCE, LARGEST_SEED = 200, 30.0, 2**53 - 1  # A browser's numbers are exact up to there.
_LONGEST = 2_000  # characters of a prompt
_KEPT_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Asked:
    """What is to be drawn.

    Args:
        prompt: Words, or the name of a class.
        seed: Of the noise.
        steps: Sampling steps.
        guidance: Classifier-free guidance.

    Raises:
        UserError: If a value is outside of what is allowed.
    """

    prompt: str
    seed: int
    steps: int
    guidance: float

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise UserError("A prompt is required: some words to draw.")
        if len(self.prompt) > _LONGEST:
            raise UserError(f"The prompt must have at most {_LONGEST:,} characters, it has {len(self.prompt):,}.")
        for name, value, low, high in (
            ("seed", self.seed, 0, LARGEST_SEED),
            ("number of steps", self.steps, 1, MOST_STEPS),
            ("guidance", self.guidance, 0, MOST_GUIDANCE),
        ):
            if not math.isfinite(value) or not low <= value <= high:
                raise UserError(f"The {name} must be at least {low} and at most {high:g}, got {value:g}.")

    @classmethod
    def read(cls, prompt: object, seed: object, steps: object, guidance: object) -> Asked:
        """Take what a page sends.

        Raises:
            UserError: If something is no text or no number, or outside of what is allowed.
        """
        numbers = []
        for name, value in (("seed", seed), ("number of steps", steps), ("guidance", guidance)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(f"The {name} must be a number, got {one_line(value, 40)}.")
            numbers.append(value)
        words = prompt if isinstance(prompt, str) else ""
        return cls(" ".join(words.split()), int(numbers[0]), int(numbers[1]), float(numbers[2]))


class Easel:
    """One pipeline, and the pictures that it has drawn lately; both are in memory only."""

    def __init__(self, pipe: Any, shown: Shown, size: tuple[int | None, int | None] = (None, None)) -> None:
        """Stand at the base.

        Args:
            pipe: The base, loaded; its denoiser is written to from now on.
            shown: The models.
            size: Height and width of the pictures, where they are not the pipeline's own.
        """
        self._pipe, self.shown, self._size = pipe, shown, size
        self._denoiser = denoiser_folder(model_index(shown.base), shown.base)
        self._at: tuple[int, float] | None = (BASE, 0.0)
        self._kept: OrderedDict[tuple[int, float, Asked], Image.Image] = OrderedDict()
        self._drawing = threading.Lock()

    @property
    def classes(self) -> list[str]:
        """What can be asked of a class-conditional model; empty of others, which take any words."""
        return [str(label) for label in self._pipe.labels] if is_class_conditional(self._pipe) else []

    def picture(self, model: int, strength: float, asked: Asked) -> Image.Image:
        """Draw one picture; what was drawn lately is not drawn again.

        It is drawn by itself, so that it is what the model's own folder draws at this seed.

        Args:
            model: Number of the erased model, or `BASE`.
            strength: How far to go to it; 0 is the base.
            asked: What is drawn.

        Raises:
            UserError: If it cannot be.
        """
        if model != BASE and not 0 <= strength <= STRONGEST:
            raise UserError(f"The strength must be at least 0 and at most {STRONGEST}, got {strength:g}.")
        place = (BASE, 0.0) if model == BASE or strength == 0 else (model, float(strength))
        with self._drawing:
            if (*place, asked) not in self._kept:
                self._keep((*place, asked), self._drawn(place, asked))
            self._kept.move_to_end((*place, asked))
            return self._kept[(*place, asked)]

    def _drawn(self, place: tuple[int, float], asked: Asked) -> Image.Image:
        require_prompts(self._pipe, [asked.prompt])
        require_steps(self._pipe, asked.steps)
        self._go_to(place)
        row = PictureRow("the picture", asked.prompt, asked.seed, asked.guidance)
        return draw(self._pipe, [row], Sampling(asked.steps, *self._size))[0]

    def _go_to(self, place: tuple[int, float]) -> None:
        """Put the network there; should that fail, nothing is known of where it is."""
        if place == self._at:
            return
        self._at = None
        base = (self.shown.base / self._denoiser, self.shown.where.base_variant)
        model, strength = place
        one = self.shown.erased[max(model, 0)]
        walk(getattr(self._pipe, self._denoiser), base, (one.folder / self._denoiser, one.variant), strength)
        self._at = place

    def _keep(self, key: tuple[int, float, Asked], picture: Image.Image) -> None:
        self._kept[key] = picture
        size = sum(3 * one.width * one.height for one in self._kept.values())
        while size > _KEPT_BYTES and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            size -= 3 * oldest.width * oldest.height
