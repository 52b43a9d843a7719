"""A pipeline folder of a few kilobytes for `fuzz.py`: a real U-Net, and stand-ins with the right names for the rest."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file


def small_pipeline(folder: Path) -> None:
    """Write it; the same bits every time."""
    parts = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=4, block_out_channels=(4, 4), layers_per_block=1, down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2, cross_attention_dim=4, attention_head_dim=2, norm_num_groups=2,
        )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    DDIMScheduler().save_pretrained(folder / "scheduler")
    for name, weights in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text("{}")
        save_file({"w": torch.ones(4)}, folder / name / f"{weights}.safetensors")
    (folder / "tokenizer").mkdir(exist_ok=True)
    (folder / "tokenizer" / "tokenizer_config.json").write_text("{}")
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.35.0", **parts}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
