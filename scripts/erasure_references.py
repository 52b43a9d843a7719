"""What an erased embedded model is held against: a model that never saw the concept, and real pictures of all else."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from salun_diffusers.accelerator import engine
from salun_diffusers.demo.renderer import render, sample_scene
from salun_diffusers.demo.vocabulary import SHAPES, STYLE_PHRASES, STYLES
from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.request import Request
from salun_diffusers.diffusion.sampler import Sampler
from salun_diffusers.diffusion.stage_marks import StageMarks
from salun_diffusers.diffusion.start import load_family
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.diffusion.validation import Pictures, draw_pictures, measure
from salun_diffusers.evaluation.detectors import make_detector
from salun_diffusers.files.checkpoint import load_state
from salun_diffusers.files.pipeline_folder import EMBEDDED
from salun_diffusers.files.run_folder import RunFolder, identity_of
from salun_diffusers.files.whole_files import whole_file
from salun_diffusers.progress import Clock

RETRAIN_STEPS = {"demo": 12_600, "digits": 2_000}  # as many as the shipped ones had
SHARING = (SHAPES[::2], SHAPES[1::2], STYLES[:1], STYLES[1:])  # groups whose retraining may begin alike
_RENDERS = 50  # for each kind of picture


@dataclass(frozen=True)
class Course:
    """How a model is retrained.

    Args:
        steps: Optimizer steps of the denoiser, shared ones among them.
        shared_steps: How many of them are shared with other concepts of the demo model; 0 for none.
        mixed_precision: Of the steps, ``no`` or ``bf16``.
    """

    steps: int
    shared_steps: int = 0
    mixed_precision: Literal["no", "bf16"] = "no"

    @property
    def name(self) -> str:
        """Part of a folder's name that no other course has."""
        return f"{self.steps}-{self.shared_steps}{self.precision}"

    @property
    def precision(self) -> str:
        """The end of that name: nothing for float32."""
        return "" if self.mixed_precision == "no" else f"-{self.mixed_precision}"

    @property
    def settings(self) -> dict[str, int | str]:
        """The flags of the benchmark that say the same."""
        return {f"retrain_{name}": value for name, value in asdict(self).items()}


def retrain(request: Request, course: Course, folder: Path) -> tuple[dict[str, Any], dict[str, list[Image.Image]]]:
    """Train an embedded model without the concept, and measure it as an erased model is measured.

    The first `course.shared_steps` see none of the concept's group in `SHARING`, so that they serve the whole group:
    they are taken once, and each concept goes on from their end with pictures of all but itself. No model ever sees its
    concept, as in the shards and slices of SISA training (arXiv 1912.03817). Plain captions and the weight on noisy
    states belong to the steps after them, as in the shipped model's courses.

    Args:
        request: The erasure that it is compared with.
        course: Steps and precision.
        folder: Where the model goes; what is shared goes beside it.

    Returns:
        A report like an erasure's, whose seconds are those of all steps, and the retained pictures `before` and
        `after`.
    """
    concept, config = request.concept, request.config
    model = config.pretrained_model_name_or_path
    if model == "digits":
        never_saw = _without_class(concept.name, course, config, folder)
    else:
        never_saw = _without_shape_or_style(concept.name, course, config, folder)
    (checkpoint,) = folder.glob("*-checkpoint")
    seconds = load_state(checkpoint)[1]["seconds"]
    drawn: dict[str, Pictures] = {}
    with (
        engine(mixed_precision="no", gradient_accumulation_steps=1, report_to=None, trains=False) as accelerator,
        tempfile.TemporaryDirectory() as scratch,
    ):
        run = Run(
            accelerator,
            RunFolder(folder),
            Clock({}),
            identity_of(EMBEDDED[model]),
            StageMarks("", {}, "", "", ""),
            "retrain",
        )
        for when, place in (("before", EMBEDDED[model]), ("after", never_saw)):
            family = load_family(accelerator, request, place)
            kept = Path(str(config.generated_data_dir) if when == "before" else scratch)
            sampler = Sampler(family, request.settings, run, kept, identity_of(place))
            drawn[when] = draw_pictures(sampler, concept, when)
    comparisons, measurements = measure(
        concept, make_detector(concept.detector), drawn["before"], drawn["after"], "retrain"
    )
    report = {
        "comparisons": [pair.to_json() for pair in comparisons],
        "measurements": [item.to_json() for item in measurements],
        "timings": {"saliency and mask": 0.0, "fine-tuning": seconds},
        "config": {"num_validation_images": request.settings.num_validation_images, **course.settings},
    }
    return report, {when: [one for row in both.retain.pictures for one in row] for when, both in drawn.items()}


