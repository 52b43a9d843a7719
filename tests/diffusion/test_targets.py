"""The base's answers: in the run's precision, in memory or on disk, and the same wherever they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from salun_diffusers.diffusion import batches, targets
from salun_diffusers.diffusion.targets import Targets
from salun_diffusers.programs.erase import main

UNET = "pipeline/unet/diffusion_pytorch_model.safetensors"


def answer(position: int) -> torch.Tensor:
    return torch.full((4, 2), position + 1 / 3)


@pytest.mark.parametrize(("in_memory", "files"), [(192, 0), (191, 1), (64, 3), (1, 6)])
def test_more_than_fits_goes_to_disk_and_leaves_nothing(tmp_path, monkeypatch, in_memory, files):
    """Six answers of 32 bytes: where all are too many, each file holds as many as the limit; it goes with its last."""
    monkeypatch.setattr(targets, "IN_MEMORY", in_memory)
    folder = tmp_path / "targets"
    found, positions = Targets(folder, torch.float32), [0, 2, 4, 6, 8, 10]
    found.fill(positions, answer)
    assert len([*folder.glob("*")]) == files
    assert all(torch.equal(found.pop(position), answer(position)) for position in positions)
    assert [*tmp_path.iterdir()] == []


def test_what_an_earlier_run_left_is_removed(tmp_path):
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "0.safetensors").write_bytes(b"old")
    Targets(tmp_path / "targets", torch.float32)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_are_kept_in_the_precision_that_is_asked_for(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(targets, "IN_MEMORY", 1)
    found = Targets(tmp_path / "targets", dtype)
    found.fill([5], answer)
    assert torch.equal(found.pop(5), answer(5).to(dtype))


@pytest.mark.parametrize("precision", [pytest.param("no", marks=pytest.mark.slow), "bf16"])
def test_a_run_is_the_same_with_targets_on_disk(small_run, tmp_path, monkeypatch, precision):
    """And under bf16 storing them in bf16 changes nothing: the network answers in bf16."""
    used, kept = [], batches.Targets

    class Spied(kept):
        def pop(self, position):
            target = super().pop(position)
            used.append((target.dtype, bool(self._files)))
            return target

    weights = []
    monkeypatch.setattr(batches, "Targets", Spied)
    for number, (limit, dtypes) in enumerate([(2**30, None), (1, None), (1, {})]):
        monkeypatch.setattr(targets, "IN_MEMORY", limit)
        if dtypes is not None:
            monkeypatch.setattr(batches, "_PRECISION", dtypes)  # All in fp32.
        assert main(small_run(output_dir=tmp_path / str(number), mixed_precision=precision)) == 0
        weights.append((tmp_path / str(number) / UNET).read_bytes())
        assert not [*(tmp_path / str(number) / "work").glob("targets*")]
    assert weights[0] == weights[1] == weights[2]
    half = torch.bfloat16 if precision == "bf16" else torch.float32
    assert [dtype for dtype, _ in used] == [half] * 8 + [torch.float32] * 4
    assert [on_disk for _, on_disk in used] == [False] * 4 + [True, True, True, False] * 2


def test_latents_are_joined_once_a_run(small_run, tmp_path, monkeypatch):
    from salun_diffusers.diffusion.latent_sets import LatentSet

    joined, add = [], LatentSet.__add__
    monkeypatch.setattr(LatentSet, "__add__", lambda first, second: joined.append(1) or add(first, second))
    assert main(small_run(output_dir=tmp_path / "run", num_anchor_images=2)) == 0
    assert len(joined) == 1
    shutil.rmtree(Path(tmp_path / "run"))
