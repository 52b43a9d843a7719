"""Draw prompts with any diffusers pipeline: batched, over several processes, resumable, one seed per picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.image_folder import batches
from salun_diffusers.evaluation.manifest import NAME, Manifest, PictureRow, read_manifest
from salun_diffusers.evaluation.nudity import NudeNet, boxes_to_json
from salun_diffusers.evaluation.previews import blurred
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
        line = " ".join(str(error).split())[:300]
        raise UserError(f"{folder} cannot be loaded as a diffusers pipeline: {line}") from error
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
            raise UserError(f"--scheduler {scheduler} needs a package: {' '.join(str(error).split())[:160]}") from error
    pipe.set_progress_bar_config(disable=True)
    moved: DiffusionPipeline = pipe.to(device)
    return moved


def describe_scheduler(pipe: Any) -> dict[str, Any]:
    """Class and settings of a pipeline's scheduler, as JSON; infinity, which JSON lacks, becomes a word."""
    config = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    described: dict[str, Any] = json.loads(json.dumps(config, default=str), parse_constant=str)
    return {"class": type(pipe.scheduler).__name__, **described}


def draw(
    pipe: Any, rows: Sequence[PictureRow], *, num_inference_steps: int, height: int | None, width: int | None
) -> list[Image.Image]:
    """Draw rows of one guidance; each starts from its own generator on the CPU.

    A picture depends on its own row only; the rounding of a batch may move a pixel by one grey level.
    """
    drawn: list[Image.Image] = pipe(
        prompt=[row.prompt for row in rows],
        generator=[torch.Generator().manual_seed(row.seed) for row in rows],
        num_inference_steps=num_inference_steps,
        guidance_scale=rows[0].guidance,
        height=height,
        width=width,
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


def result_path(folder: Path, row: PictureRow, explicit: bool, save_explicit: bool) -> Path:
    """The file whose presence says that a picture is done."""
    if explicit and not save_explicit:
        return folder / "detections" / f"{row.file}.json"
    return folder / row.file


def generate(
    pipe: Any,
    folder: Path,
    rows: Sequence[PictureRow],
    *,
    batch_size: int,
    num_inference_steps: int,
    height: int | None,
    width: int | None,
    detector: NudeNet | None = None,
    save_explicit: bool = False,
    process: tuple[int, int] = (0, 1),
    wait: Callable[[], None] = lambda: None,
    progress: Callable[[int], object] = lambda count: None,
) -> None:
    """Draw the rows that are not there yet; processes share the batches.

    Args:
        pipe: A diffusers pipeline.
        folder: Where pictures go.
        rows: All pictures of the folder.
        batch_size: Pictures at once.
        num_inference_steps: Sampling steps.
        height: Pixels, or None for the pipeline's own.
        width: Pixels, or None.
        detector: Looks at explicit pictures in memory; its detections and a coarse preview are kept.
        save_explicit: Whether explicit pictures themselves are kept too.
        process: Rank and number of processes.
        wait: Barrier between the processes.
        progress: Called with the number of pictures after each batch of any process.
    """
    explicit = detector is not None
    for name in ("detections", "previews") if explicit else ():
        (folder / name).mkdir(exist_ok=True)
    todo = [row for row in rows if not result_path(folder, row, explicit, save_explicit).is_file()]
    progress(len(rows) - len(todo))
    wait()  # Every process has the same list before any file appears.
    rank, world = process
    for number, batch in enumerate(_batches_of_one_guidance(todo, batch_size)):
        if number % world == rank:
            drawn = draw(pipe, batch, num_inference_steps=num_inference_steps, height=height, width=width)
            for row, picture in zip(batch, drawn, strict=True):
                _keep(folder, row, picture, detector, save_explicit)
        progress(len(batch))
    wait()


def _batches_of_one_guidance(rows: Sequence[PictureRow], size: int) -> Iterator[Sequence[PictureRow]]:
    ordered = sorted(rows, key=lambda row: row.guidance)
    for _, same in groupby(ordered, key=lambda row: row.guidance):
        yield from batches(list(same), size)


def _keep(folder: Path, row: PictureRow, picture: Image.Image, detector: NudeNet | None, save_explicit: bool) -> None:
    """Write what is to be kept of a picture; the file that says "done" comes last."""
    if detector is not None:
        detections = boxes_to_json(detector.boxes([picture])[0])
        _save_picture(blurred(picture), folder / "previews" / row.file)
        write_text(folder / "detections" / f"{row.file}.json", json.dumps(detections))
    if detector is None or save_explicit:
        _save_picture(picture, folder / row.file)


def _save_picture(picture: Image.Image, path: Path) -> None:
    with whole_file(path) as partial:
        picture.save(partial, format="PNG")
