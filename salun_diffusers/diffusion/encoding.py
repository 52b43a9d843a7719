"""The user's pictures as latents: every view is encoded once, alone, to mean and deviation, and kept as drawings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from salun_diffusers.accelerator import sampling_dtype
from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.latent_cache import draw_all, read_latent, write_latent
from salun_diffusers.diffusion.latent_set import LatentSet, Views
from salun_diffusers.diffusion.own_sets import OwnSets
from salun_diffusers.diffusion.sampler import Sampler
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.errors import UserError
from salun_diffusers.files.run_folder import fingerprint
from salun_diffusers.pictures import framing
from salun_diffusers.pictures.framing import View
from salun_diffusers.pictures.own_pictures import OwnPicture
from salun_diffusers.pictures.stored_pictures import MOST_BYTES
from salun_diffusers.progress import Progress

Task = tuple[OwnPicture, View]


def tasks_of(own: OwnSets, name: str, side: int, settings: Settings) -> list[list[Task]]:
    """What is to be encoded of each picture of a set.

    Args:
        own: The sets.
        name: Which.
        side: Of the squares that the model is given, in pixels.
        settings: The seed.
    """
    return [
        [
            (picture, view)
            for view in framing.views(
                picture.size, side, center_crop=own.center_crop, random_flip=own.random_flip,
                name=(settings.seed, picture.sha256),
            )
        ]
        for picture in own.sets[name].pictures
    ]  # fmt: skip


def require_room(family: Family, own: OwnSets) -> None:
    """Refuse sets of pictures whose latents would fill the memory.

    Raises:
        UserError: Naming the number that fits.
    """
    if not own:
        return
    latent = family.latent_shape
    each = 4 * 2 * latent[0] * latent[1] * latent[2] * (2 if own.random_flip else 1)
    if own.count * each > MOST_BYTES:
        raise UserError(
            f"Mean and deviation of {own.count:,} pictures need {own.count * each / 2**30:.1f} GiB, at most "
            f"{MOST_BYTES / 2**30:.0f} are kept: {MOST_BYTES // each:,} pictures fit, as --num_forget_images and "
            "--num_retain_images together."
        )


def encoded(sampler: Sampler, own: OwnSets, name: str, prompts: Sequence[str]) -> LatentSet:
    """The pictures of a set as latents, the same whatever the number of processes and wherever a run was stopped.

    Every view is encoded alone: what comes of it depends on no other picture, and the VAE holds one in memory.

    Args:
        sampler: Has the model, and the folder where latents are kept.
        own: The pictures.
        name: Which set.
        prompts: Of the set; each caption is one of them.

    Raises:
        UserError: If a picture cannot be read any more, or its latent is not finite.
    """
    family, settings, run = sampler.family, sampler.settings, sampler.run
    pictures = own.sets[name].pictures
    of_each = tasks_of(own, name, family.side, settings)
    tasks = [task for each in of_each for task in each]
    place = _place(sampler)

    def encode(keys: Sequence[str], rows: Sequence[int]) -> Tensor:
        path = place / f"{keys[0]}.safetensors"
        found = read_latent(path) if family.has_encoder else None
        if found is None:
            found = _moments(family, *tasks[rows[0]])
            if family.has_encoder:  # Else they are the picture itself, which is not copied.
                write_latent(path, found)
        return found.unsqueeze(0)

    with Progress(f"encoding, {name}", len(tasks), run.main) as bar:
        moments = draw_all(
            encode, [_key(*task) for task in tasks], range(len(tasks)), how={}, batch_size=1, progress=bar.advance,
            processes=run.processes,
        )  # fmt: skip
    if not moments.isfinite().all():
        raise UserError(
            f"The VAE encodes pictures of the {name} set to NaN or infinity, so there is nothing to learn from; use "
            "--mixed_precision no."
        )
    number = torch.tensor([len(each) for each in of_each])
    first = torch.tensor([0, *accumulate(number.tolist())][:-1])
    sizes = torch.tensor([view.sizes for _, view in tasks], dtype=torch.float32)
    row_of = {prompt: row for row, prompt in enumerate(prompts)}
    index = torch.tensor([row_of[picture.caption] for picture in pictures])
    mean, deviations = (part.contiguous() for part in moments.unbind(1))
    return LatentSet(mean, index, tuple(prompts), Views(deviations, sizes, first, number))


def _place(sampler: Sampler) -> Path:
    """Where moments of this model are kept."""
    decides = {"pipeline": sampler.pipeline, "precision": str(sampling_dtype(sampler.run.accelerator))}
    return sampler.kept / fingerprint(encoded=True, **decides)[:16]


def _key(picture: OwnPicture, view: View) -> str:
    """What tells one view of a picture from all others: its content and how it is cut."""
    return fingerprint(content=picture.sha256, view=(view.side, view.mirrored, view.top, view.left))[:32]


def _moments(family: Family, picture: OwnPicture, view: View) -> Tensor:
    """Mean and deviation of a view, `(2, channels, height, width)`."""
    pixels = as_pixels(view.of(picture.read()), family.picture_channels)
    return torch.stack([part[0].cpu() for part in family.encode_images(pixels.unsqueeze(0))])


def as_pixels(picture: Image.Image, channels: int) -> Tensor:
    """A picture in [-1, 1], `(channels, height, width)`: x / 127.5 - 1, as diffusers' scripts normalise it."""
    shown = picture if channels == 3 else picture.convert("L")
    values = torch.from_numpy(np.array(shown, dtype=np.uint8)).float() / 127.5 - 1
    return values.permute(2, 0, 1).contiguous() if channels == 3 else values.unsqueeze(0)
