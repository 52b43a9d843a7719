"""Latent sets: what the base model draws for a list of prompts, kept as latents."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from salun_diffusers.diffusion.drawn import Generate
from salun_diffusers.seeds import stream_seed


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

    @classmethod
    def empty(cls, prompts: Sequence[str]) -> LatentSet:
        """No latents of some prompts."""
        return cls(torch.empty(0), torch.empty(0, dtype=torch.int64), tuple(prompts))

    def __add__(self, other: LatentSet) -> LatentSet:
        """Both sets, this one first; row i of both prompt lists stands for the same pair of prompts."""
        latents = torch.cat([self.latents, other.latents]) if len(other) else self.latents
        return LatentSet(latents, torch.cat([self.prompt_index, other.prompt_index]), self.prompts)

    def save(self, path: Path) -> None:
        """Write latents and manifest as one safetensors file."""
        tensors = {"latents": self.latents.contiguous(), "prompt_index": self.prompt_index}
        save_file(tensors, path, metadata={"prompts": json.dumps(self.prompts)})

    @classmethod
    def load(cls, path: Path) -> LatentSet:
        """Read a file written by `save`."""
        with safe_open(path, framework="pt") as file:
            prompts = tuple(json.loads(file.metadata()["prompts"]))
            return cls(file.get_tensor("latents"), file.get_tensor("prompt_index"), prompts)


def generate_latents(
    generate: Generate,
    prompts: Sequence[str],
    count: int,
    *,
    name: str,
    seed: int,
    num_inference_steps: int,
    guidance_scale: float,
    batch_size: int,
    progress: Callable[[int], object],
    shards: Path,
    process: tuple[int, int] = (0, 1),
    wait: Callable[[], None] = lambda: None,
) -> LatentSet:
    """Let the base model draw `count` latents, going round the prompts.

    Item i uses prompt i mod len(prompts) and a seed derived from (seed, name, i): it depends neither on the batch
    size nor on the number of processes. Finished batches are kept in `shards`, so an interrupted run goes on.

    Args:
        generate: How the base model draws.
        prompts: Prompts to go round.
        count: Number of latents.
        name: Name of the set, part of every item's seed.
        seed: The run's seed.
        num_inference_steps: Sampling steps.
        guidance_scale: Classifier-free guidance, diffusers' convention.
        batch_size: Latents at once.
        progress: Called with the number of latents after each batch.
        shards: Folder for finished batches.
        process: Rank and number of processes; each draws its share of the batches.
        wait: Barrier between the processes.
    """
    shards.mkdir(parents=True, exist_ok=True)
    rank, world = process
    starts = list(range(0, count, batch_size))
    for number, start in enumerate(starts):
        items = range(start, min(start + batch_size, count))
        path = shards / f"{start:06d}-{items[-1]:06d}.safetensors"
        if number % world == rank and not path.exists():
            latents = generate(
                [prompts[item % len(prompts)] for item in items],
                [stream_seed(seed, name, item) for item in items],
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
            )
            # Under its final name a shard is complete, whenever the process may be killed.
            partial = path.with_suffix(".partial")
            save_file({"latents": latents.cpu().contiguous()}, partial)
            partial.replace(path)
        progress(len(items))
    wait()
    parts = []
    for start in starts:
        path = shards / f"{start:06d}-{min(start + batch_size, count) - 1:06d}.safetensors"
        with safe_open(path, framework="pt") as file:
            parts.append(file.get_tensor("latents"))
    return LatentSet(torch.cat(parts), torch.arange(count) % len(prompts), tuple(prompts))
