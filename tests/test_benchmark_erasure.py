"""The benchmark's bookkeeping: which runs it does, how it pools seeds, and what a typing mistake costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from salun_diffusers.evaluation.measurement import Comparison, Measurement


@pytest.fixture
def benchmark(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("benchmark_erasure")


def rate(name: str, hits: int, n: int, group: str) -> Measurement:
    return Measurement.rate(name, hits, n, direction="neither", protocol="by hand", group=group)


def report(shown: int, right: int, became: int) -> dict[str, object]:
    """Of 10 pictures of the class `shown` still show it; of 20 others 18 and then `right` are right."""
    pairs = (
        Comparison("7 appears", rate("7", 10, 10, "concept"), rate("7", shown, 10, "concept")),
        Comparison("others", rate("others", 18, 20, "retained"), rate("others", right, 20, "retained")),
        Comparison("1", rate("1", 9, 10, "retained, by prompt"), rate("1", 9, 10, "retained, by prompt")),
        Comparison(
            "2", rate("2", 9, 10, "retained, by prompt"), rate("2", right - 9, 10, "retained, by prompt")
        ),
    )  # fmt: skip
    return {
        "comparisons": [{"name": p.name, "before": p.before.to_json(), "after": p.after.to_json()} for p in pairs],
        "measurements": [
            rate("became 8", became, 10, "became").to_json(),
            rate("drift", 2, 10, "drift").to_json(),
        ],
        "timings": {"saliency and mask": 1.0, "fine-tuning": 3.0},
        "fd": {"before": 1.0, "after": 2.0 + shown},
    }


def test_seeds_are_pooled(benchmark: ModuleType) -> None:
    """Shown in 1 of 10 and 0 of 10: UA 19/20. Right 18/20 before, 17 + 15 of 40 after. `2` falls by 0.1 and 0.3."""
    row = benchmark.summary([report(1, 17, 9), report(0, 15, 10)])
    assert row["ua"] == pytest.approx(0.95)
    assert (row["ra_before"], row["ra_after"]) == (pytest.approx(0.9), pytest.approx(0.8))
    assert (row["worst"], row["worst_change"]) == ("2", pytest.approx(-0.2))
    assert row["became"] == "8 95%"
    assert (row["n"], row["seeds"], row["seconds"]) == (60, 2, 4.0)
    assert (row["fd_before"], row["fd_after"]) == (1.0, 2.5)


def test_finished_cells_are_not_run_again_and_the_table_shows_them(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        (tmp_path / f"7-esd-full-{seed}.json").write_text(json.dumps(report(0, 18, 10)))
    words = ["--model", "digits", "--concepts", "7", "--methods", "esd-full", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(benchmark, "run_cell", pytest.fail)
    assert benchmark.main([*words, "--seeds", "0", "1"]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| 7 | esd-full | 2 (60) | 1.000 [0.839, 1.000] | 0.900 → 0.900 |")  # 20 / (20 + 1.96²).
    assert "1.00 → 2.00" in row


def test_goes_on_where_it_stopped(benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 0 is finished, seed 1 was interrupted in its run folder, seed 2 never began."""
    (tmp_path / "star-paper-full-0.json").write_text(json.dumps(report(0, 18, 10)))
    (tmp_path / "star-paper-full-1.run").mkdir()
    (tmp_path / "star-paper-full-1.run" / "config.json").write_text("{}")
    run = []

    def cell(cell, config, output):
        run.append(cell.seed)
        (output / f"{cell.name}.json").write_text(json.dumps(report(0, 18, 10)))

    monkeypatch.setattr(benchmark, "run_cell", cell)
    assert benchmark.main(["--concepts", "star", "--methods", "paper-full", "--output_dir", str(tmp_path)]) == 0
    assert run == [1, 2]
    assert "| 3 (90) |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "paper-salient"), "MASK one of"),
        (("--methods", "papr-full"), "WHAT one of"),
        (("--methods", "retrain"), "--model digits"),
        (("--seeds", "one"), "whole numbers"),
        (("--concepts", "circel"), "circle"),
    ],
)
def test_typing_mistakes_show_before_the_first_run(
    benchmark: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr(benchmark, "run_cell", pytest.fail)
    assert benchmark.main(["--output_dir", str(tmp_path / "out"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
