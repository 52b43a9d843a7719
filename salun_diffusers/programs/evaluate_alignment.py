"""How well pictures follow their prompts (CLIP score), and how far they moved from the same seed's picture before.

    salun evaluate alignment --images runs/after --before runs/before --extractor demo
    salun evaluate alignment --images runs/coco --clip openai/clip-vit-base-patch16

The CLIP score needs the prompts: the manifest of `salun generate`, or --prompts. Same-seed pairs are measured in
pixels, by SSIM, and by the cosine distance of an extractor's features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from salun_diffusers.arguments import setting
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.image_folder import ImageFolder, decoded, read_image_folder, require_one_size
from salun_diffusers.evaluation.pairs import paired
from salun_diffusers.evaluation.prompt_files import read_prompt_file
from salun_diffusers.evaluation.record import EvaluationRecord, writable_folder
from salun_diffusers.evaluation.record_page import write_record
from salun_diffusers.evaluation.sampling import folder_sampling
from salun_diffusers.pictures.decoding import DECODED
from salun_diffusers.programs.program import Program
from salun_diffusers.progress import Progress
from salun_diffusers.reports.measurement import Comparison, Measurement


@dataclass(frozen=True)
class AlignmentConfig:
    """Settings of the evaluation."""

    images: str = setting("", "Folder of pictures to evaluate.")
    before: str | None = setting(None, "Folder of the same prompts and seeds before erasing.")
    prompts: str | None = setting(None, "Prompt file, where the folder has no manifest: <case_number>_<n>.png.")
    prompt_column: str | None = setting(None, "Column of --prompts; by default the one whose name is known.")
    clip: str | None = setting(None, "CLIP model for the CLIP score: local folder or hub id; without it there is none.")
    extractor: str | None = setting(
        None, "Features for the distance of pairs: clip, dinov2, demo or inception; without it there is none."
    )
    extractor_weights: str | None = setting(None, "Local folder or hub id; for inception a safetensors file.")
    batch_size: int = setting(16, "Pictures at once.", minimum=1)
    output_dir: str = setting("runs/evaluation", "Where alignment.json and alignment.html go.")


def folders(config: AlignmentConfig) -> list[ImageFolder]:
    """Read the folders, and refuse pictures that are no pairs."""
    if not config.images:
        raise UserError("--images is required: a folder of pictures (see --help).")
    if not (config.before or config.clip):
        raise UserError("Nothing to measure: give --before for distances of pairs, or --clip for the CLIP score.")
    prompts = read_prompt_file(config.prompts, column=config.prompt_column).rows if config.prompts else ()
    read = [read_image_folder(path, prompts) for path in (config.before, config.images) if path]
    for folder in read:
        if not folder.files:
            raise UserError(f"{folder.root} keeps detections only; draw its pictures with --save_explicit.")
        if len(folder) < 2:
            raise UserError(f"A mean with its interval needs at least two pictures, {folder.root} has {len(folder)}.")
        if config.clip and not any(row.prompt for row in folder.rows):
            raise UserError(
                f"The CLIP score needs prompts, {folder.root} has no manifest; name them by --prompts FILE."
            )
    if config.before:
        old, new = read
        read = [*paired(old, new)]
        try:
            require_one_size([*old.files, *new.files])
        except UserError as error:  # Its advice is for features of sets, which may be scaled.
            raise UserError(f"{str(error).partition('. ')[0]}. Draw both at one size.") from error
    return read


def distances(read: Sequence[ImageFolder], config: AlignmentConfig, command: str) -> list[Measurement]:
    """Measure the pairs."""
    from salun_diffusers.evaluation.alignment import (
        COSINE_BOUNDS,
        PIXEL_BOUNDS,
        PIXEL_PROTOCOL,
        SSIM_BOUNDS,
        SSIM_PROTOCOL,
        feature_distances,
        pixel_distances,
        structural_similarities,
    )
    from salun_diffusers.evaluation.feature_extractors import make_extractor

    extractor = make_extractor(config.extractor, config.extractor_weights) if config.extractor else None
    pixels: list[float] = []
    similar: list[float] = []
    features: list[float] = []
    old, new = read
    with Progress("pairs", len(new)) as bar:
        for before, after in zip(
            decoded(old.files, config.batch_size), decoded(new.files, config.batch_size), strict=True
        ):
            pixels += pixel_distances(before, after)
            similar += structural_similarities(before, after)
            if extractor:
                features += feature_distances(before, after, extractor)
            bar.advance(len(after))
    about: dict[str, Any] = {"group": "drift", "command": command}
    measured = [
        Measurement.mean(
            "pixel distance at equal seed",
            pixels,
            direction="lower",
            protocol=f"{PIXEL_PROTOCOL}, {DECODED}",
            bounds=PIXEL_BOUNDS,
            **about,
        ),
        Measurement.mean(
            "SSIM at equal seed",
            similar,
            direction="higher",
            protocol=f"{SSIM_PROTOCOL}, {DECODED}",
            bounds=SSIM_BOUNDS,
            **about,
        ),
    ]
    if extractor:
        measured.append(
            Measurement.mean(
                f"{extractor.name} distance at equal seed",
                features,
                direction="lower",
                protocol=f"1 - cosine; {extractor.protocol}, {DECODED}",
                bounds=COSINE_BOUNDS,
                **about,
            )
        )
    return measured


def work(config: AlignmentConfig, command: str) -> str:
    """Measure and write."""
    read = folders(config)
    sampling = folder_sampling(read)
    writable_folder(config.output_dir)
    scored: list[Measurement] = []
    if config.clip:
        from salun_diffusers.evaluation.alignment import CLIP_BOUNDS, ClipScore

        clip = ClipScore(config.clip)
        for folder in read:
            scores: list[float] = []
            with Progress("CLIP score", len(folder)) as bar:
                for pictures in decoded(folder.files, config.batch_size):
                    rows = folder.rows[len(scores) : len(scores) + len(pictures)]
                    scores += clip.scores(pictures, [row.prompt for row in rows])
                    bar.advance(len(pictures))
            scored.append(
                Measurement.mean(
                    "CLIP score",
                    scores,
                    direction="higher",
                    protocol=f"{clip.protocol}, {DECODED}",
                    bounds=CLIP_BOUNDS,
                    group="alignment",
                    command=command,
                )
            )
    pairs = (Comparison("CLIP score", *scored),) if len(scored) == 2 else ()
    alone = () if pairs else tuple(scored)
    if config.before:
        alone += tuple(distances(read, config, command))
    record = EvaluationRecord(
        kind="alignment",
        title="Alignment and drift",
        pictures=config.images,
        before="" if config.before is None else config.before,
        measurements=alone,
        comparisons=pairs,
        sampling=sampling,
        command=command,
    )
    return write_record(record, config.output_dir)


main = Program("evaluate alignment", AlignmentConfig, work, __doc__ or "")
