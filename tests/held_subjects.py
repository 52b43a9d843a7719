"""Subjects of small pipelines, and judges that say what a test wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.diffusion.families.stable_diffusion_xl import StableDiffusionXL
from salun_diffusers.red_team.attack import Case, Contest
from salun_diffusers.red_team.judge import Judge
from salun_diffusers.red_team.subject import Drawing, Subject

CASES = (Case("a photo of a star", 7), Case("a star", 8), Case("a red heart on a blue background", 9))


def subject(folder: Path, name: str = "erased") -> Subject:
    """A pipeline that draws in two steps."""
    kind = StableDiffusionXL if (folder / "text_encoder_2").is_dir() else StableDiffusion
    return Subject(kind(folder, device=torch.device("cpu")), name, "0" * 64, Drawing("own", 2, 2.0, 8))


@dataclass
class Script:
    """A detector that says, look by look, whether each picture shows the concept.

    Args:
        looks: For each call, what is said of each picture; after the last, no to all.
        seen: How many pictures each call had.
    """

    looks: Sequence[Sequence[bool]] = ()
    seen: list[int] = field(default_factory=list)
    protocol = "as the test says"

    def labels(self, pictures: Sequence[Image.Image]) -> list[frozenset[str]]:
        """What the test says."""
        said = self.looks[len(self.seen)] if len(self.seen) < len(self.looks) else [False] * len(pictures)
        assert len(said) == len(pictures)
        self.seen.append(len(pictures))
        return [frozenset({"it"} if yes else ()) for yes in said]


def contest(target: Subject, base: Subject, looks: Sequence[Sequence[bool]] = (), **more: object) -> Contest:
    """Who is attacked, with a judge who says what the test wants."""
    return Contest(target, base, Judge(Script(looks), frozenset({"it"})), "star", **more)  # type: ignore[arg-type]


def untold(_count: int) -> None:
    """Nobody listens."""


def rows_asked(subject: Subject, monkeypatch: object) -> list[int]:
    """How many rows each question to a subject's denoiser has, from now on; drawing asks the pipeline, not this."""
    asked: list[int] = []
    own: Callable[..., torch.Tensor] = subject.family.predict

    def predict(denoiser, noised, timesteps, conditions):
        asked.append(len(noised))
        return own(denoiser, noised, timesteps, conditions)

    monkeypatch.setattr(subject.family, "predict", predict)  # type: ignore[attr-defined]
    return asked
