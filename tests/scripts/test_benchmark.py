"""The benchmark of the masks, on a few weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture
def run(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The program, in one process and small."""
    benchmark = script("benchmark")
    monkeypatch.setattr(benchmark, "alone", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(benchmark, "STEP_TENSORS", 2)
    monkeypatch.setattr(benchmark, "STEP_SIDE", 10)
    return lambda *words: int(benchmark.main([str(word) for word in words]))


def test_threshold(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["threshold", "--weights", "20000", "--json", str(tmp_path / "figures.json")]
    assert run(*words) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in out[:2]] == ["radix select", "double argsort"]
    assert out[2].startswith("per weight, argsort / radix: time ") and out[3].startswith("on ")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures) == ["machine", "command", "radix", "double_argsort", "argsort_over_radix"]
    assert figures["command"] == words
    assert (figures["radix"]["weights"], figures["radix"]["selected"]) == (20_000, 10_000)


def test_optimizer(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """AdamW keeps two numbers a weight and one per tensor: 0.5 of 200 weights are 100."""
    assert run("optimizer", "--json", tmp_path / "figures.json") == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[:6]] == ["default"] * 3 + ["fused"] * 3
    figures = json.loads((tmp_path / "figures.json").read_text())
    dense, half = figures["default"]["dense"], figures["default"]["selected 0.5"]
    assert dense["time_ratio"] == dense["state_ratio"] == 1
    assert dense["state_bytes"] == (2 * 200 + 2) * 4
    assert half["state_bytes"] == (2 * 100 + 2) * 4


def test_step(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways on the embedded model's shape."""
    import benchmark_step

    monkeypatch.setattr(benchmark_step, "alone", lambda function, *arguments: function(*arguments))
    assert run("step", "--model", "small", "--repeats", "1", "--json", tmp_path / "figures.json") == 0
    assert capsys.readouterr().out.startswith("official sequence, fp32")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures["ours"]) == ["paper, fp32", "paper, bf16", "default, fp32", "default, bf16"]
    for entry in figures["ours"].values():
        assert entry["times_faster"] == figures["official"]["seconds"] / entry["seconds"]
        assert 0 < entry["mask_share"] < 1
    assert figures["ours"]["paper, fp32"]["of_which_answers"] == 0
    assert figures["ours"]["default, fp32"]["of_which_answers"] > 0
    assert set(figures["optimizer"]) == {"fused", "foreach"} and len(figures["variants"]) == 6
    assert figures["sizes"]["weights"] > 4_000_000 and figures["sizes"]["device"] == "cpu"


@pytest.mark.slow
def test_memory_of_one_model(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["memory", "--model", "small", "--flags", "--mask_ratio 0.1 --use_8bit_adam", "--json", tmp_path / "f.json"]
    assert run(*words) == 0
    assert capsys.readouterr().out.startswith("--mask_ratio 0.1 --use_8bit_adam")
    (found,) = json.loads((tmp_path / "f.json").read_text())["scenarios"]
    assert found["most_gb"] == round(max(found["account"].values()) / 1e9, 2)
    assert found["cuda"] is None


def test_end_to_end(run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import salun_diffusers

    report = SimpleNamespace(timings={"load": 1.5, "fine-tuning": 2.5}, verdict="erased", receipt={"masked": 1})
    monkeypatch.setattr(salun_diffusers, "erase", lambda config: SimpleNamespace(report=report))
    assert run("end-to-end", "--json", tmp_path / "figures.json") == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["stages"] == report.timings and figures["seconds"] >= 0
    assert (figures["verdict"], figures["receipt"]) == ("erased", True)


def test_bad_input_is_one_line(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    for words, content in (
        (["steps"], "invalid choice: 'steps'"),
        ([], "required: benchmark"),
        (["optimizer", "--weights", "5"], "--weights is a setting of threshold"),
        (["step", "--side", "4"], "at least 8"),
        (["memory", "--model", "sd1-half"], "must be sd1, sdxl or small"),
        (["threshold", "--weights", "0"], "at least 1"),
    ):
        assert run(*words) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1 and content in line


def test_a_sheet_of_samples_needs_samples(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("before_after").main([str(tmp_path), str(tmp_path / "sheet.png")]) == 2
    assert "has no samples/*-before.png" in capsys.readouterr().err
