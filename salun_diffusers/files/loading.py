"""How diffusers loads a pipeline folder here: under any version of it, and without code that the folder carries."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from salun_diffusers.files.pipeline_folder import refuse_own_code


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
