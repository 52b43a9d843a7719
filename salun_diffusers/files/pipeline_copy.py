"""A pipeline folder with other denoiser weights: everything else byte for byte, and nothing that holds the old ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from salun_diffusers.errors import tell
from salun_diffusers.files.component_files import (
    PipelineFile,
    pipeline_files,
    require_within,
    unreadable_parts,
    weight_files,
)
from salun_diffusers.files.pipeline_folder import CLASS_CONDITIONAL, OWN_CODE, class_name, denoiser_folder, model_index
from salun_diffusers.files.whole_files import full_disk_is_told, whole_folder, write_text


def copy_with_denoiser(
    base: Path, target: Path, write_weights: Callable[[Path], object], *, variant: str | None = None, link: bool = False
) -> None:
    """Write a copy of a pipeline with new denoiser weights; it is there whole or not at all.

    Left out are pickles, all other weights of the denoiser (they hold what was erased), and single-file checkpoints
    beside the component folders. The code of a class-conditional pipeline is the package's own. An optional part that
    could not be loaded without its pickle is entered as absent.

    Args:
        base: The pipeline.
        target: The folder to make; an older one is replaced.
        write_weights: Writes the new weights into the denoiser's folder that it is given.
        variant: Variant of the weight files that are used.
        link: Link the other files instead of copying them, for a folder that is used at once and thrown away.

    Raises:
        UserError: If a file leads out of the base, or the disk is full.
    """
    files = pipeline_files(base)
    require_within(base, files)
    absent = unreadable_parts(base, variant)
    index = model_index(base)
    denoiser, class_conditional = denoiser_folder(index, base), class_name(index) == CLASS_CONDITIONAL
    with full_disk_is_told("the erased pipeline"), whole_folder(target) as partial:
        for file in kept_files(files, denoiser, absent):
            place = partial / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            if file.name == OWN_CODE.name and class_conditional:
                shutil.copyfile(OWN_CODE, place)
            elif link and file.component != denoiser:  # What is written there must not go through a link.
                place.symlink_to(file.path.resolve())
            else:
                shutil.copyfile(file.path, place)
        if absent:
            (partial / "model_index.json").unlink()
            write_text(partial / "model_index.json", index_without(base, absent))
            tell(
                "note",
                f"{', '.join(absent)} of {base} cannot be loaded without a pickle and is left out; model_index.json "
                "says so.",
            )
        write_weights(partial / denoiser)
        # The weights are new, the configuration is the base's, to the byte.
        shutil.copyfile(base / denoiser / "config.json", partial / denoiser / "config.json")


def size_of_copy(base: Path, variant: str | None = None) -> int:
    """Bytes of what `copy_with_denoiser` writes, if the new weights are as large as the base's."""
    index = model_index(base)
    denoiser = denoiser_folder(index, base)
    files = [file.path for file in kept_files(pipeline_files(base), denoiser, unreadable_parts(base, variant))]
    return sum(path.stat().st_size for path in (*files, *weight_files(base / denoiser, variant)))


def kept_files(files: list[PipelineFile], denoiser: str, absent: list[str]) -> Iterator[PipelineFile]:
    """The files of a base that a copy with other denoiser weights takes over as they are."""
    for file in files:
        beside = not file.component and file.is_weights
        old_weights = file.component == denoiser and file.is_weights
        if not (file.is_pickle or beside or old_weights or file.component in absent):
            yield file


def index_without(base: Path, absent: list[str]) -> str:
    """The text of `model_index.json` with some optional parts entered as absent."""
    index: dict[str, Any] = {
        name: [None, None] if name in absent else value for name, value in model_index(base).items()
    }
    if "safety_checker" in absent:
        index["requires_safety_checker"] = False
    return json.dumps(index, indent=2) + "\n"
