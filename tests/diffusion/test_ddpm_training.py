"""The loss that a class-conditional DDPM is trained by, against its equation."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from salun_diffusers.accelerator import engine
from salun_diffusers.diffusion.ddpm_config import TrainDDPMConfig
from salun_diffusers.diffusion.ddpm_training import noise_loss, scheduler
from salun_diffusers.pictures.labelled_pictures import LabelledPictures


class Listener(nn.Module):
    """Answers with a known tensor and keeps what it was asked."""

    def forward(self, noised: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        self.asked = noised, timesteps, labels
        return SimpleNamespace(sample=0.25 * noised)


@pytest.fixture
def images() -> LabelledPictures:
    """Class c is a picture of the level 40 (c + 1) everywhere."""
    labels = torch.arange(30) % 3
    pixels = (40 * (labels + 1)).to(torch.uint8).view(-1, 1, 1, 1).expand(30, 1, 4, 4).contiguous()
    return LabelledPictures(pixels, labels, ("a", "b", "c"))


def asked(images: LabelledPictures, **settings: object) -> tuple[float, tuple[torch.Tensor, ...]]:
    network = Listener()
    with engine(mixed_precision="no", gradient_accumulation_steps=1, report_to=None) as accelerator:
        loss = noise_loss(images, TrainDDPMConfig(train_batch_size=400, **settings), accelerator)
        value = loss(network, 0, torch.Generator().manual_seed(0))
    return value.item(), network.asked


def test_pictures_are_noised_by_the_schedule_and_the_error_is_that_of_the_noise(images: LabelledPictures) -> None:
    """x_t = √ᾱ x₀ + √(1-ᾱ) ε, with x₀ = level/127.5 - 1 of the class that is asked for; ε follows from it."""
    value, (noised, timesteps, labels) = asked(images, condition_drop=0.0)
    alpha = scheduler().alphas_cumprod[timesteps].double().view(-1, 1, 1, 1)
    clean = (40 * (labels + 1)).double().view(-1, 1, 1, 1) / 127.5 - 1
    noise = (noised.double() - alpha.sqrt() * clean) / (1 - alpha).sqrt()
    assert (noise.mean().abs() < 0.05) and (noise.std() - 1).abs() < 0.05
    early = timesteps < 50  # Little noise there: any other mixture would show.
    assert early.any() and (noise[early].std() - 1).abs() < 0.2
    assert value == pytest.approx((0.25 * noised.double() - noise).square().mean().item(), rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_the_share_of_pictures_without_a_class(images: LabelledPictures, share: float) -> None:
    """The null class is the number after the last one; 400 draws: standard error 0.02."""
    _, (_, _, labels) = asked(images, condition_drop=share)
    assert (labels == 3).float().mean().item() == pytest.approx(share, abs=0.06)


def test_an_excluded_class_is_never_shown(images: LabelledPictures) -> None:
    _, (_, _, labels) = asked(images, condition_drop=0.0, exclude_class="b")
    assert set(labels.tolist()) == {0, 2}
