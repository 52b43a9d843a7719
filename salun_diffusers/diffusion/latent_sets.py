"""Latent sets: what the base model draws for lists of prompts, kept as latents; or the user's own pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.families.family import Conditions, Family
from salun_diffusers.diffusion.sampler import Sampler
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.errors import UserError
from salun_diffusers.files.stored_weights import weights_sha256, write_tensors
from salun_diffusers.files.whole_files import full_disk_is_told
from salun_diffusers.pictures.picture_sources import load_pictures
from salun_diffusers.seeds import stream, stream_seed


@dataclass(frozen=True)
class LatentSet:
    """Latents and the prompt that made each of them.

    Args:
        latents: `(n, channels, height, width)`, scaled as the denoiser sees them, fp32 on the CPU.
        prompt_index: `(n,)` row of `prompts` for each latent.
        prompts: The distinct prompts.
    """

    latents: Tensor
    prompt_index: Tensor
    prompts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def sha256(self) -> str:
        """SHA-256 of latents and rows."""
        return weights_sha256({"latents": self.latents, "prompt_index": self.prompt_index})

    @classmethod
    def empty(cls, prompts: Sequence[str]) -> LatentSet:
        """No latents of some prompts."""
        return cls(torch.empty(0), torch.empty(0, dtype=torch.int64), tuple(prompts))

    def distinct(self) -> LatentSet:
        """The same latents with every prompt once, however often the list that was gone round has it."""
        place = {prompt: row for row, prompt in enumerate(dict.fromkeys(self.prompts))}
        rows = torch.tensor([place[prompt] for prompt in self.prompts])
        return LatentSet(self.latents, rows[self.prompt_index], tuple(place))

    def __add__(self, other: LatentSet) -> LatentSet:
        """Both sets, this one first; row i of both prompt lists stands for the same pair of prompts."""
        latents = torch.cat([self.latents, other.latents]) if len(other) else self.latents
        return LatentSet(latents, torch.cat([self.prompt_index, other.prompt_index]), self.prompts)

    def save(self, path: Path) -> None:
        """Write latents and manifest as one safetensors file."""
        tensors = {"latents": self.latents, "prompt_index": self.prompt_index}
        write_tensors(path, tensors, {"prompts": json.dumps(self.prompts)})

    @classmethod
    def load(cls, path: Path) -> LatentSet:
        """Read a file written by `save`."""
        with safe_open(path, framework="pt") as file:
            prompts = tuple(json.loads(file.metadata()["prompts"]))
            return cls(file.get_tensor("latents"), file.get_tensor("prompt_index"), prompts)


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
        return replace(self, forget=forget, groups=1)


def latent_sets(sampler: Sampler, concept: Concept, real: Mapping[str, LatentSet]) -> EraseData:
    """Draw the forget, anchor and retain set, or take up those of an interrupted run, or the user's `real` ones.

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
            sets[name] = generate_latents(sampler, prompts, count, name)
            if run.main:
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
