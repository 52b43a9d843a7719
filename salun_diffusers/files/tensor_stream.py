"""safetensors files of many gigabytes, written and changed tensor by tensor: never more than one is in memory.

`safetensors.torch.save_file` wants all of them at once, which for Stable Diffusion XL are 14 GB.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from salun_diffusers.errors import UserError
from salun_diffusers.files.stored_weights import bit_patterns
from salun_diffusers.files.whole_files import check_whole

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
"""The data types of weights, by safetensors' names."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorPlace:
    """A tensor of a file before it is there."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def header(places: Iterable[TensorPlace], metadata: Mapping[str, str]) -> bytes:
    """The beginning of a safetensors file whose tensors follow in this order."""
    told: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for place in places:
        offsets = [end, end + place.size]
        told[place.name] = {"dtype": _NAMES[place.dtype], "shape": list(place.shape), "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # Data begin at a multiple of 8, as safetensors has it.
    return len(text).to_bytes(8, "little") + text


def write_one(stream: BinaryIO, tensor: Tensor) -> None:
    """Write a tensor's bytes where the stream stands."""
    stream.write(bit_patterns(tensor.detach().cpu()).numpy().data)


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file.

    Args:
        path: The file.
        name: Its name there.
        dtype: Its data type by safetensors' name.
        shape: Its shape.
        first: Its first byte, counted from the beginning of the file.
        last: The byte behind its last.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int

    @property
    def kind(self) -> torch.dtype:
        """Its data type.

        Raises:
            UserError: If weights are not of it, or its bytes are not as many as its shape says.
        """
        if self.dtype not in DTYPES:
            raise UserError(
                f"{self.path} has {self.name} as {self.dtype[:40]}; weights as {', '.join(DTYPES)} are required."
            )
        if math.prod(self.shape) * DTYPES[self.dtype].itemsize != self.last - self.first:
            raise UserError(f"{self.path} is damaged: {self.name} has other bytes than its shape needs; copy it again.")
        return DTYPES[self.dtype]

    def bits(self) -> Tensor:
        """Its bits as flat integers."""
        kind = self.kind
        with self.path.open("rb") as stream:
            stream.seek(self.first)
            data = bytearray(stream.read(self.last - self.first))
        return bit_patterns(torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind))


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """What a safetensors file holds, by name; nothing but its header is read.

    Raises:
        UserError: If the file is not whole, or its header is none.
    """
    told = check_whole(path)
    with path.open("rb") as stream:
        begin = 8 + int.from_bytes(stream.read(8), "little")
    found = {}
    for name, entry in told.items():
        if name == "__metadata__":
            continue
        shape, offsets = entry["shape"], entry["data_offsets"]
        whole = isinstance(offsets, list) and all(type(number) is int and number >= 0 for number in (*shape, *offsets))
        if not whole or len(offsets) != 2 or offsets[0] > offsets[1] or not isinstance(entry.get("dtype"), str):
            raise UserError(f"{path} is damaged: its header does not say where {name[:120]} lies; copy it again.")
        found[name] = StoredTensor(path, name, entry["dtype"], tuple(shape), *(begin + offset for offset in offsets))
    return found
