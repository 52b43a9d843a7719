"""The comparison of soft thresholds: what it refuses, what it goes on from, and its table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.settings import _check_soft


@pytest.fixture
def comparison(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("soft_thresholds")


def row(model: str, arm: str, seed: int, ua: float) -> dict[str, object]:
    told = {"model": model, "concept": "star" if model == "demo" else "7", "arm": arm, "seed": seed}
    return {**told, "ua": ua, "ra": 0.5, "may_move": 1.0, "moved": 0.25}


def test_finished_rows_are_not_run_again(
    comparison: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two arms is there; the other is run and written beside it, and seeds are averaged."""
    file = tmp_path / "soft.json"
    done = [row("demo", "hard", seed, ua) for seed, ua in ((0, 1.0), (1, 0.5))]
    file.write_text(json.dumps({"rows": done}))
    asked: list[tuple[object, ...]] = []

    def erased(model: str, concept: str, arm: dict[str, object], seed: int, common: object) -> dict[str, object]:
        asked.append((model, concept, arm, seed))
        return {"ua": 0.0, "ra": 1.0, "may_move": 0.5, "moved": 0.5}

    monkeypatch.setattr(comparison, "erased", erased)
    words = ["--models", "demo", "--arms", "hard", "redrawn", "--seeds", "1", "--output", str(file)]
    assert comparison.main(words) == 0
    assert asked == [("demo", "star", {"soft_threshold": "probabilistic", "mask_draws": "step"}, 1)]
    out = capsys.readouterr().out
    assert "| demo | hard | 2 | 0.750 | 0.500 | 1.000 | 0.250 |" in out
    assert "| demo | redrawn | 1 | 0.000 | 1.000 | 0.500 | 0.500 |" in out
    assert len(json.loads(file.read_text())["rows"]) == 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--models", "sd"], "--models must be of demo, digits, classifier, got 'sd'"),
        (["--arms", "soft"], "--arms must be of hard, proximal, drawn, redrawn, continuous, got 'soft'"),
        (["--seeds", "one"], "--seeds must be whole numbers, got 'one'"),
    ],
)
def test_refuses(
    comparison: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert comparison.main([*words, "--output", str(tmp_path / "soft.json")]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "soft.json").exists()


def test_arms_are_flags_that_go_together(comparison: ModuleType) -> None:
    for flags in comparison.ARMS.values():
        _check_soft(EraseConfig(**flags))
