"""What a run's detector finds with a LoRA in place of what the run changed: the pictures of its report once more."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from salun_diffusers.accelerator import engine
from salun_diffusers.diffusion.adapted_model import AdaptedModel
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.foreseen import MADE_MASKS
from salun_diffusers.diffusion.request import Request, accept
from salun_diffusers.diffusion.run_report import figures
from salun_diffusers.diffusion.sampler import Sampler, model_of
from salun_diffusers.diffusion.settings import idle_soft_flags
from salun_diffusers.diffusion.stage_marks import StageMarks
from salun_diffusers.diffusion.start import load_family
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.diffusion.validation import Pictures, draw_pictures
from salun_diffusers.evaluation.detectors import make_detector
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.files.run_source import RunSource
from salun_diffusers.progress import Clock
from salun_diffusers.seeds import random_state_kept

_WITHOUT = {"resume_from_checkpoint": None, "report_to": None, "validation_prompts": (),
            "dry_run": False, "vram": None, "probe": "off", "generated_data_dir": None, "target_forget": None,
            "max_retain_drop": None, "strength_points": 0, "collateral": False, "list_concepts": None,
            "save_patch": False, "save_dtype": "base", "push_to_hub": False, "hub_model_id": None,
            "hub_private_repo": False, "publish_mask": False, "use_8bit_adam": False}  # fmt: skip


def request_of(run: RunSource, place: Path) -> Request:
    """What a run was asked for, as far as its pictures depend on it.

    Args:
        run: With its record.
        place: A folder that can be written, for a run that will not be.

    Raises:
        UserError: If that can no longer be had: a model or a file that it names is gone.
    """
    fields = {field.name for field in dataclasses.fields(EraseConfig)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in run.record.items() if name in fields
    }
    values |= {name: value for name, value in _WITHOUT.items() if name in fields} | {"output_dir": str(place / "run")}
    # A record has a value of every setting, of those without effect, too.
    values |= dict.fromkeys(idle_soft_flags(str(values.get("soft_threshold", "none"))))
    # A record tells every number of the run, and not which of two flags said how long it took.
    if values.get("num_train_epochs") is not None:
        values["max_train_steps"] = None
    if values.get("mask") not in (None, *MADE_MASKS):  # Of a file, which need not be there any more.
        values["mask"] = "saliency"
    return accept(EraseConfig(**values), writes=False)


def lora_rates(run: RunSource, folder: Path, command: str) -> dict[str, Any]:
    """Draw the report's pictures with the base, the erased pipeline and a LoRA at the same seeds, and measure.

    What the run drew is taken up where it lies.

    Args:
        run: With its pipeline.
        folder: Of the LoRA, with PEFT's names.
        command: For the record of each figure.

    Returns:
        Rows ``rates`` (of the base, the erased pipeline and the LoRA) and ``drift`` (of the last two); empty where
        nobody looks for the concept.

    Raises:
        UserError: If the run's request can no longer be carried out.
    """
    with TemporaryDirectory(prefix="salun-") as scratch:
        return _rates(run, folder, Path(scratch), command)


def _rates(run: RunSource, folder: Path, scratch: Path, command: str) -> dict[str, Any]:
    request = request_of(run, scratch)
    concept, erased = request.concept, run.pipeline
    if erased is None:
        raise ValueError("Rates are compared with an erased pipeline, found none.")
    adapted = AdaptedModel(request.model)
    places: Mapping[str, tuple[Request, Path]] = {
        "base": (request, request.base),
        "erased": (request, erased),
        "lora": (dataclasses.replace(request, model=adapted), folder),
    }
    with (
        random_state_kept(),
        engine(
            mixed_precision=request.config.mixed_precision, gradient_accumulation_steps=1, report_to=None, trains=False
        ) as accelerator,
    ):  # fmt: skip
        detector = make_detector(request.detector)
        marks = StageMarks("", {}, "", "", "")
        here = Run(accelerator, RunFolder(scratch), Clock({}), "", marks, command)
        drawn: dict[str, Pictures] = {}
        for name, (asked, place) in places.items():
            family = load_family(accelerator, asked, place)
            kept = RunFolder(run.root).work / "drawn"
            kept = kept if name != "lora" and kept.is_dir() else scratch / "drawn"
            model = model_of(asked.model.at(place).identity(), asked.config.variant)
            sampler = Sampler(family, asked.settings, here, kept, model)
            with torch.inference_mode():
                drawn[name] = draw_pictures(sampler, concept, name)
            del family, sampler
        found = {
            name: figures(concept, detector, drawn["base"], drawn[name], command) for name in ("erased", "lora")
        }  # fmt: skip
    # By name: of two rates the one that fell more is first, and pictures become one thing here and another there.
    rates = {(one.after.group, one.after.name): one.after.value for one in found["lora"].comparisons}
    drift = {(one.group, one.name): one.value for one in found["lora"].measurements}
    return {
        "detector": str(request.detector),
        "rates": [
            {"name": one.after.name, "group": one.after.group, "n": one.after.n, "base": one.before.value,
             "erased": one.after.value, "lora": rates[key]}
            for one in found["erased"].comparisons
            if (key := (one.after.group, one.after.name)) in rates
        ],
        "drift": [
            {"name": one.name, "group": one.group, "n": one.n, "erased": one.value, "lora": drift[key]}
            for one in found["erased"].measurements
            if (key := (one.group, one.name)) in drift
        ],
    }  # fmt: skip
