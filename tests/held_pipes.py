"""Pipelines in memory for tests of their erasure: small settings, and how two networks are compared."""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline

from salun_diffusers.files.loading import dtype_argument
from salun_diffusers.files.stored_weights import bit_patterns

SMALL = {
    "num_forget_images": 6, "num_anchor_images": 0, "num_retain_images": 5, "num_inference_steps": 2,
    "guidance_scale": 2.0, "generation_batch_size": 4, "saliency_batch_size": 4, "train_batch_size": 2,
    "max_train_steps": 4, "learning_rate": 1e-3, "num_validation_images": 1, "scheduler": "own", "seed": 3,
}  # fmt: skip
TEXTS = {"forget_prompt": "a photo of a circle", "anchor_prompt": "a photo of a heart"}
RETAIN = ["a photo of a square", "a star"]
QUICK = {**SMALL, **TEXTS, "retain_prompts": RETAIN, "num_forget_images": 2, "num_retain_images": 2,
         "num_inference_steps": 1, "max_train_steps": 2}  # fmt: skip


def load(folder, **how):
    if "dtype" in how:
        how[dtype_argument()] = how.pop("dtype")
    return DiffusionPipeline.from_pretrained(folder, local_files_only=True, **how)


def weights(network) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(first, second) -> bool:
    assert first.keys() == second.keys()
    return all(
        first[name].dtype == second[name].dtype and torch.equal(bit_patterns(first[name]), bit_patterns(second[name]))
        for name in first
    )
