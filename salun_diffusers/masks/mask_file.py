"""The file of a saliency mask: one bit per weight in safetensors, everything else in the header. Nothing is pickled.

Each parameter is a uint8 tensor of `ceil(size / 8)` bytes, in the layout of ``numpy.packbits(bitorder="little")``.
The header's metadata holds ``format``, ``version``, ``shapes`` (JSON: name -> shape, in the model's order), ``sha256``
(of the bits), ``recipe`` (JSON: how the mask was made) and ``seal`` (a SHA-256 over all of these).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from salun_diffusers.errors import UserError, tell
from salun_diffusers.files.json_files import parse_json, require_regular
from salun_diffusers.files.stored_weights import write_tensors
from salun_diffusers.files.whole_files import check_whole
from salun_diffusers.masks.packed_bits import bytes_for, padding

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
Contents: TypeAlias = "tuple[dict[str, Tensor], dict[str, torch.Size], dict[str, JSON]]"

FORMAT = "salun_diffusers.mask"
VERSION = 2  # Version 1 had no seal; its files are read with a warning.


def write_mask(
    path: str | os.PathLike[str],
    packed: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    recipe: Mapping[str, JSON],
) -> None:
    """Write a mask file; under its final name it exists complete or not at all. Missing folders are made."""
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "shapes": json.dumps({name: list(shape) for name, shape in shapes.items()}),
        "sha256": bits_sha256(packed),
        "recipe": json.dumps(dict(recipe)),
    }
    metadata["seal"] = _seal(metadata)
    write_tensors(Path(path), packed, metadata)


def read_mask(path: str | os.PathLike[str]) -> Contents:
    """Read and check a file made by `write_mask`.

    Returns:
        Packed bits and shapes by name, in the model's order, and the recipe.

    Raises:
        UserError: If the file is missing, no mask, newer than this program, or its bits are not those that were
            written; the message names the file and, where there is one, the tensor.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file} does not exist: expected a mask file written by SaliencyMask.save, found no file.")
    require_regular(file)
    metadata = _texts(check_whole(file).get("__metadata__", {}), file)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{file} is not a saliency mask: expected the metadata format={FORMAT!r}, found {metadata.get('format')!r}."
        )
    version = metadata.get("version", "")
    if version not in ("1", str(VERSION)):
        raise UserError(
            f"{file} has mask format version {version!r}, expected '{VERSION}': "
            "update salun_diffusers or make the mask again."
        )
    unsealed = version == "1" and "seal" not in metadata
    if not unsealed and metadata.get("seal") != _seal(metadata):
        raise UserError(
            f"{file}: its shapes or its recipe have been altered, the hash over them is another; copy it again."
        )
    try:
        shapes = {name: _shape(shape) for name, shape in parse_json(metadata["shapes"].encode()).items()}
        recipe, sha256 = dict(parse_json(metadata["recipe"].encode())), metadata["sha256"]
        tensors = load_file(file)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OSError, SafetensorError) as error:
        raise UserError(
            f"{file} is damaged: expected shapes, recipe and sha256 as SaliencyMask.save writes them, found {error!r}."
        ) from error

    for name in tensors:
        if name not in shapes:
            raise UserError(f"{file}: found tensor {name}, expected only tensors that the header has a shape for.")
    for name, shape in shapes.items():
        _check_bits(file, name, shape, tensors.get(name))
    packed = {name: tensors[name] for name in shapes}
    if bits_sha256(packed) != sha256:
        raise UserError(
            f"{file}: the bits have been altered: expected sha256 {sha256}, found {bits_sha256(packed)}; copy it again."
        )
    if unsealed:
        tell(
            "warning",
            f"{file} is of version 1, which has no hash over shapes and recipe: nothing vouches for those. "
            "SaliencyMask.load(FILE).save(FILE) seals what you trust.",
        )
    return packed, shapes, recipe


def _texts(metadata: object, file: Path) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"{file} is damaged: text is required as metadata of its header.")
    return metadata


def _seal(metadata: Mapping[str, str]) -> str:
    """SHA-256 over all else that the header says."""
    told = [metadata.get(name, "") for name in ("format", "version", "shapes", "sha256", "recipe")]
    return hashlib.sha256("\0".join(told).encode()).hexdigest()


def bits_sha256(packed: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over the names and packed bytes of a mask, in the order of the sorted names."""
    digest = hashlib.sha256()
    for name in sorted(packed):
        digest.update(name.encode() + b"\0")
        digest.update(packed[name].numpy().data)
    return digest.hexdigest()


def _shape(sizes: object) -> torch.Size:
    if not isinstance(sizes, list) or not all(type(size) is int and 0 <= size < 2**48 for size in sizes):
        raise ValueError(f"a shape {str(sizes)[:40]}")
    return torch.Size(sizes)


def _check_bits(file: Path, name: str, shape: torch.Size, packed: Tensor | None) -> None:
    size = math.prod(shape)
    if packed is None:
        raise UserError(f"{file}: expected a tensor {name}, found none of that name.")
    if packed.dtype != torch.uint8 or packed.shape != (bytes_for(size),):
        raise UserError(
            f"{file}: tensor {name} of shape {tuple(shape)} expected {bytes_for(size)} bytes of bits, "
            f"found {packed.dtype} of shape {tuple(packed.shape)}."
        )
    if padding(packed, size):
        raise UserError(
            f"{file}: tensor {name} expected only zeros beyond its {size} bits, found {padding(packed, size):#b}."
        )
