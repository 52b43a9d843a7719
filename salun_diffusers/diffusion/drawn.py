"""What a model has drawn, kept in a folder: other runs with the same model, prompts and seeds take it up."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from salun_diffusers.disk import full_disk_is_told
from salun_diffusers.run_folder import fingerprint

Generate = Callable[..., Tensor]
"""`Family.generate`, or what stands in for it."""


def kept_in(folder: Path, generate: Generate, **model: str) -> Generate:
    """The same as `generate`, but it looks into a folder first and leaves there what it had to draw.

    One file per latent, so that runs which share some prompts share those; several processes may use one folder.

    Args:
        folder: Made if need be.
        generate: Draws latents; item i must depend on prompt i and seed i only.
        model: All else that the latents depend on, such as the base's SHA-256.
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
        found = [_read(path) for path in paths]
        missing = [item for item, latent in enumerate(found) if latent is None]
        if missing:
            drawn = generate([prompts[item] for item in missing], [seeds[item] for item in missing], **how).cpu()
            with full_disk_is_told("what the base draws"):
                place.mkdir(parents=True, exist_ok=True)
                for item, latent in zip(missing, drawn, strict=True):
                    _write(paths[item], latent)
                    found[item] = latent
        return torch.stack([latent for latent in found if latent is not None])

    return look_first


def _read(path: Path) -> Tensor | None:
    """The latent, or None where there is none that can be read; it is then drawn again."""
    try:
        with safe_open(path, framework="pt") as file:
            latent: Tensor = file.get_tensor("latent")
            return latent
    except (OSError, SafetensorError):
        return None


def _write(path: Path, latent: Tensor) -> None:
    partial = path.with_suffix(f".{os.getpid()}.partial")  # Another process may be writing the same latent.
    save_file({"latent": latent.contiguous()}, partial)
    partial.replace(path)
