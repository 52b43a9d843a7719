"""Batches and loss of the demo's detector: fresh renders, one picture in five a `negative`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import ImageFilter
from torch import Tensor, nn

from salun_diffusers.demo.architecture import DETECTOR_LABELS
from salun_diffusers.demo.renderer import negative, render, sample_scene

GROUPS = ("shape", "colour", "background", "style")
_IGNORE = -100


def group_slices() -> dict[str, slice]:
    """Where each group of labels lies among the logits."""
    kinds = [label.split(":")[0] for label in DETECTOR_LABELS]
    return {group: slice(kinds.index(group), kinds.index(group) + kinds.count(group)) for group in GROUPS}


def detector_batch(rng: np.random.Generator, size: int, augment: bool = True) -> tuple[Tensor, Tensor]:
    """Fresh pictures in [-1, 1] with one label per group; groups that a negative lacks are -100.

    Args:
        rng: Source of scenes and of the augmentation.
        size: Number of pictures.
        augment: Whether some pictures are softened and speckled, as a decoder's are.
    """
    slices, labels, images = group_slices(), [], []
    for _ in range(size):
        if rng.random() < 0.2:
            picture = negative(rng)
            names = {"shape": "none"}
        else:
            scene = sample_scene(rng)
            picture = render(scene)
            names = {"shape": scene.shape, "colour": scene.colour, "background": scene.background, "style": scene.style}
        if augment and rng.random() < 0.5:
            picture = picture.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 1.2))))
        array = np.asarray(picture, dtype=np.float32) / 127.5 - 1
        if augment and rng.random() < 0.5:
            array = array + rng.normal(0, rng.uniform(0, 0.12), array.shape).astype(np.float32)
        images.append(torch.from_numpy(array).permute(2, 0, 1))
        labels.append(
            [
                DETECTOR_LABELS.index(f"{group}:{names[group]}") - slices[group].start if group in names else _IGNORE
                for group in GROUPS
            ]
        )
    return torch.stack(images), torch.tensor(labels)


def detector_loss(
    batches: Callable[[np.random.Generator, int], tuple[Tensor, Tensor]], accelerator: Accelerator, batch_size: int = 64
) -> Callable[[nn.Module, int, torch.Generator], Tensor]:
    """Sum of the groups' cross-entropies."""
    slices = group_slices()

    def loss(network: nn.Module, step: int, generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator, device=generator.device)))
        images, labels = batches(rng, batch_size // accelerator.num_processes)
        logits = network(images.to(generator.device)).logits
        labels = labels.to(generator.device)
        losses = [
            F.cross_entropy(logits[:, where], labels[:, column], ignore_index=_IGNORE)
            for column, where in enumerate(slices.values())
        ]
        return torch.stack(losses).sum()

    return loss
