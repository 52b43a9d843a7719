"""Count exposed body parts with NudeNet under a named protocol.

    salun evaluate nudity --before runs/before --images runs/after --protocol mace

Reads any folder of pictures, or a folder of `salun generate` that kept detections only. Writes nudity.json and
nudity.html: the share of pictures with nudity, pre-ASR where the prompts are known, and counts per body part.
"""

from __future__ import annotations

from dataclasses import dataclass

from salun_diffusers.arguments import setting
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.image_folder import ImageFolder, batches, decoded, read_image_folder
from salun_diffusers.evaluation.nudity import ALL_PARTS, Box, NudeNet, measure_nudity, read_boxes
from salun_diffusers.evaluation.prompt_files import read_prompt_file
from salun_diffusers.evaluation.protocols import NudityProtocol, find_protocol
from salun_diffusers.evaluation.record import EvaluationRecord, writable_folder
from salun_diffusers.evaluation.record_page import bar_chart, write_record
from salun_diffusers.evaluation.sampling import folder_sampling
from salun_diffusers.programs.program import Program
from salun_diffusers.progress import Progress
from salun_diffusers.reports.measurement import Comparison, Measurement


@dataclass(frozen=True)
class NudityConfig:
    """Settings of the evaluation."""

    images: str = setting("", "Folder of pictures to evaluate.")
    before: str | None = setting(None, "Folder of the same prompts' pictures before erasing.")
    prompts: str | None = setting(None, "Prompt file, where the folder has no manifest: <case_number>_<n>.png.")
    prompt_column: str | None = setting(None, "Column of --prompts; by default the one whose name is known.")
    protocol: str = setting(
        "mace",
        "mace, unlearndiffatk, unlearndiffatk-success, nudenet-floor or core, as the field counts; with -rgb NudeNet "
        "is shown colours in their places, which it exchanges when it reads files itself.",
    )
    batch_size: int | None = setting(None, "Pictures at once; by default 16 on a GPU, 1 on a CPU.", minimum=1)
    output_dir: str = setting("runs/evaluation", "Where nudity.json and nudity.html go.")


def look(
    folder: ImageFolder, protocol: NudityProtocol, detector: NudeNet | None, batch_size: int | None
) -> list[tuple[Box, ...]]:
    """The boxes of each picture, kept or found now."""
    if not folder.files:
        boxes = []
        for row in folder.rows:
            path = folder.root / "detections" / f"{row.file}.json"
            if not path.is_file():
                raise UserError(
                    f"{folder.root} is unfinished: {path.name} is missing; the command in its manifest "
                    "goes on where it stopped."
                )
            boxes.append(read_boxes(path, protocol.channels))
        return boxes
    found: list[tuple[Box, ...]] = []
    detector = detector or NudeNet(protocol.channels)
    size = batch_size or (16 if detector.on_gpu else 1)
    with Progress("looking", len(folder.files)) as bar:
        for pictures in decoded(folder.files, max(size, 8)):
            for part in batches(pictures, size):
                found += detector.boxes(part, size)
            bar.advance(len(pictures))
    return found


def hidden(folder: ImageFolder) -> bool:
    """Whether pages must blur a folder's pictures: unless its manifest says that they are harmless."""
    return folder.manifest is None or folder.manifest.explicit


def work(config: NudityConfig, command: str) -> str:
    """Measure and write."""
    if not config.images:
        raise UserError("--images is required: a folder of pictures (see --help).")
    protocol = find_protocol(config.protocol)
    prompts = read_prompt_file(config.prompts, column=config.prompt_column).rows if config.prompts else ()
    folders = [read_image_folder(path, prompts) for path in (config.before, config.images) if path]
    sampling = folder_sampling(folders)
    if config.before and len(folders[0]) != len(folders[1]):
        raise UserError(
            f"Body parts are counted over all pictures, so both folders must hold equally many; "
            f"{config.before} has {len(folders[0])}, {config.images} {len(folders[1])}."
        )
    writable_folder(config.output_dir)
    detector = NudeNet(protocol.channels) if any(folder.files for folder in folders) else None
    measured = [
        measure_nudity(look(folder, protocol, detector, config.batch_size), protocol, rows=folder.rows, command=command)
        for folder in folders
    ]
    pairs: tuple[Comparison, ...] = ()
    if len(measured) == 2:
        names = {item.name for item in measured[0]} & {item.name for item in measured[1]}
        sides = [[item for item in side if item.name in names] for side in measured]
        pairs = tuple(Comparison(after.name, before, after) for before, after in zip(*sides, strict=True))
    rows = pairs or measured[0]
    # The sum of all parts would dwarf each of them.
    parts = [row for row in rows if _after(row).group == "body parts" and _after(row).name != ALL_PARTS]
    chart = bar_chart(parts, name="parts", unit="boxes over all pictures")
    record = EvaluationRecord(
        kind="nudity",
        title=f"Nudity ({protocol.name})",
        pictures=config.images,
        before="" if config.before is None else config.before,
        measurements=() if pairs else tuple(measured[0]),
        comparisons=pairs,
        explicit=any(hidden(folder) for folder in folders),
        sampling=sampling,
        command=command,
    )
    return write_record(record, config.output_dir, [("Body parts", chart)])


def _after(row: Comparison | Measurement) -> Measurement:
    return row.after if isinstance(row, Comparison) else row


main = Program("evaluate nudity", NudityConfig, work, __doc__ or "")
