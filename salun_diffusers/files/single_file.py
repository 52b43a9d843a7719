"""Checkpoints of one file, as other programs share them: written out once as a pipeline folder, which is used then."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from salun_diffusers.errors import UserError, one_line, tell
from salun_diffusers.files.component_files import OPTIONAL, pipeline_files
from salun_diffusers.files.eraser_files import read_eraser_file, split_sum
from salun_diffusers.files.eraser_fit import fit_weights
from salun_diffusers.files.json_files import read_object
from salun_diffusers.files.pickles import refuse_pickle
from salun_diffusers.files.pipeline_copy import index_without
from salun_diffusers.files.pipeline_folder import class_name, components, is_local, locate, model_index
from salun_diffusers.files.run_folder import fingerprint
from salun_diffusers.files.whole_files import (
    check_whole,
    full_disk_is_told,
    require_space,
    whole_folder,
    write_json,
    write_text,
)
from salun_diffusers.progress import loading_quietly

SINGLE_FILES = "single_files"
"""Name of the folder where they are kept."""
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_DENOISER, _VAE, _TEXT = "model.diffusion_model.", "first_stage_model.", ("cond_stage_model.", "conditioner.")

Check = Callable[[Path, Mapping[str, Any]], None]
"""Refuses a pipeline by its folder and its model_index.json."""


def is_single_file(name: str) -> bool:
    """Whether a model's name is that of a file, or BASE+FILE: of what is written out as a folder.

    Raises:
        UserError: If there is a plus and no file behind it.
    """
    return Path(name).expanduser().is_file() or split_sum(name) is not None


def find_model(
    name: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    cache_dir: str | None = None,
    download: bool = True,
    single_file_config: str | None = None,
    check: Check = lambda folder, index: None,
) -> Path:
    """The local folder of a model: what `locate` finds, or what a single file was or is now written out as.

    Args:
        name: As for `locate`, or a safetensors file, or BASE+FILE with weights of another eraser.
        revision: As for `locate`.
        variant: As for `locate`.
        cache_dir: As for `locate`; folders of single files are kept there as well.
        download: Whether weights are fetched, or written out; else a single file's folder is that of its configuration.
        single_file_config: Pipeline folder or hub id with configurations and tokenizers for a single file.
        check: Asked before a single file is written out.

    Raises:
        UserError: If there is no such model, or the file is none of a whole pipeline.
    """
    two = split_sum(name)
    if two is not None:
        base = find_model(two[0], revision=revision, variant=variant, cache_dir=cache_dir, download=download,
                          single_file_config=single_file_config, check=check)  # fmt: skip
        check(base, model_index(base))
        return base if not download and not is_local(two[0]) else _of_sum(base, two[1], variant, cache_dir, download)
    if not is_single_file(name):
        return locate(name, revision=revision, variant=variant, cache_dir=cache_dir, download=download)
    file = Path(name).expanduser().absolute()
    header = check_single_file(file)
    kept = _kept(file, cache_dir)
    found = sorted(kept.parent.glob(f"{kept.name}-*"), key=lambda path: path.stat().st_mtime)
    if found and single_file_config is None:
        return found[-1]
    wanted = single_file_config or _usual_configuration(file, header)
    target = kept.with_name(f"{kept.name}-{fingerprint(config=wanted)[:8]}")
    if target.is_dir():
        return target
    configuration = _configuration(file, wanted, cache_dir)
    check(configuration, model_index(configuration))
    if not download:
        return configuration
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # The processes of a run come here together.
        if not target.is_dir():
            tell("note", f"{file.name} is written out as a pipeline folder, {target}, which later runs find there.")
            _write_out(file, header, configuration, target)
    return target


def check_single_file(file: Path) -> dict[str, Any]:
    """The header of a checkpoint that holds a whole pipeline.

    Raises:
        UserError: If it is a pickle, damaged, or holds something else; the message says what.
    """
    refuse_pickle(file)
    if file.suffix.lower() != ".safetensors":
        raise UserError(f"A pipeline folder, a hub id or a .safetensors file is required, {file} is another file.")
    header = check_whole(file)
    names = [name for name in header if name != "__metadata__"]
    if not any(name.startswith(_DENOISER) for name in names):
        if any("lora_" in name or ".lora" in name for name in names):
            what = "a LoRA, which changes a model and is none: fuse it into its pipeline and save that"
        elif any(name.startswith(("down_blocks.", "encoder.", "text_model.", "transformer_blocks.")) for name in names):
            what = "one component of a pipeline folder: give the folder with model_index.json"
        else:
            what = f"none (its tensors are such as {next(iter(names), 'none')})"
        raise UserError(f"A checkpoint of a whole pipeline is required, with tensors {_DENOISER}…; {file} is {what}.")
    for part, words in (("VAE", (_VAE,)), ("text encoder", _TEXT)):
        if not any(name.startswith(words) for name in names):
            raise UserError(
                f"A checkpoint of a whole pipeline is required; {file} has no {part} ({words[0]}…): take the full "
                "file, or put its U-Net into a pipeline folder."
            )
    return header


def _kept(file: Path, cache_dir: str | None) -> Path:
    """Beginning of the folder that a file is written out as; another file of its name has another."""
    status = file.stat()
    key = fingerprint(file=str(file.resolve()), bytes=status.st_size, changed=status.st_mtime_ns)[:12]
    return _home(cache_dir) / f"{file.stem}-{key}"


def _of_sum(base: Path, file: Path, variant: str | None, cache_dir: str | None, download: bool) -> Path:
    """The folder of a base with another eraser's weights."""
    found = read_eraser_file(file)
    if found.kind != "weights":
        how = f"salun patch apply {shlex.quote(str(base))} {shlex.quote(str(file))} FOLDER"
        raise UserError(
            f"{file} is a {found.kind}; here a pipeline folder is required: make one of it and its base by "
            f"{how if found.kind == 'patch' else 'load_lora_weights, fuse_lora, unload_lora_weights, save_pretrained'}."
        )
    placed = fit_weights(found, base, variant)
    parts = [*found.files, *(path.path for path in pipeline_files(base) if path.is_weights)]
    marks = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in parts]
    target = _home(cache_dir) / f"{file.stem}-{fingerprint(parts=marks, variant=variant)[:12]}"
    if target.is_dir() or not download:
        return target if target.is_dir() else base
    from salun_diffusers.files.eraser_folder import write_edited

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            tell("note", f"{file.name} and its base are written out as a pipeline folder, {target}.")
            write_edited(base, target, placed, variant)
    return target


