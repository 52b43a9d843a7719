"""Whether weight files hold the tensors of their networks, by headers: what is missing would be left at random."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
import transformers

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.component_files import OPTIONAL, weight_files
from salun_diffusers.files.pipeline_folder import DENOISERS, components, model_index
from salun_diffusers.files.whole_files import check_whole
from salun_diffusers.progress import loading_quietly

# Attention layers of checkpoints of 2022, which diffusers reads by their new names.
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def check_components(folder: Path, variant: str | None = None) -> None:
    """Compare the weight files of VAE and text encoders with the networks that their configurations describe.

    Names of older versions and tensors that nobody needs are no fault: what the libraries read is accepted. They leave
    what they do not find at random values, and say so in a log line only; that is refused. Denoisers are left to who
    computes with them, and optional parts are not needed.

    Args:
        folder: The pipeline, without code of its own.
        variant: Variant of the weight files; plain ones do where a component has none.

    Raises:
        UserError: Naming the first tensor that is missing or of another shape.
    """
    index = model_index(folder)
    for component in components(index):
        place = folder / component
        if component in DENOISERS or component in OPTIONAL or not (place / "config.json").is_file():
            continue
        library, name = map(str, cast("list[Any]", index[component]))  # `model_index` looked that it is a pair.
        module = {"diffusers": diffusers, "transformers": transformers}.get(library)
        kind: Any = getattr(module, name, None)
        if kind is None:
            continue  # Of another package; loading tells what it cannot load.
        try:
            lacking = _lacking(kind, place, variant) if module is diffusers else _reported(kind, place, variant)
        except UserError:
            raise
        except Exception as error:  # A configuration can be wrong in any way.
            raise UserError(f"{place} cannot be loaded as a {name}: {one_line(error, 200)}") from error
        if lacking:
            raise UserError(
                f"{place} does not hold the weights of its network: {lacking}; it would be left at random values."
            )


def present_name(key: str, wanted: Mapping[str, Any]) -> str:
    """The name by which diffusers reads a tensor of an old checkpoint."""
    for old, new in _OLD_NAMES.items():
        if key not in wanted and old in key and key.replace(old, new) in wanted:
            return key.replace(old, new)
    return key


def stored_shapes(files: Iterable[Path], wanted: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in some files, under their present names."""
    return {
        present_name(key, wanted): tuple(entry["shape"])
        for file in files
        for key, entry in check_whole(file).items()
        if key != "__metadata__"
    }


def _lacking(kind: Any, place: Path, variant: str | None) -> str:
    """The first tensor that a network of diffusers would not find in its files; empty where there is none."""
    with torch.device("meta"):
        network = kind.from_config(kind.load_config(place))
    wanted = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    found = stored_shapes(weight_files(place, variant, strictly=False), wanted)
    for key, shape in wanted.items():
        if found.get(key) != shape:
            return f"{key} must be of shape {shape}, found {found.get(key, 'none')}"
    return ""


def _reported(kind: Any, place: Path, variant: str | None) -> str:
    """The same of a network of transformers, by its own report: it alone knows the names that it reads."""
    files = weight_files(place, variant, strictly=False)
    named = variant if variant and any(f".{variant}" in file.name for file in files) else None
    with loading_quietly():
        network, report = kind.from_pretrained(
            place, output_loading_info=True, ignore_mismatched_sizes=True, device_map="meta", variant=named,
            local_files_only=True, use_safetensors=True,
        )  # fmt: skip
    for key in sorted(report["missing_keys"]):
        return f"{key} is missing"
    for entry in report["mismatched_keys"]:
        key, found, wanted = entry if isinstance(entry, tuple | list) else _shapes_of(entry, network, files)
        return f"{key} must be of shape {tuple(wanted)}, found {tuple(found)}"
    return ""


def _shapes_of(key: str, network: Any, files: Iterable[Path]) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """What transformers 4 leaves out of its report: a tensor's shape in the files, and in the network."""
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return key, stored_shapes(files, wanted).get(key, ()), wanted[key]
