"""Train a class-conditional DDPM with classifier-free guidance, from pictures to a pipeline folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor, nn

from salun_diffusers.accelerator import engine, start_trackers
from salun_diffusers.demo.training import Fit, tensors_sha256
from salun_diffusers.diffusion.ddpm_config import TrainDDPMConfig
from salun_diffusers.errors import UserError
from salun_diffusers.files.output_places import require_writable
from salun_diffusers.pictures.labelled_pictures import LabelledPictures
from salun_diffusers.pictures.picture_sources import load_pictures
from salun_diffusers.pipelines.class_conditional_ddpm import ClassConditionalDDPMPipeline


def network(config: TrainDDPMConfig, classes: int) -> Any:
    """The U-Net: attention at the lowest level and in the middle, one embedding per class and one for none."""
    try:
        channels = tuple(int(text) for word in config.block_out_channels for text in word.split(","))
    except ValueError as error:
        raise UserError(f"--block_out_channels must be whole numbers, got {config.block_out_channels}.") from error
    lowest = len(channels) - 1
    return UNet2DModel(
        sample_size=config.resolution,
        in_channels=config.channels,
        out_channels=config.channels,
        block_out_channels=channels,
        layers_per_block=config.layers_per_block,
        down_block_types=("DownBlock2D",) * lowest + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * lowest,
        norm_num_groups=config.norm_num_groups,
        dropout=config.dropout,
        attention_head_dim=16,
        num_class_embeds=classes + 1,
    )


def noise_loss(
    images: LabelledPictures, config: TrainDDPMConfig, accelerator: Accelerator
) -> Callable[[nn.Module, int, torch.Generator], Tensor]:
    """ℓ = mean (ε - ε_θ(x_t, c))², with c the null class for a share of the pictures (arXiv 2207.12598)."""
    batch = max(1, config.train_batch_size // accelerator.num_processes)
    alphas = scheduler().alphas_cumprod.to(accelerator.device)
    kept = torch.arange(len(images.labels))
    if config.exclude_class is not None:
        kept = kept[images.labels != images.class_names.index(config.exclude_class)]
    null = len(images.class_names)

    def loss(model: nn.Module, step: int, generator: torch.Generator) -> Tensor:
        device = generator.device
        index = kept[torch.randint(len(kept), (batch,), generator=generator, device=device).cpu()]
        clean = images.pixels[index].to(device).float() / 127.5 - 1
        if config.random_flip:
            mirrored = torch.rand(batch, 1, 1, 1, generator=generator, device=device) < 0.5
            clean = torch.where(mirrored, clean.flip(3), clean)
        labels = images.labels[index].to(device)
        dropped = torch.rand(batch, generator=generator, device=device) < config.condition_drop
        labels = labels.masked_fill(dropped, null)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        timesteps = torch.randint(len(alphas), (batch,), generator=generator, device=device)
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        predicted = model(alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, timesteps, labels).sample
        error: Tensor = predicted.float() - noise
        return error.square().mean()

    return loss


def decided_by(config: TrainDDPMConfig, images: LabelledPictures) -> dict[str, Any]:
    """Everything that decides the weights, for `Fit`: all settings but the named ones, and the pictures themselves."""
    elsewhere = {"train_data", "output_dir", "checkpointing_steps", "save_dtype", "report_to"}  # Not in the weights.
    of_fit = {"max_train_steps", "mixed_precision"}  # `Fit` knows the course, and the engine its precision.
    settings = {f"--{name}": value for name, value in asdict(config).items() if name not in elsewhere | of_fit}
    pictures = tensors_sha256({"pixels": images.pixels, "labels": images.labels})
    return {**settings, "classes": images.class_names, "pictures": pictures}


def scheduler() -> Any:
    """DDPM's linear noise, sampled by DDIM from the last step on."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=True,
        timestep_spacing="trailing",
    )


def train(config: TrainDDPMConfig) -> Path:
    """Train and save.

    Raises:
        UserError: If the pictures cannot be had or the settings do not fit them.
    """
    if config.save_dtype not in ("float32", "float16", "bfloat16"):
        raise UserError(f"--save_dtype must be float32, float16 or bfloat16, got {config.save_dtype!r}.")
    if config.channels == 2:
        raise UserError("--channels must be 1 (grey) or 3 (colour), got 2.")
    require_writable(config.output_dir, "--output_dir")
    images = load_pictures(config.train_data)[0].with_channels(config.channels).resized(config.resolution)
    if config.exclude_class is not None and config.exclude_class not in images.class_names:
        raise UserError(
            f"--exclude_class must be one of {', '.join(images.class_names)}; got {config.exclude_class!r}."
        )
    if len(images.class_names) < 2:
        raise UserError(f"At least two classes are required, {config.train_data} has {len(images.class_names)}.")
    output = Path(config.output_dir)
    with engine(
        mixed_precision=config.mixed_precision, gradient_accumulation_steps=1, report_to=config.report_to
    ) as accelerator:
        torch.manual_seed(config.seed)
        output.mkdir(parents=True, exist_ok=True)
        start_trackers(accelerator, output, "salun_diffusers", asdict(config))
        unet = network(config, len(images.class_names))
        fit = Fit(
            name="ddpm",
            module=unet,
            loss=noise_loss(images, config, accelerator),
            steps=config.max_train_steps,
            learning_rate=config.learning_rate,
            seed=config.seed,
            checkpointing_steps=config.checkpointing_steps,
            ema_decay=config.ema_decay,
            max_grad_norm=config.max_grad_norm,
            decided_by=decided_by(config, images),
        )
        fit.run(accelerator, output)
        if accelerator.is_main_process:
            unet.to(dtype=getattr(torch, config.save_dtype))
            pipeline = ClassConditionalDDPMPipeline(unet, scheduler(), dict(enumerate(images.class_names)))
            pipeline.save_pretrained(output / "pipeline")
            (output / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
        accelerator.end_training()
    return output / "pipeline"
