"""What users put onto a model, and a concept may come in with: LoRAs for drawing in few steps, and ControlNets."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor

from salun_diffusers.diffusion.families.family import Conditions, rows
from salun_diffusers.diffusion.families.latent_unet import LatentUNetFamily
from salun_diffusers.diffusion.families.stable_diffusion_xl import StableDiffusionXL
from salun_diffusers.errors import UserError, one_line
from salun_diffusers.evaluation.drawing_pipeline import replace_scheduler, require_steps, scheduler_class
from salun_diffusers.files.whole_files import check_whole, sha256_of
from salun_diffusers.progress import loading_quietly
from salun_diffusers.red_team.attack import Told
from salun_diffusers.red_team.practice import practising
from salun_diffusers.red_team.probe import Curve, Evidence, Point, Reading
from salun_diffusers.red_team.sampling_loop import generators
from salun_diffusers.red_team.side_doors import OWN, asked, seen_through
from salun_diffusers.red_team.subject import Subject
from salun_diffusers.seeds import random_state_kept

_NAME, _SCHEDULER = "few_steps", "--few_step_scheduler"
_SHARED = (
    "in_channels",
    "cross_attention_dim",
    "block_out_channels",
    "layers_per_block",
    "addition_embed_type",
    "scale",
)
_HALVES = (".lora_A.", ".lora_down.", ".lora.down.", "_lora.down.")


def lora_file(place: Path) -> Path:
    """The file of a LoRA, which may be named by its folder.

    Raises:
        UserError: If there is none, several, or no safetensors.
    """
    if place.is_file() and place.suffix == ".safetensors":
        return place
    found = sorted(place.glob("*.safetensors")) if place.is_dir() else []
    usual = [file for file in found if file.name == "pytorch_lora_weights.safetensors"]
    if len(usual or found) != 1:
        there = ", ".join(file.name for file in found[:4]) or ("no such file" if not place.exists() else "none")
        raise UserError(f"{place} must be a LoRA's .safetensors file, or a folder with one; found {there}.")
    return (usual or found)[0]


@final
@dataclass(frozen=True)
class FewSteps:
    """Draw plain prompts with a LoRA for few steps (LCM, arXiv 2311.05556, and its kind) on the model.

    It is trained on an unerased model, so that what it adds may be what an erasure took away.

    Args:
        place: Its file, or folder.
        steps: Sampling steps.
        guidance: Classifier-free guidance; such LoRAs are made for 1, none.
        scheduler: Class of diffusers that the LoRA is made for.

    Raises:
        UserError: If there are no steps, no such file, or no such scheduler.
    """

    place: Path
    steps: int = 4
    guidance: float = 1.0
    scheduler: str = "LCMScheduler"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.guidance < 0:
            raise UserError(f"One step or more and no negative guidance are required, got {self.steps} steps and "
                            f"guidance {self.guidance:g}.")  # fmt: skip
        lora_file(self.place)
        scheduler_class(self.scheduler, _SCHEDULER)

    def __repr__(self) -> str:
        """By its contents: what is kept of a probe goes by this, and another file may come to lie at the same place."""
        return f"FewSteps({sha256_of(lora_file(self.place))}, {self.steps}, {self.guidance:g}, {self.scheduler})"

    @property
    def name(self) -> str:
        """With that of the file or folder."""
        return f"few-step LoRA {self.place.stem}"

    def amount(self, cases: int) -> int:
        """Pictures drawn."""
        return cases

    def equipped(self, subject: Subject) -> Subject:
        """A copy of the model with the LoRA, loaded by diffusers.

        Raises:
            UserError: If it is of another model.
        """
        file = lora_file(self.place)
        student = practising(subject, "text_encoder", "text_encoder_2")
        pipe, network = student.family.pipe, student.family.denoiser
        if not hasattr(pipe, "load_lora_weights"):
            raise UserError(f"{file} is a LoRA, and {type(pipe).__name__} of {subject.family.folder} loads none.")
        halves = [key for key in check_whole(file) if any(half in key for half in _HALVES)]
        wanted = sum(not key.startswith(("text_encoder", "lora_te")) for key in halves)
        try:
            with _silently():
                pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=_NAME,
                                       local_files_only=True)  # fmt: skip
        except Exception as error:  # Of what does not fit, diffusers and PEFT say so in many ways.
            raise _foreign(file, subject, one_line(error, 160)) from error
        found = sum(_NAME in getattr(module, "lora_A", ()) for module in network.modules())
        if not found or found < wanted:
            raise _foreign(file, subject, f"{found} of its {wanted} layers are there")
        with _silently():
            replace_scheduler(pipe, self.scheduler, _SCHEDULER)
        require_steps(pipe, self.steps, "--few_steps", _SCHEDULER)
        drawing = replace(
            subject.drawing, scheduler=self.scheduler, num_inference_steps=self.steps, guidance_scale=self.guidance
        )
        return replace(student, drawing=drawing)

    def __call__(self, subject: Subject, evidence: Evidence, told: Told) -> Reading:
        """A rate."""
        with random_state_kept():
            equipped = self.equipped(subject)
            seen = evidence.contest.judge.hits(equipped.drawn(evidence.prompts, evidence.seeds))
            told(len(seen))
        curve = Curve(f"{self.name}, {OWN}", subject.name, "steps", (Point.of(self.steps, seen),))
        return Reading((curve,))


def edges(pictures: Sequence[Image.Image], limit: float = 0.2) -> list[Image.Image]:
    """White lines on black where the lightness of a picture changes: Sobel's gradient above a share of its largest."""
    found = []
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    both = torch.stack([kernel, kernel.T]).unsqueeze(1)
    for picture in pictures:
        grey = picture.convert("L")
        pixels = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).float()
        framed = F.pad(pixels.view(1, 1, grey.height, grey.width), (1, 1, 1, 1), mode="replicate")
        slope = F.conv2d(framed, both).square().sum(dim=1)[0].sqrt()
        lines = (slope > limit * slope.max()).to(torch.uint8).mul(255).numpy()
        found.append(Image.fromarray(lines).convert("RGB"))
    return found


