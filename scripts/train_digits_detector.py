"""Train the classifier that judges digits, on scikit-learn's handwritten digits, and measure it on held-out ones.

    python scripts/train_digits_detector.py --output_dir runs/digits-detector

One fifth of the digits, drawn by class, is never trained on. An eleventh answer, "none of these", is trained on
blanks, noise, and pieces of two digits put together, so that a half-formed picture is not counted as a digit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification

from salun_diffusers.accelerator import engine
from salun_diffusers.arguments import ANY_SEED, setting
from salun_diffusers.demo.training import Fit, tensors_sha256
from salun_diffusers.pictures.picture_sources import load_pictures
from salun_diffusers.programs.program import Program
from salun_diffusers.reports.measurement import Measurement

LABELS = (*(f"digit:{number}" for number in range(10)), "digit:none")


@dataclass(frozen=True)
class DetectorConfig:
    """Settings of the training."""

    output_dir: str = setting("runs/digits-detector", "Where the checkpoint and `detector/` go.")
    steps: int = setting(1_500, "Optimizer steps.", minimum=1)
    batch_size: int = setting(64, "Pictures a step.", minimum=1)
    seed: int = setting(0, "Seed of weights, split and pictures.", minimum=0, maximum=ANY_SEED)


def classifier() -> ResNetForImageClassification:
    """A small ResNet on 32 x 32 grey pictures."""
    return ResNetForImageClassification(
        ResNetConfig(
            num_channels=1, embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic",
            id2label=dict(enumerate(LABELS)), label2id={label: number for number, label in enumerate(LABELS)},
        )
    )  # fmt: skip


def moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to 3 pixels, turn by up to 10 degrees, scale by 0.9 to 1.1."""
    count = len(images)

    def spread(width: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * width

    angle, scale = spread(0.175), 1 + spread(0.1)
    turn = torch.stack([scale * angle.cos(), -scale * angle.sin(), scale * angle.sin(), scale * angle.cos()], dim=1)
    shift = torch.stack([spread(3 / 16), spread(3 / 16)], dim=1)
    grid = F.affine_grid(torch.cat([turn.view(-1, 2, 2), shift.unsqueeze(2)], dim=2), list(images.shape), False)
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


def none_of_these(images: Tensor, generator: torch.Generator) -> Tensor:
    """A fifth each of blanks, noise, two digits over each other, halves of two digits, and pixels in random order."""
    other = images[torch.randperm(len(images), generator=generator)]
    noise = torch.randn(images.shape, generator=generator)
    left = torch.arange(images.shape[3]) < images.shape[3] // 2
    order = torch.randperm(images.shape[2], generator=generator)
    kinds = torch.stack(
        [
            torch.rand(len(images), 1, 1, 1, generator=generator).expand_as(images) * 2 - 1 + 0.05 * noise,
            (noise * 0.7).clamp(-1, 1),
            torch.maximum(images, other.flip(2)),
            torch.where(left, images, other.flip(2)),
            images[:, :, order],
        ]
    )
    choice = torch.randint(len(kinds), (len(images),), generator=generator)
    return kinds[choice, torch.arange(len(images))]


def detector_loss(
    pixels: Tensor, labels: Tensor, batch_size: int
) -> Callable[[nn.Module, int, torch.Generator], Tensor]:
    """Cross-entropy on moved, speckled digits; one picture in six is none of these."""

    def loss(network: nn.Module, step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(labels), (batch_size,), generator=generator)
        images, target = moved(pixels[index], generator), labels[index].clone()
        wrong = torch.rand(batch_size, generator=generator) < 1 / 6
        images = torch.where(wrong.view(-1, 1, 1, 1), none_of_these(images, generator), images)
        images = images + 0.1 * torch.rand(batch_size, 1, 1, 1, generator=generator) * torch.randn(
            images.shape, generator=generator
        )
        return F.cross_entropy(network(images).logits, target.masked_fill(wrong, 10))

    return loss


def run(config: DetectorConfig, command: str) -> str:
    """Train, save, measure, and return the accuracies as text."""
    images = load_pictures("digits")[0].resized(32)
    pixels = images.pixels.float() / 127.5 - 1
    train, test = train_test_split(
        torch.arange(len(pixels)).numpy(), test_size=0.2, random_state=config.seed, stratify=images.labels.numpy()
    )
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    with engine(mixed_precision="no", gradient_accumulation_steps=1, report_to=None) as accelerator:
        torch.manual_seed(config.seed)
        loss = detector_loss(pixels[train], images.labels[train], config.batch_size)
        seen = tensors_sha256({"pixels": pixels[train], "labels": images.labels[train]})
        decided = {"batch_size": config.batch_size, "pictures": seen}
        fit = Fit("detector", classifier(), loss, config.steps, 3e-3, seed=config.seed, decided_by=decided)
        trained = fit.run(accelerator, output)
    trained.to(torch.float16).save_pretrained(output / "detector")  # type: ignore[operator]
    trained.float()
    with torch.no_grad():
        held_out = trained(pixels[test]).logits.argmax(1)
        strange = trained(none_of_these(pixels[test], torch.Generator().manual_seed(1))).logits.argmax(1)
    lines = []
    for name, right, count in (
        ("held-out digits", int((held_out == images.labels[test]).sum()), len(test)),
        ("none of these", int((strange == 10).sum()), len(test)),
    ):
        rate = Measurement.rate(name, right, count, direction="higher", protocol="digits detector")
        lines.append(f"{name:<16} {rate.value:.3f}  [{rate.low:.3f}, {rate.high:.3f}]  n = {rate.n}\n")
    return "".join(lines)


main = Program("scripts/train_digits_detector.py", DetectorConfig, run, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
