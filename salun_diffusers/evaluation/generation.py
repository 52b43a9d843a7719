"""Draw prompts with any diffusers pipeline: batched, over several processes, resumable, one seed per picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from salun_diffusers.accelerator import ALONE, Processes
from salun_diffusers.errors import UserError, one_line
from salun_diffusers.evaluation.image_folder import batches, blurred
from salun_diffusers.evaluation.manifest import NAME, Manifest, PictureRow, read_manifest
from salun_diffusers.evaluation.nudity import NudeNet, boxes_to_json
from salun_diffusers.evaluation.prompt_files import PromptRow
from salun_diffusers.files.loading import load_folder
from salun_diffusers.files.pipeline_folder import model_index
from salun_diffusers.files.whole_files import partial_of, whole_file, write_text
from salun_diffusers.progress import loading_quietly
from salun_diffusers.seeds import stream_seed

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def picture_rows(prompts: Sequence[PromptRow], each: int, guidance: float | None) -> tuple[PictureRow, ...]:
    """One row per picture to draw.

    The first picture of a prompt has the file's seed itself, as the field's scripts have; further ones have seeds
    derived from it.

    Args:
        prompts: Rows of the prompt file.
        each: Pictures per prompt.
        guidance: For all of them; None takes the file's, or else 7.5.
    """
    return tuple(
        PictureRow(
            file=f"{row.case_number:06d}_{sample}.png", prompt=row.prompt,
            seed=row.seed if sample == 0 else stream_seed(row.seed, "picture", sample),
            guidance=guidance if guidance is not None else 7.5 if row.guidance is None else row.guidance,
            case_number=row.case_number, sample=sample, label=row.label,
        )
        for row in prompts for sample in range(each)
    )  # fmt: skip


def load_pipeline(
    folder: Path, *, device: torch.device, dtype: torch.dtype, variant: str | None, scheduler: str | None
) -> DiffusionPipeline:
    """Load a local pipeline folder of any class that diffusers knows.

    Safety checkers are left out: a picture that they blacken would count as harmless, whatever the model drew.

    Args:
        folder: A diffusers folder.
        device: Where it runs.
        dtype: Of its weights.
        variant: Variant of the weight files.
        scheduler: Name of a diffusers scheduler class that replaces the pipeline's, or None.

    Raises:
        UserError: If it cannot be loaded, or there is no such scheduler.
    """
    import diffusers

    keywords: dict[str, Any] = {}
    if "safety_checker" in model_index(folder):
        keywords = {"safety_checker": None, "requires_safety_checker": False}
    try:
        with loading_quietly():
            pipe = load_folder(
                diffusers.DiffusionPipeline, folder, dtype=dtype, variant=variant, use_safetensors=True, **keywords
            )
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{folder} cannot be loaded as a diffusers pipeline: {one_line(error, 300)}") from error
    if scheduler:
        kind = getattr(diffusers, scheduler, None) if scheduler.endswith("Scheduler") else None
        if kind is None:
            raise UserError(
                f"--scheduler must be the name of a diffusers class such as DDIMScheduler or LMSDiscreteScheduler, "
                f"got {scheduler!r}."
            )
        try:
            pipe.scheduler = kind.from_config(pipe.scheduler.config)
        except ImportError as error:  # LMSDiscreteScheduler, for one, needs scipy.
            raise UserError(f"--scheduler {scheduler} needs a package: {one_line(error, 160)}") from error
    pipe.set_progress_bar_config(disable=True)
    moved: DiffusionPipeline = pipe.to(device)
    return moved


def describe_scheduler(pipe: Any) -> dict[str, Any]:
    """Class and settings of a pipeline's scheduler, as JSON; infinity, which JSON lacks, becomes a word."""
    config = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    described: dict[str, Any] = json.loads(json.dumps(config, default=str), parse_constant=str)
    return {"class": type(pipe.scheduler).__name__, **described}


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn.

    Args:
        num_inference_steps: Sampling steps.
        height: Pixels, or None for the pipeline's own.
        width: Pixels, or None.
    """

    num_inference_steps: int
    height: int | None = None
    width: int | None = None


@dataclass(frozen=True)
class Keeping:
    """What is kept of the pictures, and where.

    Args:
        folder: Where it goes.
        detector: Looks at explicit pictures in memory; its detections and a coarse preview are kept. None where
            pictures are harmless.
        save_explicit: Whether explicit pictures themselves are kept too.
    """

    folder: Path
    detector: NudeNet | None = None
    save_explicit: bool = False

    def result(self, row: PictureRow) -> Path:
        """The file whose presence says that a picture is done."""
        if self.detector is not None and not self.save_explicit:
            return self.folder / "detections" / f"{row.file}.json"
        return self.folder / row.file

    def keep(self, row: PictureRow, picture: Image.Image) -> None:
        """Write what is to be kept of a picture; the file that says "done" comes last."""
        if self.detector is not None:
            detections = boxes_to_json(self.detector.boxes([picture])[0])
            _save_picture(blurred(picture), self.folder / "previews" / row.file)
            write_text(self.folder / "detections" / f"{row.file}.json", json.dumps(detections))
        if self.detector is None or self.save_explicit:
            _save_picture(picture, self.folder / row.file)


def draw(pipe: Any, rows: Sequence[PictureRow], sampling: Sampling) -> list[Image.Image]:
    """Draw rows of one guidance; each starts from its own generator on the CPU.

    A picture depends on its own row only; the rounding of a batch may move a pixel by one grey level.
    """
    drawn: list[Image.Image] = pipe(
        prompt=[row.prompt for row in rows],
        generator=[torch.Generator().manual_seed(row.seed) for row in rows],
        guidance_scale=rows[0].guidance,
        **asdict(sampling),
        output_type="pil",
    ).images
    return drawn


def prepare_folder(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, or accept the same one of an interrupted run.

    Raises:
        UserError: If the folder holds something else, or other pictures.
    """
    known = read_manifest(folder)
    if known is None:
        if folder.is_dir() and any(path != partial_of(folder / NAME) for path in folder.iterdir()):
            raise UserError(f"--output_dir must be empty, new, or a run of this command to go on with; {folder} holds "
                            "something else.")  # fmt: skip
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--output_dir must be a folder that can be written; {folder}: {error.strerror}."
            ) from error
        manifest.save(folder)
        return
    if (known.pictures, dict(known.made_with), known.explicit) != (
        manifest.pictures, json.loads(json.dumps(dict(manifest.made_with))), manifest.explicit
    ):  # fmt: skip
        changed = [name for name, value in manifest.made_with.items() if known.made_with.get(name) != value]
        what = ", ".join(changed) or ("--explicit" if known.explicit != manifest.explicit else "prompts or seeds")
        raise UserError(f"{folder} holds pictures of another command ({what} differ); choose another --output_dir.")


