"""Where the base model lies and what kind it is, found out before any heavy import."""

from __future__ import annotations

import json
from pathlib import Path

from salun_diffusers.errors import UserError

DEMO_NAME = "demo"
_PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}


def demo_folder() -> Path:
    """The embedded pipeline."""
    return Path(__file__).parent / "demo" / "pipeline"


def locate(name: str, *, revision: str | None = None, variant: str | None = None, cache_dir: str | None = None) -> Path:
    """The local folder of a pipeline: the embedded one, a folder of the user's, or a download from the hub.

    Args:
        name: ``demo``, a local folder, or a hub id.
        revision: Hub revision.
        variant: Variant of the weight files.
        cache_dir: The hub's cache.

    Raises:
        UserError: If there is no such model; the message says what was tried.
    """
    folder = demo_folder() if name == DEMO_NAME else Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(
            f"--pretrained_model_name_or_path must be a local pipeline folder, a hub id or `demo`; "
            f"there is no folder {name}."
        )
    try:
        from diffusers import DiffusionPipeline

        return Path(
            DiffusionPipeline.download(
                name, revision=revision, variant=variant, cache_dir=cache_dir, use_safetensors=True
            )
        )
    except Exception as error:  # The hub raises a dozen unrelated types; the user needs one sentence of any.
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"The model {name} is neither a local folder nor could it be had from the hub ({reason}). "
            "--pretrained_model_name_or_path takes a local pipeline folder, or `demo` for the embedded model."
        ) from error


def model_index(folder: Path) -> dict[str, object]:
    """The pipeline's `model_index.json`.

    Raises:
        UserError: If the folder is no diffusers pipeline, or a component that the index names is missing.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a diffusers pipeline: it has no model_index.json.")
    try:
        index: dict[str, object] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from error
    for component in components(index):
        if not (folder / component).is_dir() and component not in ("safety_checker", "feature_extractor"):
            raise UserError(f"{folder} is incomplete: model_index.json names {component!r}, the folder has none.")
    return index


def components(index: dict[str, object]) -> list[str]:
    """Names of the component folders that a `model_index.json` lists."""
    return [
        name for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and value[0] is not None
    ]  # fmt: skip


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors files of one component, sorted.

    Raises:
        UserError: If there are none; pickled weights are named as such.
    """
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if not _variant_of(file)]
    chosen = [file for file in files if _variant_of(file) == variant] if variant else plain
    if chosen:
        return chosen
    pickled = [file.name for file in folder.glob("*") if file.suffix in _PICKLES]
    if pickled:
        raise UserError(f"{folder} holds pickled weights only ({pickled[0]}); convert them to safetensors first.")
    found = f"variants {sorted({_variant_of(file) for file in files})}" if files else "nothing"
    raise UserError(
        f"{folder} must hold safetensors weights{f' of variant {variant}' if variant else ''}; found {found}."
    )


def _variant_of(file: Path) -> str:
    """``fp16`` of ``diffusion_pytorch_model.fp16-00001-of-00002.safetensors``; empty for plain weights."""
    parts = file.name.removesuffix(".safetensors").split(".")
    return parts[1].split("-")[0] if len(parts) > 1 else ""


def is_pickle(file: Path) -> bool:
    """Whether a file's ending says that it is a pickle."""
    return file.suffix in _PICKLES
