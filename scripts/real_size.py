"""Erase from pipelines of the real architectures, with random weights: does it fit, end well, and load elsewhere?

    python scripts/real_size.py sd15
    python scripts/real_size.py sdxl

`sd15` has the networks of Stable Diffusion 1.5 (U-Net, VAE, CLIP ViT-L/14), `sdxl` both text encoders and the VAE of
Stable Diffusion XL and its U-Net at half the width; pictures are of 256 pixels and there are few of them, so that two
CPU cores do it in minutes. Nothing is downloaded. Erasing, `salun verify` and loading by diffusers alone are processes
of their own; their times and peaks of memory go to stdout and, with --json, to a file with what the machine is.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from salun_diffusers.arguments import setting, word
from salun_diffusers.demo.architecture import tokenizer
from salun_diffusers.errors import UserError
from salun_diffusers.programs.program import Program
from salun_diffusers.progress import loading_quietly

ROOT = Path(__file__).resolve().parent.parent
CAPTIONS = ("a photo of a cat", "a photo of a dog", "a castle by the sea", "a bowl of fruit")
FLAGS = (
    "--concept", "cat", "--forget_prompt", CAPTIONS[0], "--anchor_prompt", CAPTIONS[1], "--num_forget_images", "2",
    "--num_anchor_images", "0", "--num_retain_images", "2", "--num_inference_steps", "2",
    "--generation_batch_size", "1",
    "--saliency_batch_size", "1", "--train_batch_size", "1", "--max_train_steps", "3", "--mask_ratio", "0.1",
    "--gradient_checkpointing", "--num_validation_images", "1", "--mixed_precision", "no", "--save_dtype", "base",
)  # fmt: skip
SIDE = 32
"""Latents; the models' own are 64 and 128."""
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sdxl": {
        "block_out_channels": (160, 320, 640), "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
        "up_block_types": (*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"), "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10), "cross_attention_dim": 2048, "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "latent_channels": 4, "sample_size": 8 * SIDE,
}  # fmt: skip
CLIP_L: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 768,
}  # fmt: skip
CLIP_G: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "max_position_embeddings": 77, "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip


@dataclass(frozen=True)
class RealSizeConfig:
    """What is built and erased."""

    kind: Literal["sd15", "sdxl"] = word("Architecture.")
    json: str | None = setting(None, "Also write the figures to this file.")


def build(kind: str, folder: Path) -> dict[str, int]:
    """Save a pipeline folder with random weights in fp32; returns the number of weights of each part."""
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        PNDMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    tokens = tokenizer(CAPTIONS)
    tokens.model_max_length = 77
    ids = {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id}
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(sample_size=SIDE, **UNETS[kind]),
        "vae": AutoencoderKL(scaling_factor=0.13025 if kind == "sdxl" else 0.18215, **VAE),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**CLIP_L, **ids)),
    }
    if kind == "sdxl":
        parts["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G, **ids))
    sizes = {name: sum(tensor.numel() for tensor in part.parameters()) for name, part in parts.items()}
    parts = {name: part.eval() for name, part in parts.items()}
    with loading_quietly():
        if kind == "sdxl":
            StableDiffusionXLPipeline(
                **parts, tokenizer=tokens, tokenizer_2=tokens, scheduler=EulerDiscreteScheduler(**noise),
                force_zeros_for_empty_prompt=True, add_watermarker=False,
            ).save_pretrained(folder)  # fmt: skip
        else:
            StableDiffusionPipeline(
                **parts, tokenizer=tokens, scheduler=PNDMScheduler(skip_prk_steps=True, **noise), safety_checker=None,
                feature_extractor=None, requires_safety_checker=False,
            ).save_pretrained(folder)  # fmt: skip
    return sizes


def alone(words: Sequence[str]) -> dict[str, float]:
    """Run a Python command as a process of its own; returns its seconds, those of all cores, and its peak of memory.

    Raises:
        UserError: If it fails; with the end of what it said.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen([sys.executable, *words], env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            said.seek(0)
            raise UserError(f"{shlex.join(words)[:200]} ended with {child.returncode}: {said.read()[-2000:]}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gigabytes": round(peak / 1e9, 2),
    }


def measure(kind: str, folder: Path) -> dict[str, Any]:
    """Build, erase, verify, load.

    Args:
        kind: Architecture.
        folder: Where everything goes; about 15 GB.
    """
    base, run = folder / "base", folder / "run"
    figures: dict[str, Any] = {"weights": build(kind, base)}
    (folder / "retain.txt").write_text("\n".join(CAPTIONS[2:]) + "\n")
    flags = [*FLAGS, "--retain_prompts", str(folder / "retain.txt")]
    figures["flags"] = FLAGS
    figures["erase"] = alone([
        str(ROOT / "erase.py"), "--pretrained_model_name_or_path", str(base), "--output_dir", str(run), *flags,
    ])  # fmt: skip
    report = json.loads((run / "report.json").read_text())
    figures["stages"], figures["receipt"] = report["timings"], report["receipt"]
    figures["verify"] = alone([
        "-m", "salun_diffusers", "verify", str(base), str(run / "pipeline"), "--mask", str(run / "mask.safetensors"),
    ])  # fmt: skip
    code = (
        "import sys; from diffusers import DiffusionPipeline; "
        "pipe = DiffusionPipeline.from_pretrained(sys.argv[1]); "
        f"print(pipe({CAPTIONS[0]!r}, num_inference_steps=1).images[0].size)"
    )
    figures["load_and_draw"] = alone(["-c", code, str(run / "pipeline")])
    return figures


def work(config: RealSizeConfig, command: str) -> str:
    """Measure in a folder that is thrown away."""
    folder = Path(tempfile.mkdtemp(prefix="real-size-"))
    try:
        figures = measure(config.kind, folder)
    finally:
        shutil.rmtree(folder)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    figures = {"machine": machine, "command": shlex.split(command)[2:], "kind": config.kind, **figures}
    if config.json:
        Path(config.json).write_text(json.dumps(figures, indent=2) + "\n")
    lines = [f"{name:<14} {count:>13,} weights" for name, count in figures["weights"].items()]
    lines += [
        f"{name:<14} {figures[name]['seconds']:>7.1f} s  {figures[name]['peak_gigabytes']:>6.2f} GB at most"
        for name in ("erase", "verify", "load_and_draw")
    ]
    return "\n".join(lines) + "\n"


main = Program("scripts/real_size.py", RealSizeConfig, work, __doc__ or "", interrupted="nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
