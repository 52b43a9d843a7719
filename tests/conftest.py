"""Small real-format pipelines, built on the spot."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

CAPTIONS = ["a photo of a circle", "a photo of a square", "a star", "a red heart on a blue background"]


def build_pipeline(folder: Path, *, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """A Stable Diffusion folder with 60 k random weights: 16 x 16 pixels, 4 x 4 latents."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from salun_diffusers.demo.architecture import tokenizer

    torch.manual_seed(seed)
    tokens = tokenizer(CAPTIONS)
    unet = UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16, attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, norm_num_groups=2, sample_size=16,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=16, bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
    )  # fmt: skip
    scheduler = DDIMScheduler(
        prediction_type=prediction_type, timestep_spacing="trailing", clip_sample=False, steps_offset=1
    )
    pipe = StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=text.eval(), tokenizer=tokens, unet=unet.eval(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def build_ddpm(folder: Path, *, names: tuple[str, ...] = ("cat", "dog", "7"), prediction_type: str = "epsilon") -> Path:
    """A class-conditional DDPM folder with 20 k random weights: 8 x 8 grey pixels."""
    from diffusers import DDIMScheduler, UNet2DModel

    from salun_diffusers import ClassConditionalDDPMPipeline

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=4, num_class_embeds=len(names) + 1,
    )  # fmt: skip
    scheduler = DDIMScheduler(prediction_type=prediction_type, timestep_spacing="trailing")
    ClassConditionalDDPMPipeline(unet, scheduler, dict(enumerate(names))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_ddpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained class-conditional DDPM."""
    return build_ddpm(tmp_path_factory.mktemp("models") / "ddpm")


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained pipeline, ε-prediction."""
    return build_pipeline(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def retain_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of retain prompts."""
    path = tmp_path_factory.mktemp("prompts") / "retain.txt"
    path.write_text("a photo of a square\na star\n")
    return path


@pytest.fixture(scope="session")
def small_run(tiny_pipeline: Path, retain_file: Path) -> Callable[..., list[str]]:
    """The command line of a run that takes a second or two."""

    def command(**flags: object) -> list[str]:
        values: dict[str, object] = {
            "concept": "disc", "forget_prompt": "a photo of a circle", "anchor_prompt": "a photo of a heart",
            "retain_prompts": retain_file, "pretrained_model_name_or_path": tiny_pipeline, "num_forget_images": 6,
            "num_retain_images": 5, "num_inference_steps": 2, "guidance_scale": 2, "generation_batch_size": 4,
            "saliency_batch_size": 4, "train_batch_size": 2, "max_train_steps": 4, "learning_rate": 1e-3,
            "num_validation_images": 2, "retain_weight": 1,
        }  # fmt: skip
        values |= flags
        words: list[str] = []
        for name, value in values.items():
            if value is not None:
                words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        return words

    return command


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """A program of scripts/, imported by name."""

    def load(name: str) -> ModuleType:
        key = f"scripts_{name}"
        if key not in sys.modules:
            path = Path(__file__).parent.parent / "scripts" / f"{name}.py"
            spec = importlib.util.spec_from_file_location(key, path)
            assert spec is not None and spec.loader is not None
            sys.modules[key] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[key])
        return sys.modules[key]

    return load


@pytest.fixture(scope="session")
def noise_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder of pictures of coloured noise."""

    def make(count: int, *, size: int = 16, seed: int = 0, shift: int = 0) -> Path:
        folder = tmp_path_factory.mktemp("noise")
        rng = np.random.default_rng(seed)
        for number in range(count):
            pixels = rng.integers(0, 200, (size, size, 3)) + shift
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}_0.png")
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained CLIP of 32 x 32 pixels, as transformers saves it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from salun_diffusers.demo.architecture import tokenizer

    torch.manual_seed(0)
    tokens = tokenizer(CAPTIONS)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    text = {**small, **ids, "vocab_size": len(tokens), "max_position_embeddings": 16}
    vision = {**small, "image_size": 32, "patch_size": 16}
    folder = tmp_path_factory.mktemp("models") / "clip"
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    tokens.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder
