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

from salun_diffusers.diffusion.latent_cache import Generate, draw_all
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
    process: tuple[int, int] = (0, 1),
    wait: Callable[[], None] = lambda: None,
) -> LatentSet:
    """Let the base model draw `count` latents, going round the prompts.

    Item i uses prompt i mod len(prompts) and a seed derived from (seed, name, i): it depends neither on the batch
    size nor on the number of processes.

    Args:
        generate: How the base model draws.
        prompts: Prompts to go round.
        count: Number of latents.
        name: Name of the set, part of every item's seed.
        seed: The run's seed.
        num_inference_steps: As for `draw_all`.
        guidance_scale: As for `draw_all`.
        batch_size: As for `draw_all`.
        progress: As for `draw_all`.
        process: As for `draw_all`.
        wait: As for `draw_all`.
    """
    latents = draw_all(
        generate,
        [prompts[item % len(prompts)] for item in range(count)],
        [stream_seed(seed, name, item) for item in range(count)],
        num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, batch_size=batch_size,
        progress=progress, process=process, wait=wait,
    )  # fmt: skip
    return LatentSet(latents, torch.arange(count) % len(prompts), tuple(prompts))
