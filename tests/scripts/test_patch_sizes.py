"""Sizes of patches are those of the files, and the figures in docs/results/ are what the script counts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from salun_diffusers.errors import UserError
from salun_diffusers.masks.packed_bits import count_ones
from salun_diffusers.masks.patch import WeightPatch


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_to_the_byte(script: Callable[[str], ModuleType], dtype: str, tmp_path: Path) -> None:
    """Of tensors of many sizes, of which one stays as it is."""
    kind, drawn = getattr(torch, dtype), torch.Generator().manual_seed(0)
    base = {f"block.{size}.weight": torch.randn(size, generator=drawn).to(kind) for size in (1, 7, 8, 9, 1000, 4097)}
    erased = {
        name: torch.where(torch.rand(old.shape, generator=drawn) < 0.3, old + 1, old) for name, old in base.items()
    }
    erased["block.7.weight"] = base["block.7.weight"]
    about = {"concept": "Caf\u00e9", "base": "demo"}
    patch = dataclasses.replace(WeightPatch.between(base, erased), about=about)
    patch.save(tmp_path / "p.safetensors")
    sizes = {name: tensor.numel() for name, tensor in base.items()}
    moved = {name: count_ones(bits) for name, bits in patch.places.items()}
    assert 0 < len(moved) < len(sizes)
    counted = script("patch_sizes").patch_bytes(sizes, moved, dtype, about)
    assert counted == (tmp_path / "p.safetensors").stat().st_size


def test_the_figures_are_the_scripts(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    program = script("patch_sizes")
    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- patch-sizes -->\nold\n<!-- end of patch-sizes -->\nAfter.\n")
    assert program.main(["--json", str(tmp_path / "sizes.json"), "--page", str(page)]) == 0
    found = json.loads((tmp_path / "sizes.json").read_text())
    assert found == json.loads(program.RESULTS.read_text(encoding="utf-8"))
    assert found["weights"] == 859_520_964 and found["tensors"] == 686
    half = next(row for row in found["rows"] if (row["ratio"], row["dtype"]) == (0.5, "float16"))
    assert half["moved"] == found["weights"] // 2
    assert half["bytes"] == pytest.approx(859_520_964 * (1 / 8 + 0.5 * 2), rel=1e-3)
    said = page.read_text()
    assert said == f"Before.\n<!-- patch-sizes -->\n{program.table(found)}\n<!-- end of patch-sizes -->\nAfter.\n"
    with pytest.raises(UserError, match="must have the lines"):
        program.with_table("nothing", found)
