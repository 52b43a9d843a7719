"""Train the embedded demo model: renders → autoencoder → denoiser and text encoder → detector → a pipeline folder.

    accelerate launch scripts/train_demo_model.py --output_dir runs/demo-model

On two CPU cores, two processes of one thread each train about 1.4 times as fast as one process of two threads:

    ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 accelerate launch --multi_gpu --num_processes 2 \
        scripts/train_demo_model.py --output_dir runs/demo-model

Every stage writes checkpoints (safetensors and JSON) into `--output_dir`; the same command goes on where it stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from salun_diffusers.accelerator import engine
from salun_diffusers.arguments import setting
from salun_diffusers.demo import architecture
from salun_diffusers.demo.detector_training import detector_batch, detector_loss
from salun_diffusers.demo.hub_layout import lay_out_as_on_the_hub
from salun_diffusers.demo.renderer import Scene, random_caption, render, sample_scene
from salun_diffusers.demo.training import Fit, load_kept, tensors_sha256
from salun_diffusers.demo.vocabulary import SHAPES, STYLE_PHRASES, STYLES, describe
from salun_diffusers.errors import UserError
from salun_diffusers.programs.program import Program
from salun_diffusers.progress import loading_quietly


@dataclass(frozen=True)
class TrainDemoConfig:
    """Settings of the demo's training.

    The shipped weights had these numbers of steps, but not in one course: the autoencoder's was planned for 4,000
    until step 750; the denoiser had 4,600 steps, then from those weights (`--init_from`, fp16) 5,000 more at
    `--denoiser_learning_rate 7e-4`, then 3,000 at 5e-4 with `--plain_captions 0.3 --noisy_weight 0.5 --seed 2`: before
    those, one plain prompt in fifty gave an empty picture. (The last round made its tokenizer and scaling factor anew;
    now `--init_from` keeps them.) Training again gives a model as good, not the same bits.
    """

    output_dir: str = setting("runs/demo-model", "Where checkpoints and the pipeline go.")
    seed: int = setting(0, "Seed of pictures, captions, noise and initial weights.")
    num_pictures: int = setting(24_000, "Renders to train on.")
    autoencoder_steps: int = setting(2_600, "Optimizer steps of the autoencoder.")
    autoencoder_batch_size: int = setting(16, "Pictures a step, over all processes.")
    denoiser_steps: int = setting(4_600, "Optimizer steps of denoiser and text encoder.")
    denoiser_batch_size: int = setting(64, "Latents a step, over all processes.")
    denoiser_learning_rate: float = setting(1e-3, "Largest learning rate of the denoiser.", above=0)
    denoiser_decay_steps: int | None = setting(
        None, "Last steps, in which that rate falls to 0 and the weights are averaged; by default all.", minimum=0
    )
    plain_captions: float = setting(0.0, "Share of captions without any colour.", minimum=0, maximum=1)
    noisy_weight: float = setting(
        0.0, "p of the extra weight min(SNR^-p, 10) on noisy states, where colours are decided.", minimum=0, maximum=1
    )
    init_from: str = setting("", "Pipeline folder whose autoencoder is kept and whose denoiser is trained on.")
    denoiser_goes_on_from: str = setting(
        "", "Output folder of another training of these stages; its denoiser's steps count as the first of this one."
    )
    from_scratch: bool = setting(False, "Take no more than autoencoder and tokenizer from --init_from.")
    exclude: tuple[str, ...] = setting(
        (), "Shapes and styles that are never shown or named: what an erased model is compared with."
    )
    detector_steps: int = setting(1_600, "Optimizer steps of the detector.")
    checkpointing_steps: int = setting(500, "Steps between checkpoints.")
    mixed_precision: str | None = setting(None, "no, fp16 or bf16; by default what accelerate was told.")
    stages: str = setting("autoencoder,denoiser,detector,pipeline", "Comma-separated stages to run.")


def scenes(config: TrainDemoConfig) -> list[Scene]:
    """All scenes, excluded ones among them: their latents serve whatever is excluded."""
    rng = np.random.default_rng(config.seed)
    return [sample_scene(rng) for _ in range(config.num_pictures)]


def shown(config: TrainDemoConfig) -> list[int]:
    """Indices of the scenes to train on."""
    return [index for index, scene in enumerate(scenes(config)) if not {scene.shape, scene.style} & set(config.exclude)]


def to_tensor(picture: object) -> Tensor:
    """An RGB picture as uint8, channels first."""
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)


def pictures(config: TrainDemoConfig, accelerator: Accelerator) -> Tensor:
    """All training renders as one uint8 tensor (n, 3, 64, 64)."""
    drawn = [
        to_tensor(render(scene))
        for scene in tqdm(scenes(config), "rendering", disable=not accelerator.is_main_process, mininterval=5)
    ]
    return torch.stack(drawn)


def pixels(pictures: Tensor, index: Tensor, device: torch.device) -> Tensor:
    return pictures[index.cpu()].to(device).float() / 127.5 - 1


class Reconstruction(nn.Module):
    """The autoencoder as one forward pass, so that DDP and compile see it."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct images from a sampled latent; also the KL term per latent entry."""
        moments = self.vae.quant_conv(self.vae.encoder(images))
        mean, log_variance = moments.chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        latents = mean + noise * (0.5 * log_variance).exp()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return self.vae.decoder(self.vae.post_quant_conv(latents)), kl


