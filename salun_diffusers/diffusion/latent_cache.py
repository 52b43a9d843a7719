"""Drawing, shared among processes; what is drawn is kept, so that a run or its successor takes it up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from salun_diffusers.accelerator import ALONE, Processes
from salun_diffusers.files.run_folder import fingerprint
from salun_diffusers.files.stored_weights import weights_sha256, write_tensors
from salun_diffusers.files.whole_files import full_disk_is_told

Generate = Callable[..., Tensor]
"""`Family.generate`, or what stands in for it."""


def kept_in(folder: Path, generate: Generate, **model: str) -> Generate:
    """The same as `generate`, but it looks into a folder first and leaves there what it had to draw.

    One file per latent, so that runs which share some prompts share those; several processes may use one folder. A
    batch that lacks some is drawn whole: its latents have the rounding of that batch, interrupted or not.

    Args:
        folder: Made if need be.
        generate: Draws latents; item i must depend on prompt i and seed i only.
        model: All else that the latents depend on, such as the SHA-256 of the pipeline.
    """

    def look_first(
        prompts: Sequence[str], seeds: Sequence[int], *, num_inference_steps: int, guidance_scale: float
    ) -> Tensor:
        how = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        place = folder / fingerprint(**model, **how)[:16]
        paths = [
            place / f"{fingerprint(prompt=prompt, seed=seed)[:32]}.safetensors"
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        found = [read_latent(path) for path in paths]
        if any(latent is None for latent in found):
            drawn = generate(prompts, seeds, **how).cpu()
            with full_disk_is_told("what the model draws"):
                for item, latent in enumerate(drawn):
                    if found[item] is None:
                        write_latent(paths[item], latent)
                        found[item] = latent
        return torch.stack([latent for latent in found if latent is not None])

    return look_first


def draw_all(
    generate: Generate,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    how: Mapping[str, Any],
    batch_size: int,
    progress: Callable[[int], object],
    processes: Processes = ALONE,
) -> Tensor:
    """Draw in batches that the processes share; every one of them gets all.

    Args:
        generate: Draws a batch; with several processes it must be `kept_in` a folder that they share.
        prompts: One for each latent.
        seeds: As many.
        how: Sampling steps and guidance: the keyword arguments of `generate`.
        batch_size: Latents at once.
        progress: Called with the number of latents after each batch, of whatever process.
        processes: Who shares the work.
    """
    batches = [slice(start, start + batch_size) for start in range(0, len(prompts), batch_size)]
    drawn: dict[int, Tensor] = {}
    for number, batch in enumerate(batches):
        if number % processes.count == processes.rank:
            drawn[number] = generate(prompts[batch], seeds[batch], **how).cpu()
        progress(len(prompts[batch]))
    processes.wait()
    for number, batch in enumerate(batches):
        if number not in drawn:
            drawn[number] = generate(prompts[batch], seeds[batch], **how).cpu()
    return torch.cat([drawn[number] for number in range(len(batches))])


def write_latent(path: Path, latent: Tensor) -> None:
    """Keep a latent with its hash; several processes may write the same one."""
    tensors = {"latent": latent}
    write_tensors(path, tensors, {"sha256": weights_sha256(tensors)}, shared=True)


def read_latent(path: Path) -> Tensor | None:
    """The latent, or None where there is none that is as it was written; it is then drawn again."""
    try:
        with safe_open(path, framework="pt") as file:
            latent: Tensor = file.get_tensor("latent")
            whole = weights_sha256({"latent": latent}) == (file.metadata() or {}).get("sha256")
            return latent if whole else None
    except (OSError, ValueError, SafetensorError):
        return None
