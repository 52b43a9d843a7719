"""Tensors as they are stored: those of a component folder, their bit patterns, and how a file of them is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.component_files import weight_files
from salun_diffusers.files.whole_files import check_whole, whole_file

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def stored_weights(folder: Path, variant: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, one after the other, in the data type of the file.

    Raises:
        UserError: If there are no whole safetensors weights of that variant.
    """
    for path in weight_files(folder, variant):
        check_whole(path)
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - a safe_open handle is no mapping
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({one_line(error, 120)}); copy it again.") from error


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a component by name, each read when it is asked for: two denoisers are compared in the memory of
    two tensors."""

    def __init__(self, folder: Path, variant: str | None = None) -> None:
        """Read the headers.

        Args:
            folder: The component's folder.
            variant: Variant of its weight files.

        Raises:
            UserError: If there are no whole safetensors weights of that variant.
        """
        self._files = {
            name: file for file in weight_files(folder, variant) for name in check_whole(file) if name != "__metadata__"
        }

    def __getitem__(self, name: str) -> Tensor:
        """Read one.

        Raises:
            UserError: If its file is damaged.
        """
        file = self._files[name]
        try:
            with safe_open(file, framework="pt") as opened:
                return opened.get_tensor(name)  # type: ignore[no-any-return]
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{file} is damaged ({one_line(error, 120)}); copy it again.") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def stored_dtypes(folder: Path, variant: str | None = None) -> dict[str, torch.dtype]:
    """The data type of each tensor of a component; files of several types are not rare."""
    return {name: tensor.dtype for name, tensor in stored_weights(folder, variant)}


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *, shared: bool = False
) -> None:
    """Write a safetensors file, whole or not at all.

    Args:
        path: The file.
        tensors: By name, on any device.
        metadata: Text for the header.
        shared: Whether another process may be writing the same file.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(path, shared=shared) as partial:
        save_file(stored, partial, metadata=dict(metadata) if metadata else None)


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
