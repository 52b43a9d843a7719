"""Where the base model lies and what kind it is, found out before any heavy import."""

from __future__ import annotations

import json
from pathlib import Path

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.whole_files import check_whole

CLASS_CONDITIONAL = "ClassConditionalDDPMPipeline"
_DEMO = Path(__file__).parent.parent / "demo"
EMBEDDED = {"demo": _DEMO / "pipeline", "digits": _DEMO / "digits" / "pipeline"}
_DENOISERS = ("unet", "transformer")
_PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}
_WEIGHTS = {".safetensors", ".gguf", ".h5", ".msgpack", ".onnx"} | _PICKLES


def is_local(name: str) -> bool:
    """Whether a model is at hand: an embedded one or a folder."""
    return name in EMBEDDED or Path(name).expanduser().is_dir()


def locate(
    name: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    cache_dir: str | None = None,
    download: bool = True,
) -> Path:
    """The local folder of a pipeline: an embedded one, a folder of the user's, or a download from the hub.

    Args:
        name: ``demo``, ``digits``, a local folder, or a hub id.
        revision: Hub revision.
        variant: Variant of the weight files.
        cache_dir: The hub's cache.
        download: Whether weights are fetched from the hub; otherwise only `model_index.json` is.

    Raises:
        UserError: If there is no such model; the message says what was tried.
    """
    folder = EMBEDDED.get(name) or Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(
            f"--pretrained_model_name_or_path must be a local pipeline folder, a hub id, `demo` or `digits`; "
            f"there is no folder {name}."
        )
    try:
        if not download:
            from huggingface_hub import hf_hub_download

            return Path(hf_hub_download(name, "model_index.json", revision=revision, cache_dir=cache_dir)).parent
        from diffusers import DiffusionPipeline

        return Path(
            DiffusionPipeline.download(
                name, revision=revision, variant=variant, cache_dir=cache_dir, use_safetensors=True
            )
        )
    except Exception as error:  # The hub raises a dozen unrelated types; the user needs one sentence of any.
        raise UserError(
            f"The model {name} is neither a local folder nor could it be had from the hub ({one_line(error, 160)}). "
            "--pretrained_model_name_or_path takes a local folder, or `demo` or `digits` for an embedded model."
        ) from error


def embedded_detector(name: str) -> Path:
    """Folder of the classifier that goes with an embedded model."""
    return EMBEDDED[name].parent / "detector"


def model_index(folder: Path) -> dict[str, object]:
    """The pipeline's `model_index.json`.

    Raises:
        UserError: If there is no such folder, or it is no diffusers pipeline.
    """
    path = folder / "model_index.json"
    if not folder.is_dir():
        raise UserError(f"A pipeline folder is required, there is no folder {folder}.")
    if not path.is_file():
        raise UserError(f"{folder} is not a diffusers pipeline: it has no model_index.json.")
    try:
        index: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(index, dict):
        raise UserError(f"{path} must hold a JSON object that names the components, found {type(index).__name__}.")
    return index


def class_name(index: dict[str, object]) -> str:
    """The pipeline's class; a folder that carries its own code names the file as well."""
    named = index.get("_class_name", "")
    return str(named[-1] if isinstance(named, list) and named else named)


def own_code(folder: Path) -> list[str]:
    """Files of code in a pipeline folder that diffusers would run to load it.

    diffusers from 0.40 on asks for `trust_remote_code` first, 0.35 does not.
    """
    index = model_index(folder)
    # 0.35 looks for a file named after the `custom_pipeline` that was asked for: `None`, where none was.
    files = ["None.py"] if (folder / "None.py").is_file() else []
    named = index.get("_class_name")
    if isinstance(named, list):
        files.append(f"{named[0] if named else ''}.py")
    for component in components(index):
        library = index[component][0]  # type: ignore[index]  # `components` looked that it is a list
        if (folder / component / f"{library}.py").is_file():
            files.append(f"{component}/{library}.py")
    return files


def refuse_own_code(folder: Path) -> None:
    """Refuse a folder whose code diffusers would run.

    Raises:
        UserError: If there is any.
    """
    files = own_code(folder)
    if files:
        raise UserError(
            f"{folder} carries code of its own ({', '.join(files)}), and code of a model is never run here: a folder "
            "of one of diffusers' own classes is required."
        )


def components(index: dict[str, object]) -> list[str]:
    """Names of the component folders that a `model_index.json` lists."""
    return [
        name for name, value in index.items()
        if not name.startswith("_") and isinstance(value, list) and value and value[0] is not None
    ]  # fmt: skip


def denoiser_folder(index: dict[str, object], folder: Path) -> str:
    """Name of the component that erasing rewrites."""
    for name in _DENOISERS:
        if name in components(index):
            return name
    raise UserError(f"{folder} has no denoiser: one of {', '.join(_DENOISERS)} is required.")


def check_complete(folder: Path, variant: str | None = None) -> None:
    """Look whether a pipeline folder holds every component whole, without loading any.

    The safety checker and its feature extractor are not needed here and may be absent.

    Raises:
        UserError: Naming the first component or file that is missing, pickled or truncated, or code that it carries.
    """
    index = model_index(folder)
    if class_name(index) != CLASS_CONDITIONAL:  # Those are loaded by the class of this package, whatever they carry.
        refuse_own_code(folder)
    for component in components(index):
        place = folder / component
        if component in ("safety_checker", "feature_extractor"):
            continue
        if not place.is_dir():
            raise UserError(f"{folder} is incomplete: model_index.json names {component!r}, the folder has none.")
        if component in _DENOISERS and not (place / "config.json").is_file():
            raise UserError(f"{folder} is incomplete: {place} has no config.json.")
        if (place / "config.json").is_file():  # It is a model; schedulers and tokenizers name theirs otherwise.
            for file in weight_files(place, variant, strictly=component in _DENOISERS):
                check_whole(file)


def weight_files(folder: Path, variant: str | None = None, *, strictly: bool = True) -> list[Path]:
    """The safetensors files of one component, sorted.

    Args:
        folder: The component's folder.
        variant: Such as ``fp16``.
        strictly: Whether plain weights will not do where there are none of the variant.

    Raises:
        UserError: If there are none, or a shard is missing; pickled weights are named as such.
    """
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if not _variant_of(file)]
    chosen = [file for file in files if _variant_of(file) == variant] if variant else plain
    if not chosen and not strictly:
        chosen = plain
    if chosen:
        for listing in folder.glob("*.safetensors.index.json"):
            for shard in set(json.loads(listing.read_text())["weight_map"].values()):
                if _variant_of(Path(shard)) == _variant_of(chosen[0]) and not (folder / shard).is_file():
                    raise UserError(f"{folder} is incomplete: {listing.name} names {shard}, the folder has none.")
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


def is_weights(file: Path) -> bool:
    """Whether a file's ending says that it holds weights, of whatever format."""
    return file.suffix in _WEIGHTS
