"""Latent sets: what the base model draws for lists of prompts, kept as latents; or the user's own pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.encoding import encoded
from salun_diffusers.diffusion.families.family import Conditions, Family
from salun_diffusers.diffusion.latent_set import LatentSet
from salun_diffusers.diffusion.own_sets import OwnSets
from salun_diffusers.diffusion.sampler import Sampler
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.errors import UserError
from salun_diffusers.files.whole_files import full_disk_is_told
from salun_diffusers.pictures.picture_sources import load_pictures
from salun_diffusers.seeds import stream, stream_seed


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
        empty: ∅, one row; nothing where the family has no such branch.
        groups: How many concepts share the forget prompts, as `Concept.groups` says.
    """

    forget: LatentSet
    retain: LatentSet
    anchor: LatentSet
    forget_conditions: Conditions
    anchor_conditions: Conditions
    retain_conditions: Conditions
    empty: Conditions
    groups: int = 1

    def forget_of(self, group: int) -> EraseData:
        """The same with the forget latents of one concept only."""
        mine = (self.forget.prompt_index % self.groups == group).nonzero().squeeze(1)
        forget = LatentSet(self.forget.latents[mine], self.forget.prompt_index[mine], self.forget.prompts)
        return dataclasses.replace(self, forget=forget, groups=1)


def latent_sets(sampler: Sampler, concept: Concept, real: Mapping[str, LatentSet], own: OwnSets) -> EraseData:
    """Draw the forget, anchor and retain set, or take up those of an interrupted run, or the user's pictures.

    Args:
        sampler: Draws, and encodes.
        concept: Its prompts.
        real: Sets of `--train_data`; there are all of them or none.
        own: Pictures of the user's that make up a set or a part of it.

    Raises:
        UserError: If the model draws what is not finite.
    """
    family, settings, run = sampler.family, sampler.settings, sampler.run
    sets = {}
    for name, prompts, count in concept.sets(settings):
        if real or count == 0:
            sets[name] = real[name] if real else LatentSet.empty(prompts)
            continue
        mark = run.marks.sets[name]
        path = run.folder.work / f"{name}.safetensors"
        if run.is_done(name, mark):
            sets[name] = LatentSet.load(path)
            continue
        with full_disk_is_told("the latent set"):
            if name in own.sets:
                sets[name] = own_set(sampler, own, name, prompts)
            else:
                sets[name] = generate_latents(sampler, prompts, count, name)
            # Where nothing encodes them, latents are the pictures themselves, which are not copied.
            if run.main and (name not in own.sets or family.has_encoder):
                sets[name].save(path)
                run.folder.mark_done(name, mark, path)
    if concept.parts:
        there = set((sets["forget"].prompt_index % concept.groups).tolist())
        lacks = [part.name for number, part in enumerate(concept.parts) if number not in there]
        if lacks:
            raise UserError(f"The forget set must hold something of every concept, it has nothing of {lacks[0]!r}.")
    # Rows beyond those that something was drawn for are never asked for.
    sets["retain"] = sets["retain"].distinct()
    pairs = 1 + int(torch.cat([sets["forget"].prompt_index, sets["anchor"].prompt_index]).max())
    kept = 1 + int(sets["retain"].prompt_index.max())
    return EraseData(
        forget=sets["forget"],
        retain=sets["retain"],
        anchor=sets["anchor"],
        forget_conditions=family.encode(concept.forget_prompts[:pairs]),
        anchor_conditions=family.encode(concept.anchor_prompts[:pairs]),
        retain_conditions=family.encode(sets["retain"].prompts[:kept]),
        empty=family.encode([""]) if family.has_empty_prompt else {},
        groups=concept.groups,
    )


def generate_latents(sampler: Sampler, prompts: Sequence[str], count: int, name: str) -> LatentSet:
    """Let a model draw `count` latents, going round the prompts.

    Item i uses prompt i mod len(prompts) and a seed derived from (seed, name, i): it depends neither on the batch
    size nor on the number of processes.

    Args:
        sampler: Draws.
        prompts: Prompts to go round.
        count: Number of latents.
        name: Name of the set, part of every item's seed.

    Raises:
        UserError: If a latent is not finite.
    """
    latents = sampler.latents(
        [prompts[item % len(prompts)] for item in range(count)],
        [stream_seed(sampler.settings.seed, name, item) for item in range(count)],
        f"latents, {name}",
    )
    return LatentSet(latents, torch.arange(count) % len(prompts), tuple(prompts))


def own_set(sampler: Sampler, own: OwnSets, name: str, prompts: Sequence[str]) -> LatentSet:
    """A set of the user's pictures, then of what is generated beside them.

    Args:
        sampler: Encodes and draws.
        own: The pictures.
        name: Which set.
        prompts: All of its prompts: captions, and what is drawn for.

    Raises:
        UserError: If a picture cannot be read any more, or a latent is not finite.
    """
    chosen = own.sets[name]
    pictures = encoded(sampler, own, name, prompts)
    if not chosen.drawn:
        return pictures
    beside = generate_latents(sampler, chosen.prompts, chosen.drawn, name)
    place = torch.tensor([prompts.index(prompt) for prompt in chosen.prompts])
    return pictures + dataclasses.replace(beside, prompt_index=place[beside.prompt_index])


def real_sets(family: Family, concept: Concept, settings: Settings, source: str | None) -> dict[str, LatentSet]:
    """Forget, anchor and retain set from the user's labelled pictures; empty where there are none.

    Args:
        family: The model, which says how large its pictures are.
        concept: Its prompts are names of classes.
        settings: Numbers of pictures, and the seed that picks them.
        source: Name or folder of the pictures, or None.

    Raises:
        UserError: If a class of the model has no pictures.
    """
    if not source:
        return {}
    model: Any = getattr(family.denoiser, "config", None)
    images = load_pictures(source)[0].with_channels(model.in_channels).resized(model.sample_size)
    sets = {}
    for name, prompts, count in concept.sets(settings):
        missing = set(prompts) - set(images.class_names)
        if missing:
            raise UserError(
                f"--train_data must hold pictures of each of the model's classes; {source} has "
                f"{', '.join(images.class_names)}, which lacks {sorted(missing)[0]!r}."
            )
        row = torch.tensor([prompts.index(label) if label in prompts else -1 for label in images.class_names])
        of_prompt = row[images.labels]
        found = (of_prompt >= 0).nonzero().squeeze(1)
        chosen = found[torch.randperm(len(found), generator=stream(settings.seed, "real", name))][:count]
        latents, _ = family.encode_images(images.pixels[chosen].float() / 127.5 - 1)
        sets[name] = LatentSet(latents, of_prompt[chosen], prompts)
    return sets
