"""Pipelines of the real architectures go into one file and out of it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.numpy import save_file


def test_bytes_that_differ_are_told_apart(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    program = script("single_file_at_size")
    tensors = {program.CHANGED[1]: np.arange(4, dtype=np.float32), "other": np.zeros(3, np.float32)}
    save_file(tensors, tmp_path / "a.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / "b.safetensors")
    save_file(tensors | {program.CHANGED[1]: -tensors[program.CHANGED[1]]}, tmp_path / "c.safetensors")
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    assert program.bytes_outside(files[0], files[0]) == (0, 0)
    assert program.bytes_outside(files[0], files[1])[1] == 6
    # -0.0 is another 0.
    assert program.bytes_outside(files[0], files[2]) == (4, 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_real_networks(script: Callable[[str], ModuleType], kind: str, tmp_path: Path) -> None:
    """At most 22 GB of memory and 25 of disk."""
    figures = script("single_file_at_size").measure(kind, tmp_path)
    assert figures["fp32"]["same_picture"] and figures["fp16"]["same_picture"]
    assert figures["changed"]["bytes_elsewhere"] == 0 < figures["changed"]["bytes_in_the_tensor"]
    assert all(figures[name]["export"]["peak_gigabytes"] < 5 for name in ("fp32", "fp16"))
