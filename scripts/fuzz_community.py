"""A patch as the pipeline in one file of pipelines/ reads it, for `fuzz.py`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from salun_diffusers.errors import UserError


@cache
def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent.parent / "pipelines" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Dataclasses look there for their annotations.
    spec.loader.exec_module(module)
    return module


def erased_by_pipeline(patch: Path, base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a patch makes of a base's.

    Raises:
        UserError: For the `ValueError` by which such a file refuses one; it knows no error but Python's.
    """
    live = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in base.items()}
    try:
        with torch.no_grad():
            _module("erased_stable_diffusion")._read(patch).on(live, lambda: iter(())).at(1.0)
    except ValueError as error:
        raise UserError(str(error)) from error
    return {name: parameter.detach() for name, parameter in live.items()}