def _home(cache_dir: str | None) -> Path:
    """Where folders of single files are kept."""
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "salun_diffusers"
    return (Path(cache_dir).expanduser() if cache_dir else home) / SINGLE_FILES


def _usual_configuration(file: Path, header: Mapping[str, Any]) -> str:
    """Hub id of the model whose configuration and tokenizers belong to a checkpoint, as diffusers infers it."""
    import torch
    from diffusers.loaders.single_file_utils import fetch_diffusers_config

    shapes = {
        name: torch.empty(entry["shape"], device="meta") for name, entry in header.items() if name != "__metadata__"
    }
    try:
        return str(fetch_diffusers_config(shapes)["pretrained_model_name_or_path"])
    except Exception as error:  # Of shapes that it does not expect it says anything.
        raise UserError(
            f"diffusers does not know what {file} is ({one_line(error, 120)}); say by --single_file_config which "
            "pipeline folder has its configuration."
        ) from error


def _configuration(file: Path, wanted: str, cache_dir: str | None) -> Path:
    """Folder with the configurations and tokenizers of a model."""
    folder = Path(wanted).expanduser()
    if folder.is_dir():
        return folder
    try:
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "*/*.json", "*/*.txt"]
        return Path(snapshot_download(wanted, allow_patterns=patterns, cache_dir=cache_dir))
    except Exception as error:  # The hub raises a dozen unrelated types; the user needs one sentence of any.
        raise UserError(
            f"The configuration and tokenizers of {wanted}, which {file} needs, could not be had from the hub "
            f"({one_line(error, 120)}): give a pipeline folder of the same kind as --single_file_config, weights are "
            "not taken from it."
        ) from error


def _write_out(file: Path, header: Mapping[str, Any], configuration: Path, target: Path) -> None:
    """Write a checkpoint as a folder: weights of the file, in its data type, and all else of the configuration."""
    import diffusers
    import torch

    from salun_diffusers.files.loading import dtype_argument
    from salun_diffusers.files.stored_weights import write_tensors

    require_space(target.parent, file.stat().st_size, "The pipeline folder")
    index = model_index(configuration)
    kind = getattr(diffusers, class_name(index))
    stored = next(entry["dtype"] for name, entry in header.items() if name.startswith(_DENOISER))
    dtype = getattr(torch, _DTYPES.get(stored, "float32"))
    absent = [name for name in components(index) if name in OPTIONAL]
    keywords = {dtype_argument(): dtype, **dict.fromkeys(absent)}
    if "safety_checker" in index:
        keywords["requires_safety_checker"] = False
    try:
        with loading_quietly():
            pipe = kind.from_single_file(str(file), config=str(configuration), local_files_only=True, **keywords)
        models = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
        weights = {name: part.state_dict() for name, part in models.items()}
    except Exception as error:  # A file can be unlike its configuration in any way.
        raise UserError(
            f"{file} cannot be read as {class_name(index)} with the configuration of {configuration}: "
            f"{'tensors are missing' if 'meta tensor' in str(error) else one_line(error, 200)}; a file and a "
            "configuration of one kind are required."
        ) from error
    with full_disk_is_told("the pipeline folder"), whole_folder(target) as partial:
        for part in pipeline_files(configuration):
            if part.component and not part.is_weights and part.component not in absent:
                (partial / part.name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(part.path, partial / part.name)
        write_text(partial / "model_index.json", index_without(configuration, absent))
        for name, state in weights.items():
            # transformers 5 calls a text model's tensors by shorter names, which 4 does not read.
            prefix = "text_model." if type(models[name]).__name__ == "CLIPTextModel" else ""
            stem = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
            tensors = {prefix + key.removeprefix(prefix): tensor for key, tensor in state.items()}
            write_tensors(partial / name / f"{stem}.safetensors", tensors, {"format": "pt"})
        _mark_prediction(partial / "scheduler" / "scheduler_config.json", header)


def _mark_prediction(scheduler: Path, header: Mapping[str, Any]) -> None:
    """Enter what empty tensors named `v_pred` and `ztsnr` say of a checkpoint of Stable Diffusion XL."""
    marks: dict[str, Any] = {"prediction_type": "v_prediction"} if "v_pred" in header else {}
    if "ztsnr" in header:
        marks |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if marks:
        write_json(scheduler, read_object(scheduler, constants=float) | marks)
