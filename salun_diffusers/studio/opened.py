"""The models found, the base loaded: what draws, and the numbers that it begins with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from salun_diffusers.accelerator import engine, sampling_dtype
from salun_diffusers.diffusion.settings import OWN_SCHEDULER
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.drawing_pipeline import drawn_size, load_pipeline, require_steps
from salun_diffusers.studio.easel import MOST_GUIDANCE, MOST_STEPS, Easel
from salun_diffusers.studio.page import Numbers
from salun_diffusers.studio.records import RunRecord
from salun_diffusers.studio.shown import Where, shown

_STEPS, _GUIDANCE = 50, 7.5


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn, as far as the user says it; None leaves it to the run or the pipeline.

    Args:
        scheduler: Class of a scheduler.
        num_inference_steps: Sampling steps.
        guidance_scale: Classifier-free guidance.
        height: Pixels.
        width: Pixels.
        mixed_precision: Of the weights.
    """

    scheduler: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    mixed_precision: str | None = None


@contextmanager
def opened(words: Sequence[str], where: Where, drawing: Drawing) -> Iterator[tuple[Easel, Numbers]]:
    """Find the models, load the base, and say how it draws.

    Args:
        words: The models, as `shown` takes them.
        where: The base, and how to find it.
        drawing: How pictures are drawn.

    Yields:
        What draws, and what the controls show at first.

    Raises:
        UserError: If something is missing or does not belong together.
    """
    with (
        shown(words, where) as models,
        engine(
            mixed_precision=drawing.mixed_precision, gradient_accumulation_steps=1, report_to=None, trains=False
        ) as accelerator,
    ):
        if accelerator.num_processes > 1:
            raise UserError(f"The studio is one process, got {accelerator.num_processes}: start it without a launcher.")
        first = models.erased[0].record
        pipe = load_pipeline(
            models.base,
            device=accelerator.device,
            dtype=sampling_dtype(accelerator),
            variant=where.base_variant,
            scheduler=drawing.scheduler or _scheduler(first),
        )
        numbers = _numbers(drawing, first)
        require_steps(pipe, numbers.steps)
        yield Easel(pipe, models, drawn_size(pipe, drawing.height, drawing.width)), numbers


def _scheduler(record: RunRecord) -> str | None:
    named = record.text("scheduler")
    return None if named == OWN_SCHEDULER else named


def _numbers(drawing: Drawing, record: RunRecord) -> Numbers:
    """The user's, or the run's, or the usual ones."""
    steps, guidance = record.number("num_inference_steps", MOST_STEPS), record.number("guidance_scale", MOST_GUIDANCE)
    first_steps = next(one for one in (drawing.num_inference_steps, steps, _STEPS) if one is not None)
    first_guidance = next(one for one in (drawing.guidance_scale, guidance, _GUIDANCE) if one is not None)
    return Numbers(max(int(first_steps), 1), first_guidance)