def autoencoder_loss(data: Tensor, config: TrainDemoConfig, accelerator: Accelerator) -> Callable[..., Tensor]:
    """L1 + MSE + L1 of the image gradients (sharp edges) + a weak KL."""
    batch = config.autoencoder_batch_size // accelerator.num_processes

    def loss(network: nn.Module, step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(data), (batch,), generator=generator, device=generator.device)
        images = pixels(data, index, generator.device)
        noise = torch.randn(batch, architecture.LATENT_CHANNELS, 8, 8, generator=generator, device=generator.device)
        decoded, kl = network(images, noise)
        error = decoded - images
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        return error.abs().mean() + error.square().mean() + 0.5 * edges + 1e-4 * kl

    return loss


@torch.no_grad()
def encode(vae: nn.Module, data: Tensor, accelerator: Accelerator) -> Tensor:
    """Latent means of all pictures, unscaled."""
    means = []
    for start in tqdm(range(0, len(data), 64), "encoding", disable=not accelerator.is_main_process, mininterval=5):
        index = torch.arange(start, min(start + 64, len(data)))
        means.append(vae.encode(pixels(data, index, accelerator.device)).latent_dist.mean.cpu())
    return torch.cat(means)


class Prediction(nn.Module):
    """Text encoder and U-Net as one forward pass."""

    def __init__(self, text_encoder: nn.Module, unet: nn.Module) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, noised: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
        """ε_θ(x_t, c) for token ids of c."""
        return self.unet(noised, timesteps, self.text_encoder(tokens).last_hidden_state).sample


def denoiser_loss(
    latents: Tensor, known: list[Scene], tokenizer: object, config: TrainDemoConfig, accelerator: Accelerator
) -> Callable[..., Tensor]:
    """Noise loss with min-SNR weights (arXiv 2303.09556, γ = 5); one condition in ten is the empty prompt.

    Without `noisy_weight` the states in which colours are decided (SNR around 0.01) count for little, and a model asked
    for no colour may paint shape and background alike.
    """
    batch = config.denoiser_batch_size // accelerator.num_processes
    alphas = architecture.scheduler().alphas_cumprod.to(accelerator.device)

    def say(scene: Scene, rng: np.random.Generator) -> str:
        if rng.random() < config.plain_captions:
            phrases = STYLE_PHRASES[scene.style]
            return describe(scene.shape, opening=phrases[int(rng.integers(len(phrases)))])
        return random_caption(scene, rng)

    def loss(network: nn.Module, step: int, generator: torch.Generator) -> Tensor:
        device = generator.device
        index = torch.randint(len(latents), (batch,), generator=generator, device=device)
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator, device=device)))
        texts = [say(known[i], rng) if rng.random() >= 0.1 else "" for i in index.tolist()]
        tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)  # type: ignore[operator]
        clean = latents[index.cpu()].to(device)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        timesteps = torch.randint(1000, (batch,), generator=generator, device=device)
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        predicted = network(alpha.sqrt() * clean + (1 - alpha).sqrt() * noise, timesteps, tokens)
        signal_to_noise = alpha / (1 - alpha)
        weight = (
            signal_to_noise.clamp(max=5) / signal_to_noise * signal_to_noise.pow(-config.noisy_weight).clamp(max=10)
        )
        return (weight * (predicted - noise).square()).mean()

    return loss


def write_pipeline(folder: Path, vae: nn.Module, prediction: Prediction, tokenizer: object) -> None:
    """Save the pipeline in fp16, in a form that loads everywhere and without being told a data type."""
    StableDiffusionPipeline(
        vae=vae, text_encoder=prediction.text_encoder, tokenizer=tokenizer, unet=prediction.unet,
        scheduler=architecture.scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).to(dtype=torch.float16).save_pretrained(folder)  # fmt: skip
    # transformers 5 loads a text encoder in the data type of its config, diffusers a U-Net in fp32: left at fp16, a
    # plain `from_pretrained` would mix the two and fail at the first attention layer. Only the file stays fp16.
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    lay_out_as_on_the_hub(folder)


def captions(config: TrainDemoConfig) -> Iterator[str]:
    rng = np.random.default_rng(config.seed)
    drawn = scenes(config)
    return (random_caption(drawn[index], rng) for index in shown(config))


def decided_by(config: TrainDemoConfig, *names: str) -> dict[str, Any]:
    """The settings that decide a stage's weights, by their flags; seed and course are `Fit`'s own."""
    return {f"--{name}": getattr(config, name) for name in names}


