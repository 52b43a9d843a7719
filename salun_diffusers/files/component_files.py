"""The files of a pipeline folder: which there are, which of them diffusers would read, and which may be copied."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from salun_diffusers.errors import UserError
from salun_diffusers.files.json_files import read_object, require_regular
from salun_diffusers.files.pipeline_folder import (
    CLASS_CONDITIONAL,
    DENOISERS,
    class_name,
    components,
    model_index,
    refuse_own_code,
)
from salun_diffusers.files.whole_files import check_whole

OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")
_PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}
_WEIGHTS = {".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", ".pb"} | _PICKLES
_CONFIGS = ("config.json", "scheduler_config.json", "tokenizer_config.json", "preprocessor_config.json",
            "processor_config.json", "vocab.json", "tokenizer.json")  # fmt: skip
_STEMS = ("diffusion_pytorch_model", "model")


@dataclass(frozen=True)
class PipelineFile:
    """One file of a pipeline folder.

    Args:
        name: Its path below the folder, with ``/``.
        path: Where it can be read, by way of any links.
        component: Name of the component folder it lies in; empty beside them.
    """

    name: str
    path: Path
    component: str

    @property
    def is_weights(self) -> bool:
        """Whether it holds weights, of whatever format, or lists the files that do."""
        return self.path.suffix in _WEIGHTS or self._lists_parts

    @property
    def is_pickle(self) -> bool:
        """Whether its ending says that it is a pickle, or that it lists a pickle's parts."""
        return self.path.suffix in _PICKLES or (self._lists_parts and ".bin.index" in self.name)

    @property
    def _lists_parts(self) -> bool:
        return re.search(r"\.(safetensors|bin)\.index(\.[^.]+)?\.json$", self.name) is not None


def pipeline_files(folder: Path) -> list[PipelineFile]:
    """All files beside and in the component folders, in the order of their names; links are followed.

    Hidden files and folders that are no component, such as `.git`, are none of the pipeline.

    Raises:
        UserError: If one is a device, a pipe, or a link to nowhere.
    """
    found = []
    for name in sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".")):
        if not (folder / name).is_dir():
            require_regular(folder / name)
            found.append(PipelineFile(name, folder / name, ""))
    for component in sorted(components(model_index(folder))):
        if (folder / component).is_dir():
            found += [PipelineFile(f"{component}/{name}", path, component) for name, path in _walk(folder / component)]
    return found


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names and paths of all regular files below a folder; every folder once, however often links lead to it."""
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders[:] = []
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(place) / name
            require_regular(path)
            yield PurePosixPath(path.relative_to(folder)).as_posix(), path


def require_within(folder: Path, files: list[PipelineFile]) -> None:
    """Refuse links that lead out of a pipeline: what they point to would be copied into a folder meant to be published.

    A file may lie in the folder itself, in a component folder that is linked as a whole, or among the blobs of the
    repository that either is a snapshot of, which is how the hub stores what it downloads. Other repositories of the
    same cache may be private.

    Raises:
        UserError: Naming the link and what it points to.
    """
    base = folder.resolve()
    rooms = [base, *_blobs_of(base)]
    for file in files:
        own = (folder / file.component).resolve() if file.component else base
        if file.component and not any((own / name).is_file() for name in _CONFIGS):
            raise UserError(
                f"{folder / file.component} must be the folder of a component, with its configuration; it has none."
            )
        target = file.path.resolve()
        if not any(target.is_relative_to(room) for room in (*rooms, own, *_blobs_of(own.parent))):
            raise UserError(
                f"{folder / file.name} is a link out of the pipeline, to {target}: only what lies in it is copied. Put "
                "the file itself there, or remove the link."
            )


def _blobs_of(snapshot: Path) -> list[Path]:
    """Where the files of a snapshot in the hub's cache lie; none of any other folder."""
    return [snapshot.parent.parent / "blobs"] if snapshot.parent.name == "snapshots" else []


