"""A folder with a LoRA: one file of weights that diffusers, WebUI or ComfyUI load, and a record of what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file

from salun_diffusers.adapters.lora_names import (
    PREFIX,
    from_peft,
    kohya_header,
    kohya_tensors,
    peft_settings,
    peft_tensors,
)
from salun_diffusers.adapters.low_rank import Factors, LowRank
from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.stored_weights import write_tensors
from salun_diffusers.files.whole_files import check_whole, full_disk_is_told, whole_folder, write_json

Layout = Literal["peft", "kohya"]
WEIGHTS = "pytorch_lora_weights.safetensors"
RECORD = "lora.json"
FORMAT = "salun_diffusers.lora"
_METADATA = "lora_adapter_metadata"  # Where diffusers looks for PEFT's settings.


def write_lora(folder: Path, lora: LowRank, record: Mapping[str, Any], layout: Layout = "peft") -> Path:
    """Write a LoRA's folder, whole or not at all; returns its file of weights.

    Args:
        folder: A new folder, or an older one of this kind, which is replaced. Of kohya's layout the file has its name,
            as WebUI and ComfyUI list files; of PEFT's, diffusers' name.
        lora: The changes.
        record: What is told of them in ``lora.json``.
        layout: Whose names the tensors have.
    """
    name = WEIGHTS if layout == "peft" else f"{folder.name}.safetensors"
    with full_disk_is_told("the LoRA"), whole_folder(folder) as partial:
        if layout == "peft":
            settings = {f"{PREFIX}{key}": value for key, value in peft_settings(lora).items()}
            tensors = {f"{PREFIX}{key}": tensor for key, tensor in peft_tensors(lora).items()}
            # One entry: safetensors writes several in any order, and the same LoRA is the same file.
            header = {_METADATA: json.dumps(settings, sort_keys=True)}
        else:
            tensors, header = kohya_tensors(lora), kohya_header(lora)
        write_tensors(partial / name, tensors, header)
        size = (partial / name).stat().st_size
        write_json(
            partial / RECORD,
            {"format": FORMAT, "version": 1, "layout": layout, "file": name, "bytes": size, **record},
        )  # fmt: skip
    return folder / name


def read_lora(folder: Path) -> LowRank:
    """The changes in a folder that `write_lora` wrote with PEFT's names.

    Raises:
        UserError: If there is no such file, or it is damaged or none of a LoRA.
    """
    file = folder / WEIGHTS
    if not file.is_file():
        raise UserError(f"{folder} must hold a LoRA, {WEIGHTS}; it has none.")
    header = check_whole(file)
    try:
        lora = from_peft(load_file(file))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{file} is damaged or no LoRA ({one_line(repr(error), 120)}); copy it again.") from error
    paired = 2 * len(lora) == sum(name != "__metadata__" for name in header)
    if not lora or not paired or not all(map(_fits, lora.values())):
        raise UserError(f"{file} is no LoRA in PEFT's names: pairs of lora_A and lora_B of one rank are required.")
    return lora


def _fits(one: Factors) -> bool:
    """Whether two tensors are A and B of one layer."""
    same = one.down.dim() == one.up.dim() in (2, 4)
    return same and one.down.is_floating_point() and one.up.shape[1:] == (one.rank, *(1,) * (one.up.dim() - 2))
