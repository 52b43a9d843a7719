"""What a step of fine-tuning sees: latents, timesteps and noise, all told by the number of the step and the seed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from salun_diffusers.diffusion.families.family import Conditions, Family, rows
from salun_diffusers.diffusion.global_batch import Share
from salun_diffusers.diffusion.latent_sets import EraseData
from salun_diffusers.diffusion.objectives import EraseBatch, Objective
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.diffusion.targets import Targets
from salun_diffusers.progress import Progress
from salun_diffusers.seeds import stream

_PRECISION = {"fp16": torch.float16, "bf16": torch.bfloat16}


def shuffled(count: int, batch: int, position: int, *, seed: int, name: str) -> Tensor:
    """Rows `position … position + batch` of an endless sequence of shuffled passes over `count` items.

    Every item comes once per pass. (The official code drew the first batch of an unshuffled set at every step until
    2026-02-27; commits 47377e3 and 716e618 of OPTML-Group/Unlearn-Saliency.)
    """
    picked: list[int] = []
    while len(picked) < batch:
        epoch, offset = divmod(position + len(picked), count)
        order = torch.randperm(count, generator=stream(seed, name, "epoch", epoch))
        picked += order[offset : offset + batch - len(picked)].tolist()
    return torch.tensor(picked)


def stratified(groups: Tensor, batch: int, position: int, *, seed: int) -> Tensor:
    """Rows `position … position + batch` of an endless sequence that goes round the concepts, each row in its turn.

    Row p of the sequence is of concept p mod k, and of that concept the ⌊p / k⌋-th of its own shuffled passes. So every
    k rows on end hold each concept once: a batch of a multiple of k holds all in equal shares, and in one of any other
    size none has two more than another.

    Args:
        groups: `(n,)` concept of each latent, 0 … k - 1; of one concept only, this is `shuffled`.
        batch: How many rows.
        position: The first of them.
        seed: Of the run.
    """
    k = 1 + int(groups.max())
    if k == 1:
        return shuffled(len(groups), batch, position, seed=seed, name="forget")
    picked = torch.empty(batch, dtype=torch.int64)
    for group in range(k):
        places = torch.arange(position, position + batch)
        mine = (places % k == group).nonzero().squeeze(1)
        if len(mine):
            members, first = (groups == group).nonzero().squeeze(1), int(places[mine[0]]) // k
            name = f"forget, concept {group}"
            picked[mine] = members[shuffled(len(members), len(mine), first, seed=seed, name=name)]
    return picked


class Draws:
    """What each micro-batch of a run sees, in order, and what its prediction is compared with.

    A step is a function of its number, its global batch and the seed alone; processes and micro-batches take their
    rows of it. An objective that uses one half of a batch is given the same draws of it as one that uses both.

    Differs from the official code: every timestep is drawn by itself. That of the DDPM pairs t with T - 1 - t.

    Differs from the official code: both sets are shuffled. There the pictures to forget come in the order of their
    folder, and for nudity those to retain as well.
    """

    def __init__(
        self, family: Family, data: EraseData, objective: Objective, settings: Settings, shares: Sequence[Share]
    ) -> None:
        """Plan the draws.

        Args:
            family: Makes x_t of latents.
            data: Latents and conditions.
            objective: Says which halves are used, and who the teacher is.
            settings: Seed and share of empty prompts.
            shares: Of the micro-batches to come, in this process.
        """
        self.objective = objective
        self.family, self._data, self._settings = family, data, settings
        self._known = data.forget + data.anchor
        self._concept_of = self._known.prompt_index % data.groups
        self._shares = deque(shares)
        self._targets: Targets  # Of the base, once they are computed: by the number of their share.
        self._taken = 0

    def compute_targets(self, run: Run) -> None:
        """Let the base model answer for all draws to come, kept off the GPU, so that the loop holds one network."""
        accelerator = run.accelerator
        folder = run.folder.work / f"targets-{accelerator.process_index}"
        self._targets = Targets(folder, _PRECISION.get(accelerator.mixed_precision, torch.float32))
        with Progress("targets", len(self._shares), run.main) as bar, torch.no_grad():

            def answer(number: int) -> Tensor:
                with accelerator.autocast():
                    target = self.objective.target(self.family, self.family.denoiser, self.batch(self._shares[number]))
                bar.advance()
                return target

            self._targets.fill(range(len(self._shares)), answer)

    def next(self, network: nn.Module) -> tuple[EraseBatch, Tensor]:
        """The next batch and its target: the base's, computed before, or what `network` makes of it now."""
        share = self._shares.popleft()
        batch = self.batch(share)
        if self.objective.teacher == "base":
            self._taken += 1
            return batch, self._targets.pop(self._taken - 1).to(self.family.device).float()
        return batch, self.objective.target(self.family, network, batch)

    def upcoming(self, count: int) -> list[Share]:
        """The shares of the next batches, which stay to be taken."""
        return list(self._shares)[:count]

    def relearning(self, share: Share) -> EraseBatch:
        """What someone trains on who wants the concept back: rows of forget latents with their prompts."""
        family, settings, forget = self.family, self._settings, self._data.forget
        mine, name = slice(share.rows.start, share.rows.stop), ("training back", share.step)
        items = torch.randint(len(forget), (share.size,), generator=stream(settings.seed, *name, "items"))
        drawn = forget.draw(items, stream(settings.seed, *name, "posterior")).of(mine)
        generator = stream(settings.seed, *name)
        timesteps = family.schedule.sample(share.size, generator)[mine].to(family.device)
        noise = torch.randn((share.size, *drawn.latents.shape[1:]), generator=generator)[mine].to(family.device)
        latents = drawn.latents.to(family.device)
        conditions = drawn.told(rows(self._data.forget_conditions, forget.prompt_index[items[mine]]))
        truth = family.schedule.target(latents, noise, timesteps)
        noised = family.schedule.noised(latents, noise, timesteps)
        return EraseBatch(noised, timesteps, truth, conditions, weight=share.weight)

    def batch(self, share: Share) -> EraseBatch:
        """The draws of one micro-batch: its rows of the whole step's."""
        family, data, settings, halves = self.family, self._data, self._settings, self.objective.halves
        size, mine = share.size, slice(share.rows.start, share.rows.stop)
        forget = stratified(self._concept_of, size, share.step * size, seed=settings.seed)
        retain = shuffled(len(data.retain), size, share.step * size, seed=settings.seed, name="retain")
        known = self._known.draw(forget, stream(settings.seed, "posterior", "forget", share.step)).of(mine)
        kept = data.retain.draw(retain, stream(settings.seed, "posterior", "retain", share.step)).of(mine)
        drawn, forget, retain = known.beside(kept), forget[mine], retain[mine]
        generator = stream(settings.seed, "draw", share.step)
        latents = drawn.latents
        timesteps = family.schedule.sample(2 * size, generator)
        noise = torch.randn((2 * size, *latents.shape[1:]), generator=generator)
        blank = (torch.rand(size, generator=generator) < settings.empty_prompt_share)[mine]
        timesteps, noise = (_both_halves(values, mine) for values in (timesteps, noise))
        timesteps, noise, latents = (one.to(family.device) for one in (timesteps, noise, latents))
        retained = rows(data.retain_conditions, data.retain.prompt_index[retain])
        for name, tensor in data.empty.items():
            retained[name][blank.to(tensor.device)] = tensor[0]
        prompts, half = self._known.prompt_index[forget], len(share.rows)
        used = slice(0 if "forget" in halves else half, None if "retain" in halves else half)
        both = (
            _join(rows(data.forget_conditions, prompts), retained),
            _join(rows(data.anchor_conditions, prompts), retained),
            {name: tensor.expand(2 * half, *tensor.shape[1:]) for name, tensor in data.empty.items()},
        )
        conditions, anchors, empty = ({name: tensor[used] for name, tensor in drawn.told(one).items()} for one in both)
        return EraseBatch(
            noised=family.schedule.noised(latents, noise, timesteps)[used],
            timesteps=timesteps[used],
            truth=family.schedule.target(latents, noise, timesteps)[used],
            conditions=conditions,
            anchor_conditions=anchors,
            empty_conditions=empty,
            weight=share.weight,
        )


def _both_halves(drawn: Tensor, mine: slice) -> Tensor:
    """Some rows of the forget half, then the same of the retain half."""
    return torch.cat([half[mine] for half in drawn.chunk(2)])


def _join(first: Conditions, second: Conditions) -> Conditions:
    return {name: torch.cat([first[name], second[name]]) for name in first}