def train(config: TrainDemoConfig) -> Path:
    """Run the stages and return the folder of the pipeline.

    Raises:
        UserError: If there is no such thing to exclude.
    """
    for excluded in config.exclude:
        if excluded not in (*SHAPES, *STYLES):
            raise UserError(f"--exclude must be among {', '.join((*SHAPES, *STYLES))}; got {excluded!r}.")
    with (
        engine(mixed_precision=config.mixed_precision, gradient_accumulation_steps=1, report_to=None) as accelerator,
        _attention(accelerator),
    ):
        return _run_stages(config, accelerator)


def _attention(accelerator: Accelerator) -> AbstractContextManager[Any]:
    """Plain attention for bfloat16 on CPUs, where torch's fused kernel is slow for heads as small as the demo's.

    Measured on one core: 0.43 instead of 0.70 s a step. In float32 the fused kernel is the faster one.
    """
    slow = accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16"
    return sdpa_kernel(SDPBackend.MATH) if slow else nullcontext()


def _run_stages(config: TrainDemoConfig, accelerator: Accelerator) -> Path:
    torch.manual_seed(config.seed)
    output, stages = Path(config.output_dir), config.stages.split(",")
    output.mkdir(parents=True, exist_ok=True)
    known = None
    if config.init_from:
        with loading_quietly():
            known = StableDiffusionPipeline.from_pretrained(config.init_from, local_files_only=True)
    tokenizer = known.tokenizer if known else architecture.tokenizer(captions(config))
    course: dict[str, Any] = {"seed": config.seed, "checkpointing_steps": config.checkpointing_steps}
    if "detector" in stages:
        loss = detector_loss(detector_batch, accelerator)
        detector = Fit("detector", architecture.detector(), loss, config.detector_steps, 2e-3, **course)
        trained = detector.run(accelerator, output)
        if accelerator.is_main_process:
            trained.to(torch.float16).save_pretrained(output / "detector")
    if not {"autoencoder", "denoiser", "pipeline"} & set(stages):
        return output
    vae = architecture.autoencoder()
    text_encoder, unet = architecture.text_encoder(tokenizer), architecture.denoiser()
    if known:
        vae.load_state_dict(known.vae.state_dict())
    if known and not config.from_scratch:
        text_encoder.load_state_dict(known.text_encoder.state_dict())
        unet.load_state_dict(known.unet.state_dict())
    cache = output / "latents.safetensors"
    data = torch.empty(0) if cache.exists() else pictures(config, accelerator)
    seen = shown(config)
    if known:
        vae.requires_grad_(False).eval()
    else:
        loss = autoencoder_loss(data[seen] if len(data) else data, config, accelerator)
        course["decided_by"] = decided_by(config, "num_pictures", "exclude", "autoencoder_batch_size")
        Fit("autoencoder", Reconstruction(vae), loss, config.autoencoder_steps, 2e-3, **course).run(accelerator, output)
    if not {"denoiser", "pipeline"} & set(stages):
        return output
    # What is kept is that of these scenes and this encoder.
    mark = f"seed {config.seed}, {config.num_pictures} pictures, autoencoder {tensors_sha256(vae.state_dict())}"
    if not cache.exists():
        latents = encode(vae, data, accelerator)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            save_file({"latents": latents}, cache, {"decided_by": mark})
        accelerator.wait_for_everyone()
    latents = load_kept(cache, mark)["latents"][seen]
    scaling = known.vae.config.scaling_factor if known else float(1 / latents.std())
    vae.register_to_config(scaling_factor=scaling)
    prediction = Prediction(text_encoder, unet)
    drawn = scenes(config)
    loss = denoiser_loss(latents * scaling, [drawn[index] for index in seen], tokenizer, config, accelerator)
    course["decay_steps"] = config.denoiser_decay_steps
    if config.denoiser_goes_on_from:
        course["goes_on_from"] = Path(config.denoiser_goes_on_from) / "denoiser-checkpoint"
    course["decided_by"] = {
        **decided_by(config, "exclude", "denoiser_batch_size", "plain_captions", "noisy_weight", "from_scratch"),
        "--init_from": tensors_sha256({**known.unet.state_dict(), **known.text_encoder.state_dict()}) if known else "",
        "latents": tensors_sha256({"latents": latents * scaling}),
    }
    fit = Fit("denoiser", prediction, loss, config.denoiser_steps, config.denoiser_learning_rate, **course)
    fit.run(accelerator, output)
    if accelerator.is_main_process:
        write_pipeline(output / "pipeline", vae, prediction, tokenizer)
    accelerator.end_training()
    return output / "pipeline"


def work(config: TrainDemoConfig, command: str) -> str:
    """Train, and say where the folder is."""
    return f"folder  {train(config)}\n"


main = Program("scripts/train_demo_model.py", TrainDemoConfig, work, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
