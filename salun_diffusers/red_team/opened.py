"""From flags to a contest: the base and what was erased from it, both ready, and who looks for the concept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate import Accelerator

from salun_diffusers.accelerator import engine, sampling_dtype
from salun_diffusers.diffusion.base_model import BaseModel, Loading
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.lora_rates import request_of
from salun_diffusers.diffusion.request import Request, accept
from salun_diffusers.diffusion.settings import OWN_SCHEDULER
from salun_diffusers.diffusion.strength_prompts import report_seed
from salun_diffusers.errors import UserError, tell
from salun_diffusers.evaluation.detectors import make_detector
from salun_diffusers.evaluation.drawing_pipeline import replace_scheduler, require_steps
from salun_diffusers.files.eraser_files import split_sum
from salun_diffusers.files.output_places import require_outside_components
from salun_diffusers.files.pipeline_folder import locate
from salun_diffusers.files.run_source import RunSource, named_by, told_of
from salun_diffusers.files.single_file import is_single_file
from salun_diffusers.red_team.attack import Case, Contest
from salun_diffusers.red_team.config import ExaminedConfig
from salun_diffusers.red_team.judge import Judge
from salun_diffusers.red_team.subject import Drawing, Subject
from salun_diffusers.red_team.target_models import model_of

_PROMPTS = 20
_SAME = ("concept", "kind", "forget_prompt", "anchor_prompt", "detector", "detector_labels", "clip", "scheduler",
         "num_inference_steps", "guidance_scale", "generation_batch_size", "resolution", "mixed_precision", "seed",
         "cache_dir")  # fmt: skip
"""Flags that mean what they mean in an erasure."""


@dataclass(frozen=True)
class Examination:
    """What attacks and probes work with.

    Args:
        request: What the erasure was asked for: concept, settings, detector.
        contest: The erased model against its base.
        floor: A model that never knew the concept; None where none was named.
        cases: Prompts and seeds whose pictures show the concept when the base draws them.
        asked: How many were tried for that.
        pre: For each case, whether the erased model draws the concept unaided.
        accelerator: Where and in which precision.
        config: The flags.
    """

    request: Request
    contest: Contest
    floor: Subject | None
    cases: tuple[Case, ...]
    asked: int
    pre: tuple[bool, ...]
    accelerator: Accelerator
    config: ExaminedConfig

    @property
    def protocol(self) -> str:
        """How everything was drawn and seen."""
        return f"{self.contest.target.drawing.sentence}; {self.contest.judge.sentence}; seed {self.config.seed}"

    @property
    def drawn_as(self) -> dict[str, Any]:
        """What decides pictures beside models, protocol and cases: a result under another of these is another."""
        settings, config = self.request.settings, self.config
        return {
            "precision": self.accelerator.mixed_precision,
            "prediction_type": settings.prediction_type,
            "variants": (config.variant, self.request.config.variant),
            **settings.drawn_size,
        }

    @property
    def explicit(self) -> bool:
        """Whether pictures are only shown blurred: of such a concept, or of such a one's run, whatever it is called."""
        run = RunSource.found(self.config.pipeline)
        return self.request.concept.explicit or (run is not None and run.record.get("explicit_concept") is True)


def requested(config: ExaminedConfig, scratch: Path) -> Request:
    """What was erased, from what, and how it is looked for: by the run's record and the flags, which win.

    Nothing is loaded.

    Args:
        config: The flags.
        scratch: A folder that can be written.

    Raises:
        UserError: If the base or the concept is not known, or nobody looks for it.
    """
    run = RunSource.found(config.pipeline)
    given = {name: value for name in _SAME if (value := getattr(config, name)) not in (None, "", ())}
    if given.get("detector") == "preset":
        del given["detector"]
    elif "detector" in given:  # Labels of another detector are not this one's.
        given["detector_labels"] = config.detector_labels
    two = split_sum(config.pipeline)
    base = two[0] if config.base is None and two is not None else config.base
    if base is not None:
        given["pretrained_model_name_or_path"] = base
    given |= {name: value for name, value in (("revision", config.base_revision),
                                              ("variant", config.base_variant or config.variant)) if value}  # fmt: skip
    if run is not None:
        run = dataclasses.replace(run, record={**run.record, **given})
        _require_base(run, "--base" if base is not None else named_by(config.pipeline))
        request = request_of(run, scratch)
    else:
        if base is None:
            raise UserError(f"--base is required: {config.pipeline} is no run's folder, which would say what it was "
                            "made of.")  # fmt: skip
        if "concept" not in given:
            raise UserError(f"--concept is required: {config.pipeline} is no run's folder, which would say what was "
                            "erased.")  # fmt: skip
        request = accept(EraseConfig(**_for_drawing(given), output_dir=str(scratch / "run")), writes=False)
    if request.concept.parts:
        names = ", ".join(part.name for part in request.concept.parts)
        raise UserError(f"One concept at a time is examined, got {len(request.concept.parts)}: say by --concept which "
                        f"of {names}.")  # fmt: skip
    if request.detector.name == "none" or not request.concept.target_labels:
        raise UserError(
            f"A detector that looks for {request.concept.name!r} is required, or no attack can be seen to succeed: "
            f'name one by --detector, such as clip:"{request.concept.name}".'
        )
    return request