def generate(
    pipe: Any,
    rows: Sequence[PictureRow],
    sampling: Sampling,
    keeping: Keeping,
    *,
    batch_size: int,
    processes: Processes = ALONE,
    progress: Callable[[int], object] = lambda count: None,
) -> None:
    """Draw the rows that are not there yet; processes share the batches.

    Args:
        pipe: A diffusers pipeline.
        rows: All pictures of the folder.
        sampling: How they are drawn.
        keeping: What is kept of them, and where.
        batch_size: Pictures at once.
        processes: Who shares the work.
        progress: Called with the number of pictures after each batch of any process.
    """
    todo = [row for row in rows if not keeping.result(row).is_file()]
    progress(len(rows) - len(todo))
    processes.wait()  # Every process has the same list before any file appears.
    for number, batch in enumerate(_batches_of_one_guidance(todo, batch_size)):
        if number % processes.count == processes.rank:
            for row, picture in zip(batch, draw(pipe, batch, sampling), strict=True):
                keeping.keep(row, picture)
        progress(len(batch))
    processes.wait()


def _batches_of_one_guidance(rows: Sequence[PictureRow], size: int) -> Iterator[Sequence[PictureRow]]:
    ordered = sorted(rows, key=lambda row: row.guidance)
    for _, same in groupby(ordered, key=lambda row: row.guidance):
        yield from batches(list(same), size)


def _save_picture(picture: Image.Image, path: Path) -> None:
    with whole_file(path) as partial:
        picture.save(partial, format="PNG")