@final
@dataclass(frozen=True)
class WithControlNet:
    """Draw plain prompts along the edges of the base's pictures of the concept, by a ControlNet (arXiv 2302.05543).

    Args:
        place: Folder of a ControlNet that reads edges, as diffusers saves it.
        scale: How strongly it steers.

    Raises:
        UserError: If there is no such folder.
    """

    place: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (self.place / "config.json").is_file():
            raise UserError(f"{self.place} must be the folder of a ControlNet, with its config.json; it has none.")

    def __repr__(self) -> str:
        """By its contents, as that of `FewSteps`."""
        files = sorted((*self.place.glob("*.json"), *self.place.glob("*.safetensors")))
        return f"WithControlNet({[(file.name, sha256_of(file)) for file in files]}, {self.scale:g})"

    @property
    def name(self) -> str:
        """With that of the folder."""
        return f"ControlNet {self.place.name}"

    def amount(self, cases: int) -> int:
        """Pictures drawn."""
        return cases

    def equipped(self, subject: Subject) -> Any:
        """A pipeline of the model's own parts and the ControlNet.

        Raises:
            UserError: If that is none, or of another model.
        """
        family = subject.family
        if not isinstance(family, LatentUNetFamily):
            raise UserError(f"{self.place} is a ControlNet, and {family.folder} reads no prompts that it goes with.")
        try:
            with _silently():
                net: Any = ControlNetModel.from_pretrained(str(self.place), local_files_only=True, use_safetensors=True)
        except Exception as error:  # A folder can be wrong in any way.
            raise UserError(f"{self.place} cannot be loaded as a ControlNet: {one_line(error, 160)}.") from error
        network: Any = family.denoiser
        for key, own in (*network.config.items(), ("scale", family.pipe.vae_scale_factor)):
            found = (
                2 ** (len(net.config["conditioning_embedding_out_channels"]) - 1)
                if key == "scale"
                else net.config.get(key)
            )
            if key in _SHARED and _plain(found) != _plain(own):
                raise _foreign(self.place, subject, f"its {key} is {found}, the model's {own}")
        xl = isinstance(family, StableDiffusionXL)
        kind: Any = StableDiffusionXLControlNetPipeline if xl else StableDiffusionControlNetPipeline
        takes = inspect.signature(kind.__init__).parameters
        parts = {name: part for name, part in family.pipe.components.items() if name in takes}
        parts |= {"add_watermarker": False} if xl else {"requires_safety_checker": False}
        pipe = kind(**parts, controlnet=net.to(family.device).eval().requires_grad_(False))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def __call__(self, subject: Subject, evidence: Evidence, told: Told) -> Reading:
        """A rate."""
        with random_state_kept():
            pipe = self.equipped(subject)
            lines = edges(evidence.contest.base.decode(evidence.latents))

            def drawn(part: Tensor, conditions: Conditions, drawn_by: list[torch.Generator]) -> Tensor:
                shown = [lines[place] for place in part.tolist()]
                # At the seeds of the plain pictures, with the ControlNet as all that differs.
                plain = generators([evidence.seeds[place] for place in part.tolist()])
                return self._drawn(subject, pipe, conditions, plain, shown)

            seen = seen_through(subject, evidence, asked(subject, evidence)[OWN], (self.name, drawn), told)
        return Reading((Curve(f"{self.name}, {OWN}", subject.name, "scale", (Point.of(self.scale, seen),)),))

    @torch.no_grad()
    def _drawn(
        self, subject: Subject, pipe: Any, conditions: Conditions, drawn_by: list[torch.Generator], shown: Any
    ) -> Tensor:
        family: Any = subject.family
        empty = rows(family.encode([""]), torch.zeros(len(drawn_by), dtype=torch.int64))
        states = {word: conditions[name] for name, word in family.arguments.items()}
        states |= {f"negative_{word}": empty[name] for name, word in family.arguments.items()}
        with family.autocast():
            latents = pipe(
                **states, image=shown, generator=drawn_by, output_type="latent", height=family.side, width=family.side,
                num_inference_steps=subject.drawing.num_inference_steps,
                guidance_scale=subject.drawing.guidance_scale, controlnet_conditioning_scale=self.scale,
            ).images  # fmt: skip
        return torch.as_tensor(latents).float()


@contextmanager
def _silently() -> Iterator[None]:
    """Without remarks: diffusers logs what does not fit in many lines, and what is said of it here is one."""
    log: Any = diffusers_logging
    before = log.get_verbosity()
    log.set_verbosity(logging.CRITICAL)
    try:
        with loading_quietly():
            yield
    finally:
        log.set_verbosity(before)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _foreign(place: Path, subject: Subject, reason: str) -> UserError:
    return UserError(f"{place} does not fit {subject.family.folder}: {reason}. One made for that model is required.")
