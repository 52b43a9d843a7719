"""The configurations of real models, written out: what their folders say, without any of their weights."""

from __future__ import annotations

from typing import Any

from salun_diffusers.diffusion.model_shape import ModelShape

_CLIP_L = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 768,
}  # fmt: skip
_CLIP_BIG_G = {
    "vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "max_position_embeddings": 77, "hidden_act": "gelu", "projection_dim": 1280,
}  # fmt: skip
_VAE = {
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "latent_channels": 4,
}  # fmt: skip


def sd1(side: int = 64, channels: int = 320) -> ModelShape:
    """Stable Diffusion 1.x: 859,520,964 weights in the U-Net, 4 x 64 x 64 latents.

    Args:
        side: Height and width of the latents.
        channels: Of the U-Net's first block; with half of them it has about a quarter of the weights.
    """
    unet = {
        "sample_size": side, "in_channels": 4, "out_channels": 4,
        "block_out_channels": [channels, 2 * channels, 4 * channels, 4 * channels],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, "layers_per_block": 2, "attention_head_dim": 8,
        "cross_attention_dim": 768,
    }  # fmt: skip
    return ModelShape(
        "StableDiffusionPipeline",
        {
            "unet": ("UNet2DConditionModel", unet),
            "vae": ("AutoencoderKL", {**_VAE, "sample_size": 8 * side}),
            "text_encoder": ("CLIPTextModel", _CLIP_L),
        },
    )


def sdxl(side: int = 128) -> ModelShape:
    """Stable Diffusion XL: 2,567,463,684 weights in the U-Net, 4 x 128 x 128 latents.

    Args:
        side: Height and width of the latents.
    """
    unet: dict[str, Any] = {
        "sample_size": side, "in_channels": 4, "out_channels": 4, "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"], "layers_per_block": 2,
        "attention_head_dim": [5, 10, 20], "transformer_layers_per_block": [1, 2, 10], "cross_attention_dim": 2048,
        "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }  # fmt: skip
    return ModelShape(
        "StableDiffusionXLPipeline",
        {
            "unet": ("UNet2DConditionModel", unet),
            "vae": (
                "AutoencoderKL",
                {**_VAE, "sample_size": 8 * side, "scaling_factor": 0.13025, "force_upcast": True},
            ),
            "text_encoder": ("CLIPTextModel", _CLIP_L),
            "text_encoder_2": ("CLIPTextModelWithProjection", _CLIP_BIG_G),
        },
    )
