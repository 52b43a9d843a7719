"""The demo's networks, untrained: each is the stock class of its library with a small configuration."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, ResNetConfig, ResNetForImageClassification

from salun_diffusers.demo.hub_layout import pairs, write_vocabulary
from salun_diffusers.demo.renderer import SIZE
from salun_diffusers.demo.vocabulary import COLOURS, SHAPES, STYLES

LATENT_CHANNELS = 8
MAX_TOKENS = 16
DETECTOR_LABELS = (
    *(f"shape:{name}" for name in (*SHAPES, "none")),
    *(f"colour:{name}" for name in COLOURS),
    *(f"background:{name}" for name in COLOURS),
    *(f"style:{name}" for name in STYLES),
)


def autoencoder() -> AutoencoderKL:
    """64 x 64 pixels to 8 x 8 x 8 latents and back (0.95 M weights)."""
    channels = (16, 32, 64, 64)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=1,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )
    # Start linear: orthogonal convolutions, and residual branches that add nothing yet. With the default
    # initialisation the loss stays for hundreds of steps at that of a flat picture; so it falls at once
    # (measured: 18.5 dB after 150 steps, where 230 default steps had learned nothing).
    modules: nn.Module = vae  # type: ignore[assignment]  # mypy does not see through diffusers' mixins
    for name, module in modules.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.orthogonal_(module.weight)
            nn.init.constant_(torch.as_tensor(module.bias), 0)
            if name.endswith("conv2"):
                nn.init.zeros_(module.weight)
    return vae


def denoiser() -> UNet2DConditionModel:
    """The U-Net on 8 x 8 latents, with cross-attention at both levels (4.29 M weights)."""
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ over the linear noise schedule of DDPM, whose last step is nearly pure noise."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        timestep_spacing="trailing",
        steps_offset=1,  # as Stable Diffusion has it; without effect under this spacing
        prediction_type="epsilon",
    )


def tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """Byte-level BPE in CLIP's form in which every word of `captions` is one token; other words fall into pieces."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trained.train_from_iterator(
        captions, trainers.BpeTrainer(vocab_size=4000, end_of_word_suffix="</w>", show_progress=False)
    )
    pieces = trained.get_vocab()
    merges = pairs(json.loads(trained.to_str())["model"]["merges"])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary: dict[str, int] = {}
    for piece in [*alphabet, *(letter + "</w>" for letter in alphabet), *sorted(pieces, key=pieces.__getitem__)]:
        vocabulary.setdefault(piece, len(vocabulary))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    # Through files, as hub models come: transformers 4 and 5 name the constructor's arguments differently.
    with tempfile.TemporaryDirectory(prefix="salun-") as folder:
        write_vocabulary(Path(folder), vocabulary, merges)
        made: CLIPTokenizer = CLIPTokenizer.from_pretrained(
            folder, model_max_length=MAX_TOKENS, pad_token="<|endoftext|>"
        )
    return made


def text_encoder(tokens: CLIPTokenizer) -> CLIPTextModel:
    """A two-layer CLIP text model (0.35 M weights)."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="gelu",
            bos_token_id=tokens.bos_token_id,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
    )


def detector() -> ResNetForImageClassification:
    """A small ResNet whose logits fall into four groups: shape (or none), colour, background, style."""
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=16,
            hidden_sizes=[16, 32, 64, 96],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            id2label=dict(enumerate(DETECTOR_LABELS)),
            label2id={label: index for index, label in enumerate(DETECTOR_LABELS)},
            problem_type="multi_label_classification",
        )
    )
