"""Pipelines in the real formats with random weights, small enough to be made in a moment."""

from __future__ import annotations

from pathlib import Path

import torch

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


def build_sd14(cache: Path) -> Path:
    """A snapshot in the layout of Stable Diffusion 1.4 as the hub's cache holds it.

    PNDM, a safety checker that is pickled only, a feature extractor, plain and fp16 weights, pickles beside some of
    them, whole checkpoints at the root, a card, hidden files; every file is a link to a blob of the cache.
    """
    import json

    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    plain = build_pipeline(cache.parent / f"{cache.name}-plain")
    pipe = StableDiffusionPipeline.from_pretrained(plain, local_files_only=True)
    pipe.scheduler = PNDMScheduler(
        beta_end=0.012, beta_schedule="scaled_linear", beta_start=0.00085, skip_prk_steps=True, steps_offset=1
    )
    pipe.save_pretrained(plain)
    pipe.to(torch.float16).save_pretrained(plain, variant="fp16")
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 32, "patch_size": 16}
    checker = StableDiffusionSafetyChecker(CLIPConfig(text_config=small, vision_config=vision, projection_dim=8))
    checker.config.save_pretrained(plain / "safety_checker")
    torch.save(checker.state_dict(), plain / "safety_checker" / "pytorch_model.bin")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(plain / "feature_extractor")
    torch.save(pipe.text_encoder.state_dict(), plain / "text_encoder" / "pytorch_model.bin")
    torch.save(pipe.unet.state_dict(), plain / "unet" / "diffusion_pytorch_model.bin")
    for name in ("v1-4.ckpt", "v1-4-pruned.safetensors"):
        (plain / name).write_bytes(b"the whole base once more")
    (plain / "README.md").write_text("A card.\n")
    (plain / ".gitattributes").write_text("*.bin filter=lfs\n")
    index = json.loads((plain / "model_index.json").read_text())
    index |= {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "requires_safety_checker": True,
    }
    (plain / "model_index.json").write_text(json.dumps(index, indent=2))
    return in_hub_cache(plain, cache, "CompVis/stable-diffusion-v1-4", commit="a" * 40)


def build_sdxl(folder: Path, *, prediction_type: str = "epsilon", refiner: bool = False) -> Path:
    """A Stable Diffusion XL folder with random weights: two tokenizers and text encoders, 16 x 16 pixels."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from salun_diffusers.demo.architecture import tokenizer

    torch.manual_seed(0)
    tokens, tokens_2 = tokenizer(CAPTIONS), tokenizer(CAPTIONS)
    tokens_2.pad_token = "!</w>"  # The second encoder's padding is a word of its own.
    ids = {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id}
    common = {"vocab_size": len(tokens), "num_attention_heads": 2, "max_position_embeddings": 16, **ids}
    first = CLIPTextConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, **common)
    second = CLIPTextConfig(
        hidden_size=24, intermediate_size=16, num_hidden_layers=3, projection_dim=12, hidden_act="gelu", **common
    )
    unet = UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=40, attention_head_dim=(2, 4), norm_num_groups=4, use_linear_projection=True,
        transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=12 + 6 * 4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8), down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, norm_num_groups=2, sample_size=16,
        scaling_factor=0.13025, force_upcast=True,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1,
        prediction_type=prediction_type,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=vae.eval(), text_encoder=None if refiner else CLIPTextModel(first).eval(),
        text_encoder_2=CLIPTextModelWithProjection(second).eval(), tokenizer=None if refiner else tokens,
        tokenizer_2=tokens_2, unet=unet.eval(), scheduler=scheduler, force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def build_sdxl_snapshot(cache: Path) -> Path:
    """A snapshot in the layout of Stable Diffusion XL's base model as the hub's cache holds it: plain and fp16 weights,
    whole checkpoints at the root, other formats beside the weights; every file is a link to a blob of the cache."""
    from diffusers import StableDiffusionXLPipeline

    plain = build_sdxl(cache.parent / f"{cache.name}-plain")
    pipe = StableDiffusionXLPipeline.from_pretrained(plain, local_files_only=True)
    pipe.to(torch.float16).save_pretrained(plain, variant="fp16")
    (plain / "sd_xl_base_1.0.safetensors").write_bytes(b"the whole base once more")
    (plain / "README.md").write_text("A card.\n")
    for component in ("unet", "text_encoder", "text_encoder_2", "vae_decoder"):
        (plain / component).mkdir(exist_ok=True)
        (plain / component / "model.onnx").write_bytes(b"another format")
    return in_hub_cache(plain, cache, "stabilityai/stable-diffusion-xl-base-1.0", commit="a" * 40)


def in_hub_cache(folder: Path, cache: Path, name: str, *, commit: str, revision: str = "main") -> Path:
    """A snapshot of a folder as the hub's cache holds it: every file a link to a blob, and a revision that names it."""
    import hashlib

    room = cache / f"models--{name.replace('/', '--')}"
    snapshot = room / "snapshots" / commit
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            blob = room / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(path.read_bytes())
            link = snapshot / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(*[".."] * (len(link.relative_to(room).parts) - 1), "blobs", blob.name))
    (room / "refs").mkdir(exist_ok=True)
    (room / "refs" / revision).write_text(commit)
    return snapshot


def build_sd2(folder: Path) -> Path:
    """A Stable Diffusion 2 folder with random weights: OpenCLIP's text encoder, linear projections, v-prediction."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    build_pipeline(folder, prediction_type="v_prediction")
    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    torch.manual_seed(1)
    config = {**pipe.text_encoder.config.to_dict(), "hidden_act": "gelu", "num_hidden_layers": 2}
    pipe.register_modules(
        unet=UNet2DConditionModel.from_config({**pipe.unet.config, "use_linear_projection": True}).eval(),
        text_encoder=CLIPTextModel(CLIPTextConfig(**config)).eval(),
    )
    pipe.save_pretrained(folder)
    return folder
