"""What a step of fine-tuning sees: latents, timesteps and noise, all told by the number of the step and the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from salun_diffusers.diffusion.families import Conditions, Family, rows
from salun_diffusers.diffusion.latent_sets import LatentSet
from salun_diffusers.diffusion.objectives import EraseBatch, Half
from salun_diffusers.seeds import stream


@dataclass(frozen=True)
class EraseData:
    """All that fine-tuning draws from.

    Args:
        forget: Latents of the forget prompts.
        retain: Latents of the retain prompts.
        anchor: Latents of the anchor prompts, which stand in for forget latents too: where the erased model will pass
            on its way from noise to the anchor's picture; may be empty.
        forget_conditions: c, one row per forget prompt.
        anchor_conditions: c′, one row per forget prompt.
        retain_conditions: c_r, one row per retain prompt.
        empty: ∅, one row.
    """

    forget: LatentSet
    retain: LatentSet
    anchor: LatentSet
    forget_conditions: Conditions
    anchor_conditions: Conditions
    retain_conditions: Conditions
    empty: Conditions


def shuffled(count: int, batch: int, position: int, *, seed: int, name: str) -> Tensor:
    """Rows `position … position + batch` of an endless sequence of shuffled passes over `count` items.

    Every item comes once per pass. (The official code drew the first batch of an unshuffled set at every step until
    2026-02-27; see `salun_official_code.md`, commits 47377e3 and 716e618 of OPTML-Group/Unlearn-Saliency.)
    """
    picked: list[int] = []
    while len(picked) < batch:
        epoch, offset = divmod(position + len(picked), count)
        order = torch.randperm(count, generator=stream(seed, name, "epoch", epoch))
        picked += order[offset : offset + batch - len(picked)].tolist()
    return torch.tensor(picked)


def draw(
    family: Family,
    data: EraseData,
    position: int,
    *,
    batch_size: int,
    seed: int,
    empty_prompt_share: float,
    halves: Sequence[Half] = ("forget", "retain"),
) -> EraseBatch:
    """The draws of one micro-batch, a function of `position` (its number over all processes) and `seed` alone.

    An objective that uses one half is given the same draws of it as one that uses both.
    """
    known = data.forget + data.anchor
    forget = shuffled(len(known), batch_size, position * batch_size, seed=seed, name="forget")
    retain = shuffled(len(data.retain), batch_size, position * batch_size, seed=seed, name="retain")
    generator = stream(seed, "draw", position)
    latents = torch.cat([known.latents[forget], data.retain.latents[retain]])
    timesteps = torch.randint(family.num_train_timesteps, (2 * batch_size,), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    blank = torch.rand(batch_size, generator=generator) < empty_prompt_share
    retained = rows(data.retain_conditions, data.retain.prompt_index[retain])
    for name, tensor in retained.items():
        tensor[blank.to(tensor.device)] = data.empty[name][0]
    prompts = known.prompt_index[forget]
    timesteps, noise = timesteps.to(family.device), noise.to(family.device)
    used = slice(0 if "forget" in halves else batch_size, None if "retain" in halves else batch_size)
    both = (
        _join(rows(data.forget_conditions, prompts), retained),
        _join(rows(data.anchor_conditions, prompts), retained),
        {name: tensor.expand(2 * batch_size, *tensor.shape[1:]) for name, tensor in data.empty.items()},
    )
    conditions, anchors, empty = ({name: tensor[used] for name, tensor in one.items()} for one in both)
    return EraseBatch(
        noised=family.noised(latents.to(family.device), noise, timesteps)[used],
        timesteps=timesteps[used],
        noise=noise[used],
        conditions=conditions,
        anchor_conditions=anchors,
        empty_conditions=empty,
    )


def _join(first: Conditions, second: Conditions) -> Conditions:
    return {name: torch.cat([first[name], second[name]]) for name in first}
