"""Draw prompts with any diffusers pipeline: batched, over several processes, resumable, one seed per picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from salun_diffusers.accelerator import ALONE, Processes
from salun_diffusers.errors import UserError, one_line
from salun_diffusers.evaluation.drawing_pipeline import describe_scheduler as describe_scheduler
from salun_diffusers.evaluation.drawing_pipeline import is_class_conditional
from salun_diffusers.evaluation.drawing_pipeline import load_pipeline as load_pipeline
from salun_diffusers.evaluation.image_folder import batches, blurred
from salun_diffusers.evaluation.manifest import NAME, Manifest, PictureRow, read_manifest
from salun_diffusers.evaluation.nudity import NudeNet, boxes_to_json
from salun_diffusers.evaluation.prompt_files import PromptRow
from salun_diffusers.evaluation.protocols import CHANNELS
from salun_diffusers.files.whole_files import partial_of, whole_file, write_text
from salun_diffusers.seeds import stream_seed


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


def with_classes(rows: Sequence[PictureRow], pipe: Any) -> tuple[PictureRow, ...]:
    """The rows; of a pipeline whose prompts are classes, a picture should show the one that it is drawn of.

    Args:
        rows: Pictures to draw.
        pipe: What draws them.
    """
    if not is_class_conditional(pipe):
        return tuple(rows)
    return tuple(row if row.label else replace(row, label=row.prompt) for row in rows)


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
            (found,), (in_rgb,) = (self.detector.with_channels(order).boxes([picture]) for order in CHANNELS)
            detections = boxes_to_json(found, in_rgb)
            _save_picture(blurred(picture), self.folder / "previews" / row.file)
            write_text(self.folder / "detections" / f"{row.file}.json", json.dumps(detections))
        if self.detector is None or self.save_explicit:
            _save_picture(picture, self.folder / row.file)


def draw(pipe: Any, rows: Sequence[PictureRow], sampling: Sampling) -> list[Image.Image]:
    """Draw rows of one guidance; each starts from its own generator on the CPU.

    A picture depends on its own row only; the rounding of a batch may move a pixel by one grey level.

    Raises:
        UserError: If the pipeline cannot draw them so, or draws another size than it was asked for.
    """
    prompts = [row.prompt for row in rows]
    size = {"height": sampling.height, "width": sampling.width}
    given: dict[str, Any] = {"class_labels": prompts} if is_class_conditional(pipe) else {"prompt": prompts, **size}
    try:
        drawn: list[Image.Image] = pipe(
            **given,
            generator=[torch.Generator().manual_seed(row.seed) for row in rows],
            guidance_scale=rows[0].guidance,
            num_inference_steps=sampling.num_inference_steps,
            output_type="pil",
        ).images
    except Exception as error:  # Pipelines and schedulers say what they cannot do in errors of many kinds.
        raise UserError(
            f"{type(pipe).__name__} cannot draw {rows[0].file} ({type(error).__name__}: {one_line(error, 200)}); other "
            "--height, --width, --num_inference_steps, --scheduler or a smaller --batch_size are required."
        ) from error
    for picture in drawn:
        wanted = (sampling.width or picture.width, sampling.height or picture.height)
        if picture.size != wanted:
            raise UserError(
                f"{type(pipe).__name__} draws {picture.width}×{picture.height} when asked for {wanted[0]}×{wanted[1]}; "
                "--width and --height must be a size that it can do."
            )
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
        names = dict.fromkeys((*manifest.made_with, *known.made_with))
        changed = [name for name in names if known.made_with.get(name) != manifest.made_with.get(name)]
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
    for number, batch in enumerate(batches_of_one_guidance(todo, batch_size)):
        if number % processes.count == processes.rank:
            for row, picture in zip(batch, draw(pipe, batch, sampling), strict=True):
                keeping.keep(row, picture)
        progress(len(batch))
    processes.wait()


def batches_of_one_guidance(rows: Sequence[PictureRow], size: int) -> Iterator[Sequence[PictureRow]]:
    """Rows in batches; a pipeline takes one guidance at once."""
    ordered = sorted(rows, key=lambda row: row.guidance)
    for _, same in groupby(ordered, key=lambda row: row.guidance):
        yield from batches(list(same), size)


def _save_picture(picture: Image.Image, path: Path) -> None:
    with whole_file(path) as partial:
        picture.save(partial, format="PNG")
