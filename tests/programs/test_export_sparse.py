"""`salun export sparse`: what PEFT carries it carries exactly; what it cannot is refused, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from held_pipes import QUICK, load

from salun_diffusers import UserError, erase
from salun_diffusers.programs.erase import main as erase_main
from salun_diffusers.programs.export_sparse import main

HAS_IT = hasattr(peft, "SupertuningConfig")  # From 0.21 on.


@pytest.fixture
def changed(tiny_pipeline: Path, tmp_path: Path) -> Callable[..., Path]:
    """The tiny pipeline with other values at some places of some tensors."""

    def make(**places: int) -> Path:
        pipe = load(tiny_pipeline)
        tensors = dict(pipe.unet.named_parameters())
        with torch.no_grad():
            for name, step in places.items():
                flat = tensors[name].view(-1)
                flat[::step] += torch.randn(len(flat[::step]), generator=torch.Generator().manual_seed(step))
        pipe.save_pretrained(tmp_path / "changed")
        return tmp_path / "changed"

    return make


TO_Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q.weight"
FF = "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2.weight"


def export(*words: object) -> int:
    return main(list(map(str, words)))


def test_peft_loads_what_moved(
    changed: Callable[..., Path], tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    erased, folder = changed(**{TO_Q: 3, FF: 7}), tmp_path / "sparse"
    code = export(erased, folder, "--base", tiny_pipeline)
    if not HAS_IT:
        assert code == 2 and "does not have: pip install -U peft" in capsys.readouterr().err
        return
    assert code == 0
    unet: Any = load(tiny_pipeline).unet
    wanted, before = load(erased).unet.state_dict(), {name: t.clone() for name, t in unet.state_dict().items()}
    merged = peft.PeftModel.from_pretrained(unet, str(folder)).merge_and_unload().state_dict()
    record = json.loads((folder / "sparse.json").read_text())
    assert merged.keys() == wanted.keys()
    differ = {name: int((merged[name] != wanted[name]).sum()) for name in wanted}
    assert sum(differ.values()) == record["not_exact"] <= 3
    assert all(torch.allclose(merged[name], wanted[name], atol=1e-6) for name in wanted)
    moved = {name: int((wanted[name] != before[name]).sum()) for name in wanted if not wanted[name].equal(before[name])}
    assert set(moved) == {TO_Q, FF} and record["moved"] == sum(moved.values())


@pytest.mark.parametrize("name", ["conv_in.weight", "conv_norm_out.weight", "time_embedding.linear_1.bias"])
def test_what_peft_cannot_carry_is_refused(
    name: str, changed: Callable[..., Path], tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(changed(**{TO_Q: 2, name: 2}), tmp_path / "sparse", "--base", tiny_pipeline) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ") and not (tmp_path / "sparse").exists()
    assert not HAS_IT or (f"such as {name}" in told and "salun patch make" in told)


def test_nothing_to_export(tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(tiny_pipeline, tmp_path / "sparse", "--base", tiny_pipeline) == 2
    assert not HAS_IT or "there is nothing to export" in capsys.readouterr().err


ATTENTION = r"attn\d\.to_(q|k|v)\.weight"


def test_a_run_writes_one(small_run: Any, sd14: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the pipeline, which is that of a run without: merged, it is the erased network."""
    words = small_run(adapter="sparse", train_method=ATTENTION, pretrained_model_name_or_path=sd14,
                      output_dir=tmp_path / "run")  # fmt: skip
    code = erase_main(words)
    if not HAS_IT:
        assert code == 2 and "does not have: pip install -U peft" in capsys.readouterr().err
        return
    assert code == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["adapter"] == "sparse"
    wanted, base = load(tmp_path / "run" / "pipeline").unet.state_dict(), load(sd14).unet
    moved = sum(int((wanted[name] != tensor).sum()) for name, tensor in base.state_dict().items())
    merged = peft.PeftModel.from_pretrained(base, str(tmp_path / "run" / "sparse")).merge_and_unload().state_dict()
    record = json.loads((tmp_path / "run" / "sparse" / "sparse.json").read_text())
    assert record["moved"] == moved > 0
    assert sum(int((merged[name] != tensor).sum()) for name, tensor in wanted.items()) == record["not_exact"]


def test_a_run_that_would_move_other_tensors_is_refused(refused: Any) -> None:
    told = refused("error: ", adapter="sparse")
    assert not HAS_IT or ("other tensors move, such as conv_in.weight" in told and "--save_patch" in told)
    told = refused("error: ", adapter="sparse", train_method="xattn")
    assert not HAS_IT or "attn2.to_out.0.bias" in told
    told = refused("error: ", adapter="sparse", train_method=ATTENTION, save_dtype="float16")
    assert not HAS_IT or "leave --save_dtype at base" in told


def test_a_pipeline_in_memory_has_a_patch_instead(tiny_pipeline: Path) -> None:
    with pytest.raises(UserError, match=r"result\.patch holds the same change"):
        erase(load(tiny_pipeline), "disc", **{**QUICK, "adapter": "sparse", "train_method": ATTENTION})
