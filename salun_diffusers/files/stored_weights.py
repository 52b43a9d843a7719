"""The tensors of a component folder as they are stored, and their bit patterns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from salun_diffusers.files.pipeline_folder import check_whole, weight_files

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def stored_weights(folder: Path, variant: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, one after the other, in the data type of the file.

    Raises:
        UserError: If there are no whole safetensors weights of that variant.
    """
    for path in weight_files(folder, variant):
        check_whole(path)
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safe_open handle is no mapping
                yield name, file.get_tensor(name)


def bit_patterns(tensor: Tensor) -> Tensor:
    """The bits as integers of the same width; equal exactly if the values are the same, NaN and -0.0 included."""
    return tensor.contiguous().view(_INTEGERS[tensor.element_size()])


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, data types, shapes and bytes, in the order of the sorted names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(bit_patterns(tensor).numpy().data)
    return digest.hexdigest()
