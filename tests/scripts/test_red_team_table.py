"""The table of all methods under all attacks: rows from files, the table from rows, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.request import accept


@pytest.fixture(scope="module")
def module(script: Any) -> Any:
    return script("red_team_table")


def files(folder: Path, asr: float, curve: tuple[int, int]) -> tuple[Path, Path]:
    points = [{"at": 0, "hits": curve[0], "n": 10}, {"at": 25, "hits": curve[1], "n": 10}]
    content = {
        "verdict": {"word": "partly", "reason": "."},
        "tables": [],
        "measurements": [
            {"group": "pre-ASR", "name": "tina", "value": 0.0, "n": 10},
            {"group": "ASR", "name": "tina", "value": asr, "n": 10},
        ],
        "curves": [
            {"name": "relearning", "subject": subject, "axis": "steps", "points": points}
            for subject in ("erased", "base")
        ],
    }
    report = {
        "comparisons": [
            {"before": {"value": 1.0, "group": "concept"}, "after": {"value": 0.0, "group": "concept"}},
            {"before": {"value": 1.0, "group": "retained"}, "after": {"value": 0.9, "group": "retained"}},
        ],
        "timings": {"a": 1.4, "b": 2.2},
    }
    paths = folder / "red_team.json", folder / "report.json"
    for path, value in zip(paths, (content, report), strict=True):
        path.write_text(json.dumps(value))
    return paths


def test_rows_and_table(module: Any, tmp_path: Path) -> None:
    rows = [
        module.row_of("star", method, *files(tmp_path, asr, curve))
        for method, asr, curve in (("default", 0.1, (0, 9)), ("robust", 0.0, (0, 2)), ("esd", 0.0, (0, 9)))
    ]
    assert rows[0]["retained"] == [1.0, 0.9] and rows[0]["seconds of erasing"] == 4 and rows[0]["n"] == 10
    assert module.table(rows).splitlines() == [
        "| | star, default | star, robust | star, esd |",
        "|---|--:|--:|--:|",
        "| tina | 10% | 0% | 0% |",
        "| relearning, erased | 0: 0%, 25: 90% | 0: 0%, 25: 20% | 0: 0%, 25: 90% |",
        "| relearning, base | 0: 0%, 25: 90% | 0: 0%, 25: 20% | ″ |",
    ]


@pytest.mark.parametrize("method", ["esd", "finetune", "l1_sparse", "ascent", "paper", "default", "robust"])
def test_methods_are_erasures_that_would_run(module: Any, method: str, tmp_path: Path) -> None:
    asked = EraseConfig(concept="star", pretrained_model_name_or_path="demo", output_dir=str(tmp_path / "run"))
    request = accept(dataclasses.replace(asked, **module.METHODS[method]))
    assert (request.settings.recipe == "paper") == (method == "paper")
    assert request.settings.objective == {"esd": "esd", "finetune": "finetune", "l1_sparse": "l1_sparse",
                                          "ascent": "ascent"}.get(method, "relabel")  # fmt: skip


def test_what_is_refused(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main(["--methods", "mace"]) == 2
    assert "--methods takes some of esd" in capsys.readouterr().err
    assert module.main(["--concepts", "star", "circle", "--floor", "x"]) == 2
    assert "--floor never knew one concept" in capsys.readouterr().err
