"""Unlearning and retained accuracy: which object each picture shows, by a classifier or by CLIP.

    salun evaluate objects --images runs/after --before runs/before --forget circle --classifier demo
    salun evaluate objects --images runs/tench --prompts imagenette.csv --forget tench \
        --classifier microsoft/resnet-50

Each picture's class comes from the manifest of `salun generate`, from --prompts with a column `class`, or from
sub-folders named after classes. Also tells what the forgotten class turned into.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from salun_diffusers.arguments import setting
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.image_folder import ImageFolder, decoded, read_image_folder
from salun_diffusers.evaluation.prompt_files import read_prompt_file
from salun_diffusers.evaluation.record import EvaluationRecord, Table, writable_folder
from salun_diffusers.evaluation.record_page import bar_chart, write_record
from salun_diffusers.evaluation.sampling import folder_sampling
from salun_diffusers.files.pipeline_folder import EMBEDDED, embedded_detector
from salun_diffusers.pictures.decoding import DECODED
from salun_diffusers.programs.program import Program
from salun_diffusers.progress import Progress
from salun_diffusers.reports.measurement import Comparison


@dataclass(frozen=True)
class ObjectsConfig:
    """Settings of the evaluation."""

    images: str = setting("", "Folder of pictures to evaluate.")
    before: str | None = setting(None, "Folder of the same prompts' pictures before erasing.")
    forget: tuple[str, ...] = setting((), "Classes that should be gone.")
    prompts: str | None = setting(None, "Prompt file with a column class, where the folder has no manifest.")
    prompt_column: str | None = setting(None, "Column of --prompts; by default the one whose name is known.")
    classifier: str | None = setting(None, "transformers image classifier: local folder, hub id, `demo` or `digits`.")
    clip: str | None = setting(None, "CLIP model for zero-shot classes, in place of --classifier.")
    batch_size: int = setting(32, "Pictures at once.", minimum=1)
    output_dir: str = setting("runs/evaluation", "Where objects.json and objects.html go.")


def labelled(path: str, config: ObjectsConfig) -> ImageFolder:
    """Read a folder whose pictures all have a class."""
    folder = read_image_folder(
        path, read_prompt_file(config.prompts, column=config.prompt_column).rows if config.prompts else ()
    )
    if not folder.files:
        raise UserError(f"{path} keeps detections only; draw its pictures with --save_explicit.")
    if not folder.rows or not any(row.label for row in folder.rows):
        raise UserError(
            f"The pictures of {path} have no classes{folder.beside}: a prompt file with a column `class`, or "
            "sub-folders named after classes, are required."
        )
    return folder


def work(config: ObjectsConfig, command: str) -> str:
    """Measure and write."""
    if not config.images or not config.forget:
        raise UserError("--images and --forget are required (see --help).")
    if bool(config.classifier) == bool(config.clip):
        raise UserError("One of --classifier and --clip is required, not both.")
    config = replace(config, forget=tuple(dict.fromkeys(config.forget)))
    folders = [labelled(path, config) for path in (config.before, config.images) if path]
    sampling = folder_sampling(folders)
    writable_folder(config.output_dir)
    classes = list(dict.fromkeys(row.label for folder in folders for row in folder.rows if row.label))
    from salun_diffusers.evaluation.objects import ClipZeroShot, ObjectClassifier, measure_objects, turned_into

    weights = str(embedded_detector(config.classifier)) if config.classifier in EMBEDDED else config.classifier
    classifier = ObjectClassifier(weights, classes) if weights else ClipZeroShot(str(config.clip), classes)
    measured, confusions = [], []
    for folder in folders:
        shown: list[str] = []
        with Progress("classifying", len(folder)) as bar:
            for pictures in decoded(folder.files, config.batch_size):
                shown += classifier.classify(pictures)
                bar.advance(len(pictures))
        expected = [row.label for row in folder.rows]
        protocol = f"{classifier.protocol}, {DECODED}"
        measured.append(measure_objects(shown, expected, config.forget, protocol=protocol, command=command))
        confusions.append({name: dict(turned_into(shown, expected, name)) for name in config.forget})
    pairs: tuple[Comparison, ...] = ()
    if config.before:
        old = {item.name: item for item in measured[0]}
        if set(old) != {item.name for item in measured[1]}:
            raise UserError(f"{config.before} and {config.images} must hold pictures of the same classes; they differ.")
        pairs = tuple(Comparison(new.name, old[new.name], new) for new in measured[1])
    tables = tuple(
        Table(
            f"What {name} became",
            ("shown", *(["before"] if config.before else []), "pictures"),
            tuple(
                (shown, *(confusion[name].get(shown, 0) for confusion in confusions))
                for shown in _most_frequent(name, confusions)
            ),
        )
        for name in config.forget
    )
    rows = pairs or measured[0]
    record = EvaluationRecord(
        kind="objects",
        title=f"Forgetting {', '.join(config.forget)}",
        pictures=config.images,
        before="" if config.before is None else config.before,
        measurements=() if pairs else tuple(measured[0]),
        comparisons=pairs,
        tables=tables,
        sampling=sampling,
        command=command,
    )
    chart = bar_chart(rows, name="objects", unit="% of pictures")
    became = "".join(
        f"{table.title}: " + ", ".join(f"{row[-1]} {row[0]}" for row in table.rows if row[-1]) + "\n"
        for table in tables
    )
    return write_record(record, config.output_dir, [("Rates", chart)]) + became


def _most_frequent(name: str, confusions: Sequence[dict[str, dict[str, int]]]) -> list[str]:
    """What the pictures for a class show in any folder, the last folder's most frequent first."""
    seen = dict.fromkeys(shown for confusion in confusions for shown in confusion[name])
    return sorted(seen, key=lambda shown: [-confusion[name].get(shown, 0) for confusion in reversed(confusions)])


main = Program("evaluate objects", ObjectsConfig, work, __doc__ or "")