def weight_files(folder: Path, variant: str | None = None, *, strictly: bool = True) -> list[Path]:
    """The safetensors files of one component that diffusers would read, sorted.

    Where there are a single file and a list of parts, diffusers' own models read the parts and transformers' models the
    single file.

    Args:
        folder: The component's folder.
        variant: Such as ``fp16``.
        strictly: Whether plain weights will not do where there are none of the variant.

    Raises:
        UserError: If there are none, or a part is missing; pickled weights are named as such.
    """
    for wanted in dict.fromkeys((variant, variant if strictly else None)):
        files = _read_by_diffusers(folder, wanted)
        if files:
            return files
    names = sorted(path.name for path in folder.glob("*") if path.suffix in _WEIGHTS)
    pickled = [name for name in names if Path(name).suffix in _PICKLES]
    variants = sorted({_variant_of(name) for name in names if name.endswith(".safetensors")})
    if pickled and not variants:
        raise UserError(f"{folder} holds pickled weights only ({pickled[0]}); convert them to safetensors first.")
    wanted = f"must hold safetensors weights{f' of variant {variant}' if variant else ''}"
    if not variants:
        raise UserError(f"{folder} {wanted}; found nothing.")
    found = " and ".join(f"those of variant {one}" if one else "plain ones" for one in variants)
    ways = " or ".join(f"--variant {one}" if one else "no --variant" for one in variants)
    raise UserError(f"{folder} {wanted}; found {found}, which {ways} takes.")


def parts_listing(folder: Path, variant: str | None = None) -> Path | None:
    """The list of parts that diffusers would read a component's weights by; None where they are one file."""
    dotted = f".{variant}" if variant else ""
    for stem in _STEMS:
        single, listing = folder / f"{stem}{dotted}.safetensors", folder / f"{stem}.safetensors.index{dotted}.json"
        if listing.is_file() and (stem == "diffusion_pytorch_model" or not single.is_file()):
            return listing
        if single.is_file():
            return None
    return None


def _read_by_diffusers(folder: Path, variant: str | None) -> list[Path]:
    if listing := parts_listing(folder, variant):
        return _parts(folder, listing)
    dotted = f".{variant}" if variant else ""
    singles = [folder / f"{stem}{dotted}.safetensors" for stem in _STEMS]
    return [file for file in singles if file.is_file()][:1]


def _parts(folder: Path, listing: Path) -> list[Path]:
    """The files that a list of parts names."""
    places = read_object(listing).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(part, str) for part in places.values()):
        raise UserError(f"{listing} is damaged: a weight_map of names and files is required.")
    names = sorted(set(places.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{listing} must name safetensors files beside it, found {name!r}.")
        if not (folder / name).is_file():
            raise UserError(f"{folder} is incomplete: {listing.name} names {name}, the folder has none.")
    return [folder / name for name in names]


def _variant_of(name: str) -> str:
    """``fp16`` of ``diffusion_pytorch_model.fp16-00001-of-00002.safetensors``; empty for plain weights."""
    parts = name.removesuffix(".safetensors").split(".")
    return parts[1].split("-")[0] if len(parts) > 1 else ""


def unreadable_parts(folder: Path, variant: str | None = None) -> list[str]:
    """Optional components that cannot be loaded from safetensors: pickled only, or not there although they are named.

    What an erased copy would name but not hold, since pickles are left behind.
    """
    index = model_index(folder)
    found = []
    for component in components(index):
        if component not in OPTIONAL:
            continue
        place = folder / component
        is_model = (place / "config.json").is_file()
        try:
            if is_model:
                weight_files(place, variant, strictly=False)
        except UserError:
            found.append(component)
            continue
        if not is_model and not any((place / name).is_file() for name in _CONFIGS):
            found.append(component)
    return found


def check_complete(folder: Path, variant: str | None = None) -> None:
    """Look whether a pipeline folder holds every component whole, without loading any.

    Optional parts, such as the safety checker, are not needed here and may be absent.

    Raises:
        UserError: Naming the first component or file that is missing, pickled, truncated or leads out of the folder,
            or code that it carries.
    """
    index = model_index(folder)
    if class_name(index) != CLASS_CONDITIONAL:  # Those are loaded by the class of this package, whatever they carry.
        refuse_own_code(folder)
    for component in components(index):
        place = folder / component
        if component in OPTIONAL:
            continue
        if not place.is_dir():
            raise UserError(f"{folder} is incomplete: model_index.json names {component!r}, the folder has none.")
        if component in DENOISERS and not (place / "config.json").is_file():
            raise UserError(f"{folder} is incomplete: {place} has no config.json.")
        if (place / "config.json").is_file():  # It is a model; schedulers and tokenizers name theirs otherwise.
            for file in weight_files(place, variant, strictly=component in DENOISERS):
                check_whole(file)
    require_within(folder, pipeline_files(folder))
