"""A look at the first pictures of a drawing, where nothing else says whether they are explicit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from salun_diffusers.evaluation.generation import Sampling, batches_of_one_guidance, draw
from salun_diffusers.evaluation.manifest import PictureRow
from salun_diffusers.evaluation.nudity import NudeNet
from salun_diffusers.evaluation.protocols import CHANNELS, PROTOCOLS

LOOKED_AT = 16
"""How many pictures are looked at."""


def look_at_first(
    pipe: Any, rows: Sequence[PictureRow], sampling: Sampling, detector: NudeNet, batch_size: int
) -> tuple[int, int]:
    """Draw the first picture of the first prompts and look at them in memory; nothing is written.

    Args:
        pipe: A diffusers pipeline.
        rows: All pictures of the folder.
        sampling: How they are drawn.
        detector: Looks, at colours both as the field's protocols do and in their places.
        batch_size: Pictures at once.

    Returns:
        How many show an exposed part by the protocol `core`, in either order, and how many were looked at.
    """
    first = [row for row in rows if row.sample == 0][:LOOKED_AT]
    seen = 0
    for batch in batches_of_one_guidance(first, batch_size):
        pictures = draw(pipe, batch, sampling)
        both = [detector.with_channels(order).boxes(pictures) for order in CHANNELS]
        for one, other in zip(*both, strict=True):
            seen += any(PROTOCOLS["core"].counts(box.part, box.score) for box in (*one, *other))
    return seen, len(first)