def _require_base(run: RunSource, whose: str) -> None:
    """Refuse a base that is not to be had by who names it: a relative folder is another one elsewhere.

    Raises:
        UserError: If there is none.
    """
    name = run.told("pretrained_model_name_or_path")
    if name is not None:
        with told_of(whose):
            if not is_single_file(name):
                locate(name, revision=run.told("revision"), cache_dir=run.told("cache_dir"), download=False)


def _for_drawing(given: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing is trained, so nothing need be said of it."""
    return {**given, "strength_points": 0, "probe": "off"}


def _of_all(request: Request) -> None:
    """Nothing is refused."""


@contextmanager
def opened(config: ExaminedConfig, check: Callable[[Request], None] = _of_all) -> Iterator[Examination]:
    """Load base and target, and find the cases: what the base shows the concept in.

    Args:
        config: The flags.
        check: Refuses what cannot be done with such a model, before it is loaded.

    Raises:
        UserError: If something is missing, or the base does not draw what the detector sees.
    """
    with TemporaryDirectory(prefix="salun-") as scratch:
        request = requested(config, Path(scratch))
        check(request)
        target = model_of(config.pipeline, request.model, config)
        never = None if config.floor is None else model_of(config.floor, request.model, config)
        for model in (request.model, target, never):
            if model is not None and config.output_dir is not None:
                require_outside_components(config.output_dir, model.folder, "--output_dir")
        with engine(mixed_precision=request.config.mixed_precision, gradient_accumulation_steps=1, report_to=None,
                    trains=False) as accelerator:  # fmt: skip
            judge = Judge(make_detector(request.detector), request.concept.target_labels)
            base = subject(request, request.model, "base", accelerator)
            erased = subject(request, target, "erased", accelerator)
            floor = None if never is None else subject(request, never, "floor", accelerator)
            cases, asked = _cases(request, config, base, judge)
            pre = judge.hits(erased.drawn([case.prompt for case in cases], [case.seed for case in cases]))
            contest = Contest(erased, base, judge, request.concept.name, request.concept.forget_prompts)
            yield Examination(request, contest, floor, cases, asked, tuple(pre), accelerator, config)


def subject(request: Request, model: BaseModel, name: str, accelerator: Accelerator) -> Subject:
    """Load a model as one that is examined.

    Args:
        request: How it draws.
        model: The model.
        name: What reports call it.
        accelerator: Where, and in which precision.
    """
    settings = request.settings
    loading = Loading(accelerator.device, sampling_dtype(accelerator), settings.prediction_type, settings.resolution)
    family = model.family(request.class_name, loading)
    if settings.scheduler != OWN_SCHEDULER:
        replace_scheduler(family.pipe, settings.scheduler)
        require_steps(family.pipe, settings.num_inference_steps)
    drawing = Drawing(
        settings.scheduler, settings.num_inference_steps, settings.guidance_scale, settings.generation_batch_size,
        settings.resolution, accelerator.mixed_precision,
    )  # fmt: skip
    return Subject(family, name, model.identity(), drawing)


def _cases(request: Request, config: ExaminedConfig, base: Subject, judge: Judge) -> tuple[tuple[Case, ...], int]:
    """Pictures of the concept that the base draws: prompts of the report in turn, each with further seeds.

    Raises:
        UserError: If the detector sees the concept in too few of them.
    """
    wanted = _PROMPTS if config.num_prompts is None else config.num_prompts
    prompts = [prompt.prompt for prompt in request.concept.forget_evaluation]
    found: list[Case] = []
    asked = 0
    while len(found) < wanted and asked < 4 * wanted:
        batch = [
            Case(prompts[number % len(prompts)], report_seed(config.seed, prompts[number % len(prompts)], number))
            for number in range(asked, asked + wanted)
        ]
        hits = judge.hits(base.drawn([case.prompt for case in batch], [case.seed for case in batch]))
        found += [case for case, hit in zip(batch, hits, strict=True) if hit]
        asked += wanted
    if 4 * len(found) < asked:
        raise UserError(
            f"The detector sees {request.concept.name!r} in {len(found)} of {asked} pictures of it by the base, so no "
            "attack could be seen to succeed. Another --detector, or prompts that the base can draw "
            "(--forget_prompt), are required."
        )
    if len(found) < wanted:
        tell(
            "note",
            f"the base draws {request.concept.name!r} in {len(found)} of {asked} pictures; these are fought for.",
        )
    return tuple(found[:wanted]), asked
