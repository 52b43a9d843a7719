"""Subjects, judges and contests for tests of attacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image

from salun_diffusers.diffusion.families.ddpm import ClassConditionalDDPM
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.diffusion.families.stable_diffusion_xl import StableDiffusionXL
from salun_diffusers.red_team.attack import Contest
from salun_diffusers.red_team.judge import Judge
from salun_diffusers.red_team.subject import Drawing, Subject


class Looks:
    """A detector that asks a function."""

    protocol = "by hand"

    def __init__(self, sees: Callable[[Image.Image], bool]) -> None:
        self.sees, self.shown = sees, list[Image.Image]()

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        self.shown += pictures
        return [frozenset({"it"} if self.sees(picture) else ()) for picture in pictures]


def subject_of(folder: Path, name: str = "erased", fingerprint: str = "f" * 64) -> Subject:
    """A folder of the fixtures as one that is attacked."""
    kinds = {"StableDiffusionXLPipeline": StableDiffusionXL, "ClassConditionalDDPMPipeline": ClassConditionalDDPM}
    index = (folder / "model_index.json").read_text()
    kind = next((kind for word, kind in kinds.items() if f'"{word}"' in index), StableDiffusion)
    return Subject(kind(folder, device=torch.device("cpu")), name, fingerprint, Drawing("own", 2, 2.0, 4))


def contest_of(subject: Subject, sees: Callable[[Image.Image], bool] = lambda _: False) -> tuple[Contest, Looks]:
    """A model against itself, and the eyes of its judge."""
    looks = Looks(sees)
    return Contest(subject, subject, Judge(looks, frozenset({"it"})), "star"), looks
