"""How diffusers loads a pipeline folder here: under any version of it, and without code that the folder carries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from salun_diffusers.files.component_files import weight_files
from salun_diffusers.files.json_files import read_object
from salun_diffusers.files.pipeline_folder import (
    CLASS_CONDITIONAL,
    class_name,
    components,
    denoiser_folder,
    model_index,
    refuse_own_code,
)
from salun_diffusers.files.whole_files import check_whole

_REDUCED = {"F16": "float16", "BF16": "bfloat16"}  # safetensors' names and torch's


def load_folder(
    kind: Any, folder: Path, *, dtype: torch.dtype | Mapping[str, torch.dtype] | None = None, **keywords: Any
) -> Any:
    """Call `kind.from_pretrained` on a local folder.

    Args:
        kind: `DiffusionPipeline` or a pipeline class of diffusers.
        folder: The folder.
        dtype: Of all weights, or of each component's, with ``default`` for the others; None is diffusers' own choice.
        **keywords: Further arguments of `from_pretrained`.

    Raises:
        UserError: If the folder carries code that diffusers would run.
    """
    refuse_own_code(folder)
    if dtype is not None:
        keywords[dtype_argument()] = dtype
    return kind.from_pretrained(folder, local_files_only=True, **keywords)


def dtype_argument() -> str:
    """What the installed diffusers calls the data type: `torch_dtype` before 0.40, which there ignores `dtype`."""
    major, minor = version("diffusers").split(".")[:2]
    return "dtype" if (int(major), int(minor)) >= (0, 40) else "torch_dtype"


def loading_line(folder: Path, variant: str | None = None) -> str:
    """The Python line that loads a pipeline folder so that it draws.

    A variant must be named, or its files are not found. So must the data type where a text encoder's configuration asks
    for less than fp32: transformers 5 obeys that, diffusers loads everything else in fp32, and the two do not mix.

    Args:
        folder: The folder.
        variant: Variant of its weight files.
    """
    index = model_index(folder)
    words = [json.dumps(str(folder), ensure_ascii=False)]
    words += [f"variant={json.dumps(variant)}"] if variant else []
    if class_name(index) == CLASS_CONDITIONAL:
        kind = CLASS_CONDITIONAL
        return f"from salun_diffusers import {kind}; pipe = {kind}.from_pretrained({', '.join(words)})"
    declared = set()
    for component in components(index):
        if (file := folder / component / "config.json").is_file():
            config = read_object(file, constants=float)
            declared |= {str(config[name]) for name in ("dtype", "torch_dtype") if config.get(name)}
    needs = bool(declared - {"float32"})
    words += [f"{dtype_argument()}=torch.{_one_dtype(folder / denoiser_folder(index, folder), variant)}"] * needs
    kind = "DiffusionPipeline"
    return f"{'import torch; ' * needs}from diffusers import {kind}; pipe = {kind}.from_pretrained({', '.join(words)})"


def _one_dtype(component: Path, variant: str | None) -> str:
    """The data type of a component's weights by torch's name; float32 where there are several."""
    headers = (check_whole(file) for file in weight_files(component, variant))
    found = {entry["dtype"] for header in headers for name, entry in header.items() if name != "__metadata__"}
    return _REDUCED.get(found.pop(), "float32") if len(found) == 1 else "float32"
