"""Training state on disk: tensors as safetensors, everything else as JSON, written whole or not at all.

torch's and accelerate's own checkpoints are pickles; these are not, so a checkpoint from anywhere is safe to open.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from salun_diffusers.files.kept_checkpoints import STATE, TENSORS, damaged, read_state, seal
from salun_diffusers.files.stored_weights import write_tensors
from salun_diffusers.files.whole_files import sha256_of, whole_folder, write_json


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split an optimizer's state into flat tensors (``"<index>.<name>"``) and plain values.

    Entries of entries are taken as entries: bitsandbytes wraps its moments once more, and reads them without, too. Of
    tensors that it shares among parameters, its tables of 256 values, each gets its own.
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    places: set[int] = set()
    for index, entries in state["state"].items():
        for name, value in _unwrapped(entries):
            if not isinstance(value, Tensor):
                values[f"{index}.{name}"] = value
                continue
            stored = value.detach().cpu().contiguous()
            tensors[f"{index}.{name}"] = stored.clone() if stored.data_ptr() in places else stored
            places.add(stored.data_ptr())
    return tensors, {"values": values, "param_groups": state["param_groups"]}


def _unwrapped(entries: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in entries.items():
        yield from value.items() if isinstance(value, dict) else [(name, value)]


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Undo `optimizer_state`: put tensors and plain values back into an optimizer of the same parameters."""
    entries: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *state["values"].items()]:
        index, name = key.split(".", 1)
        entries.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": entries, "param_groups": state["param_groups"]})


def save_state(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a checkpoint folder; under its final name it exists complete or not at all.

    Args:
        folder: Where the checkpoint goes; an older one there is replaced.
        tensors: The tensors of the state, any names.
        state: JSON-serialisable values.
    """
    with whole_folder(folder) as partial:
        write_tensors(partial / TENSORS, tensors)
        values = json.loads(json.dumps(dict(state)))
        values["sha256"] = seal(values, sha256_of(partial / TENSORS))
        write_json(partial / STATE, values, indent=None)


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a folder written by `save_state`.

    Raises:
        UserError: As for `read_state`.
    """
    state = read_state(folder)
    try:
        return load_file(folder / TENSORS), state
    except (OSError, ValueError, SafetensorError) as error:
        raise damaged(folder, error) from error
