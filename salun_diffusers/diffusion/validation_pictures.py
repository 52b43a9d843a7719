"""Pictures of a training under way for its trackers: the same prompts and seeds as the base drew."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.request import Request
from salun_diffusers.diffusion.sampler import Sampler
from salun_diffusers.diffusion.trainer import Watch, not_watched
from salun_diffusers.errors import tell
from salun_diffusers.evaluation.explicit_prompts import explicit_words
from salun_diffusers.evaluation.image_folder import blurred
from salun_diffusers.progress import Progress
from salun_diffusers.seeds import stream_seed

_CPU = torch.device("cpu")
_TAKE_PICTURES = ("tensorboard", "wandb", "comet_ml")


def watcher(sampler: Sampler, request: Request) -> Watch:
    """Who draws the validation prompts while fine-tuning goes on; nobody, where there are none.

    The base draws them here, before its encoders are released.

    Args:
        sampler: Draws with the base.
        request: The prompts, and whether explicit pictures are shown.
    """
    if not request.config.validation_prompts:
        return not_watched
    return ValidationPictures(sampler, request)


class ValidationPictures:
    """One picture per validation prompt, every n-th step and after the last one.

    What draws beside the denoiser (VAE, text encoder) waits on the CPU meanwhile, so that between two rounds
    fine-tuning has the memory that it would have without.
    """

    def __init__(self, sampler: Sampler, request: Request) -> None:
        """Let the base draw.

        Args:
            sampler: Draws with the base.
            request: The prompts, and how often.
        """
        config = request.config
        self._prompts = tuple(config.validation_prompts)
        self._every, self._sampler = config.validation_steps, sampler
        seed = sampler.settings.seed
        self._seeds = [stream_seed(seed, "validation", prompt, number) for number, prompt in enumerate(self._prompts)]
        hidden = request.concept.explicit
        self._blurred = [
            (hidden or bool(explicit_words((prompt,)))) and not config.show_explicit for prompt in self._prompts
        ]
        self._base = sampler.pictures(self._prompts, self._seeds, "validation, base")
        self._family = _with_parts_of_its_own(sampler.family)
        self._shown = False
        _move(self._family, _CPU)
        run = sampler.run
        self._trackers = [tracker for tracker in run.accelerator.trackers if tracker.name in _TAKE_PICTURES]
        if run.main and not self._trackers:
            tell("note", f"--report_to has no tracker that takes validation pictures: {', '.join(_TAKE_PICTURES)} do.")

    def __call__(self, step: int, steps: int, as_saved: Callable[[], AbstractContextManager[None]]) -> None:
        """Draw with the present weights and hand the pictures to the trackers, if it is time."""
        if step % self._every and step != steps:
            return
        _move(self._family, self._family.device)
        with as_saved():
            pictures = self._draw()
        _move(self._family, _CPU)
        if not self._shown:
            self._log("validation, base", self._base, step)
            self._shown = True
        self._log("validation", pictures, step)

    def _draw(self) -> list[Image.Image]:
        settings, family = self._sampler.settings, self._family
        size, pictures = settings.generation_batch_size, []
        with Progress("validation", len(self._prompts), self._sampler.run.main) as bar:
            for start in range(0, len(self._prompts), size):
                part = slice(start, start + size)
                latents = family.generate(
                    self._prompts[part], self._seeds[part],
                    num_inference_steps=settings.num_inference_steps, guidance_scale=settings.guidance_scale,
                )  # fmt: skip
                pictures += family.decode(latents)
                bar.advance(len(latents))
        return pictures

    def _log(self, tag: str, pictures: Sequence[Image.Image], step: int) -> None:
        shown = [blurred(one) if hide else one for one, hide in zip(pictures, self._blurred, strict=True)]
        if self._sampler.run.main:
            for tracker in self._trackers:
                log_pictures(tracker, tag, shown, self._prompts, step)


def log_pictures(tracker: Any, tag: str, pictures: Sequence[Image.Image], captions: Sequence[str], step: int) -> None:
    """Hand pictures to one of accelerate's trackers, in the form that it takes.

    Args:
        tracker: One of tensorboard, wandb and comet_ml.
        tag: What they are filed under.
        pictures: In the order of the captions.
        captions: Their prompts.
        step: Steps done.
    """
    if tracker.name == "tensorboard":
        array = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
        tracker.log_images({tag: array}, step=step, dataformats="NHWC")
    elif tracker.name == "wandb":
        wandb = sys.modules["wandb"]  # The tracker is made of it; accelerate's own method takes no captions.
        captioned = [wandb.Image(one, caption=caption) for one, caption in zip(pictures, captions, strict=True)]
        tracker.log({tag: captioned}, step=step)
    else:  # accelerate has no method for comet's.
        for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
            tracker.tracker.log_image(picture, name=f"{tag} {number}: {caption}", step=step)


def _with_parts_of_its_own(family: Family) -> Any:
    """A view of a family that keeps its VAE and its text encoder when the family itself releases them."""
    own: Any = copy.copy(family)
    own.pipe = copy.copy(own.pipe)
    return own


def _move(family: Any, device: torch.device) -> None:
    """Put all that draws, except the denoiser, on a device."""
    for part in family.pipe.components.values():
        if isinstance(part, nn.Module) and part is not family.denoiser:
            part.to(device)
    if device.type == "cpu" and torch.cuda.is_available():
        torch.cuda.empty_cache()