def _without_class(name: str, course: Course, settings: EraseConfig, folder: Path) -> Path:
    from salun_diffusers.diffusion.ddpm_config import TrainDDPMConfig
    from salun_diffusers.diffusion.ddpm_training import train

    return train(
        TrainDDPMConfig(
            exclude_class=name,
            max_train_steps=course.steps,
            mixed_precision=course.mixed_precision,
            seed=settings.seed,
            output_dir=str(folder),
        )
    )


def _without_shape_or_style(name: str, course: Course, settings: EraseConfig, folder: Path) -> Path:
    """Denoiser and text encoder from their first weights on; the autoencoder draws nothing by itself and is kept."""
    from train_demo_model import TrainDemoConfig, train

    config = TrainDemoConfig(
        exclude=(name,), init_from=str(EMBEDDED["demo"]), from_scratch=True, stages="denoiser,pipeline",
        denoiser_steps=course.steps, plain_captions=0.3, noisy_weight=0.5, seed=settings.seed,
        mixed_precision=course.mixed_precision, output_dir=str(folder),
    )  # fmt: skip
    if not course.shared_steps:
        return train(config)
    group = next(group for group in SHARING if name in group)
    shared = folder.with_name(f"shared-{'-'.join(group)}-{settings.seed}-{course.shared_steps}{course.precision}.run")
    train(
        replace(
            config, exclude=group, denoiser_steps=course.shared_steps, denoiser_decay_steps=0, plain_captions=0.0,
            noisy_weight=0.0, output_dir=str(shared),
        )
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "latents.safetensors") as partial:  # Of the same scenes and autoencoder.
        shutil.copyfile(shared / "latents.safetensors", partial)
    return train(
        replace(
            config, denoiser_decay_steps=course.steps - course.shared_steps, denoiser_goes_on_from=str(shared)
        )
    )  # fmt: skip


def distances(pictures: Mapping[str, Sequence[Image.Image]], model: str, concept: Concept) -> dict[str, float]:
    """Fréchet distances of retained pictures to real ones of the same kinds, on the model's own classifier's features.

    Args:
        pictures: What models draw for the concept's retain prompts, each set by a name of its own.
        model: ``demo`` (renders) or ``digits`` (handwritten ones).
        concept: The concept.
    """
    from salun_diffusers.evaluation.feature_extractors import make_extractor
    from salun_diffusers.evaluation.fidelity import frechet_distance

    extract = make_extractor(model, device=torch.device("cpu"))
    real = extract(_digits(concept) if model == "digits" else _renders(concept))
    return {name: frechet_distance(extract(drawn), real) for name, drawn in pictures.items()}


def _digits(concept: Concept) -> list[Image.Image]:
    from salun_diffusers.pictures.picture_sources import load_pictures

    real = load_pictures("digits")[0].resized(32)
    kept = real.pixels[real.labels != real.class_names.index(concept.name)]
    return [Image.fromarray(pixels[0].numpy()) for pixels in kept]


def _renders(concept: Concept) -> list[Image.Image]:
    """Renders of the shapes and styles that the retain prompts name, in all colours."""
    rng = np.random.default_rng(0)
    scenes = []
    for asked in concept.retain_evaluation:
        shape = next(shape for shape in SHAPES if shape in asked.prompt.split())
        style = next(style for style, phrases in STYLE_PHRASES.items() if asked.prompt.startswith(phrases))
        scenes += [sample_scene(rng, shape=shape, style=style) for _ in range(_RENDERS)]
    return [render(scene) for scene in scenes]
