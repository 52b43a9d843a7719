"""Tiny models to probe, and a judge whose word can be worked out: whether a picture is light on its left half."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel
from PIL import Image

from salun_diffusers.adapters.lora_folder import write_lora
from salun_diffusers.adapters.lora_weights import attached
from salun_diffusers.diffusion.families.ddpm import ClassConditionalDDPM
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.diffusion.families.stable_diffusion_xl import StableDiffusionXL
from salun_diffusers.red_team.attack import Case, Contest
from salun_diffusers.red_team.judge import Judge
from salun_diffusers.red_team.practice import ByLora, practising
from salun_diffusers.red_team.probe import Evidence
from salun_diffusers.red_team.subject import Drawing, Subject
from salun_diffusers.seeds import stream

CPU = torch.device("cpu")
FAMILIES = {"tiny_pipeline": StableDiffusion, "sd14": StableDiffusion, "sdxl": StableDiffusionXL,
            "tiny_ddpm": ClassConditionalDDPM}  # fmt: skip


@dataclass(frozen=True)
class Lightness:
    """Sees ``light`` where the left half of a picture is lighter than a limit."""

    limit: float = 127.0
    protocol = "lightness"

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        halves = [np.asarray(picture.convert("L"))[:, : picture.width // 2] for picture in pictures]
        return [frozenset({"light"} if half.mean() > self.limit else {}) for half in halves]


@cache
def _loaded(folder: Path, kind: str) -> Any:
    return FAMILIES[kind](folder, device=CPU)


def subject(folder: Path, kind: str, name: str = "erased", *, steps: int = 3, guidance: float = 2.0) -> Subject:
    """A model of one of the fixtures' kinds, drawing two pictures at once; the scheduler is its own, weights not."""
    family = copy.copy(_loaded(folder, kind))
    family.pipe = copy.copy(family.pipe)
    return Subject(family, name, name, Drawing("own", steps, guidance, 2))


def evidence(target: Subject, base: Subject, cases: int = 3, limit: float = 0.0) -> Evidence:
    """A contest about prompts that the model reads; at a limit of 0 every picture is a hit, at 255 none."""
    words = ["cat", "dog"] if isinstance(target.family, ClassConditionalDDPM) else ["a star", "a photo of a circle"]
    judge = Judge(Lightness(limit), frozenset({"light"}))
    asked = tuple(Case(words[number % 2], 100 + number) for number in range(cases))
    return Evidence(Contest(target, base, judge, "light"), asked)


def state(one: Subject) -> dict[str, Any]:
    """All that could be changed of a model: every tensor of every part, and what requires a gradient."""
    found: dict[str, Any] = {}
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        network = getattr(one.family.pipe, part, None)
        if network is not None:
            found |= {f"{part}.{name}": tensor.clone() for name, tensor in network.state_dict().items()}
            found |= {f"{part}.{name} trained": parameter.requires_grad for name, parameter in
                      network.named_parameters()}  # fmt: skip
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two states are equal to the bit."""
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


def added(folder: Path, kind: str, place: Path) -> tuple[Path, Path]:
    """A LoRA and a ControlNet for a pipeline, as diffusers saves them."""
    student = practising(subject(folder, kind))
    net: Any = ControlNetModel.from_unet(student.family.denoiser, conditioning_embedding_out_channels=(16, 16, 16))
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, generator=stream(0, "net"))
    net.save_pretrained(place / "net")
    for weight in ByLora(2).weights(student.family.denoiser, 0).weights:
        torch.nn.init.normal_(weight.data, generator=stream(0, "lora"))
    write_lora(place / "lora", attached(student.family.denoiser, "relearned"), {})
    return place / "lora", place / "net"
