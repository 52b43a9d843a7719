"""The benchmark's bookkeeping: which runs it does, how it pools seeds, and what a typing mistake costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import erasure_tables
import pytest

from salun_diffusers.reports.measurement import Comparison, Measurement


@pytest.fixture
def benchmark(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("benchmark_erasure")


def rate(name: str, hits: int, n: int, group: str) -> Measurement:
    return Measurement.rate(name, hits, n, direction="neither", protocol="by hand", group=group)


def report(shown: int, right: int, became: int, **config: int | str) -> dict[str, object]:
    """Of 10 pictures of the class `shown` still show it; of 20 others 18, then `right` are right, one more across."""
    pairs = (
        Comparison("7 appears", rate("7", 10, 10, "concept"), rate("7", shown, 10, "concept")),
        Comparison("others", rate("others", 18, 20, "retained"), rate("others", right, 20, "retained")),
        Comparison("too", rate("too", 20, 20, "retained across"), rate("too", right + 1, 20, "retained across")),
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
        "config": {"num_validation_images": 14, **config},
    }


def test_seeds_are_pooled() -> None:
    """Shown in 1 of 10 and 0 of 10: UA 19/20. Right 18/20 before, 17 + 15 of 40 after. `2` falls by 0.1 and 0.3.

    Across, 18 + 16 of 40 are right.
    """
    row = erasure_tables.summary([report(1, 17, 9), report(0, 15, 10)])
    assert row["ua"] == pytest.approx(0.95)
    assert (row["ra_before"], row["ra_after"]) == (pytest.approx(0.9), pytest.approx(0.8))
    assert (row["worst"], row["worst_change"]) == ("2", pytest.approx(-0.2))
    assert row["cra_after"] == pytest.approx(0.85)
    assert row["became"] == "8 95%"
    assert (row["n"], row["seeds"], row["seconds"]) == (60, 2, 4.0)
    assert (row["fd_before"], row["fd_after"]) == (1.0, 2.5)


def test_finished_cells_are_not_run_again_and_the_table_shows_them(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        (tmp_path / f"7-esd-full-{seed}.json").write_text(json.dumps(report(0, 18, 10, num_validation_images=100)))
    words = ["--model", "digits", "--concepts", "7", "--methods", "esd-full", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(benchmark, "run_cell", pytest.fail)
    assert benchmark.main([*words, "--seeds", "0", "1"]) == 0
    row = capsys.readouterr().out.splitlines()[2]
    assert row.startswith("| 7 | esd-full | 2 (60) | 1.000 [0.839, 1.000] | 0.900 → 0.900 |")  # 20 / (20 + 1.96²).
    assert "1.00 → 2.00" in row


def test_a_method_names_recipe_or_objective_mask_and_ratio(benchmark: ModuleType, tmp_path: Path) -> None:
    def settings(method: str):
        return benchmark.Cell("star", method, 3).erase_config(benchmark.BenchmarkConfig(), tmp_path / "run")

    paper, half, third = map(settings, ("paper-magnitude", "relabel-saliency", "esd-random-0.3"))
    assert (paper.recipe, paper.objective, paper.mask, paper.mask_ratio) == ("paper", "relabel", "magnitude", 0.5)
    assert half == settings("frozen_teacher-saliency")
    assert (third.objective, third.mask, third.mask_ratio, third.seed) == ("esd", "random", 0.3, 3)


def test_methods_are_compared_over_concepts() -> None:
    """UA 9/10, 9/10 and 10/10; RA falls by 0.05 for the first digit (0 and 0.1), 0.15 for the other; CRA 52/60.

    Of two values with one degree of freedom: -0.1 ± 12.7062 · 0.0707 / √2 = 0.6353. Drift is 0.2 everywhere.
    """
    rows = {
        ("1", "esd-full"): {0: report(1, 18, 9), 1: report(1, 16, 9)},
        ("7", "esd-full"): {0: report(0, 15, 10)},
        ("star", "esd-full"): {0: report(10, 18, 0)},
    }
    row = erasure_tables.by_method(rows, "digits", tuple(map(str, range(10)))).splitlines()[-1]
    assert row == (
        "| esd-full | 2 (3, 90) | 0.933 [0.787, 0.982] | 0.90 | -0.100 [-0.735, 0.535] | 0.867 | 2 -0.30 "
        "| 0.200 [0.200, 0.200] | 1.00 → 2.67 | 4 |"
    )


def test_masks_are_compared_in_pairs() -> None:
    """RA 17/20 and 16/20 under the saliency mask, 15/20 and 16/20 under the other: -0.05 ± 12.7062 · 0.0707 / √2."""
    rows = {
        ("1", "esd-saliency"): {0: report(0, 17, 9)},
        ("1", "esd-random"): {0: report(1, 15, 9)},
        ("7", "esd-random"): {0: report(9, 10, 0), 2: report(1, 16, 9)},
        ("7", "esd-saliency"): {2: report(0, 16, 9)},
        ("7", "esd-saliency-0.3"): {0: report(0, 16, 9)},
        ("7", "esd-magnitude-0.3"): {0: report(1, 16, 9)},
        ("7", "retrain"): {0: report(1, 16, 9)},
        ("9", "ascent-random"): {0: report(0, 16, 9)},
    }
    assert erasure_tables.against_saliency(rows).splitlines()[2:] == [
        "| esd | random | 0.5 | 2 | -0.100 [-0.100, -0.100] | -0.050 [-0.685, 0.585] | 0.000 [0.000, 0.000] |",
        "| esd | magnitude | 0.3 | 1 | -0.100 | 0.000 | 0.000 |",
    ]


def test_the_mask_ratio_is_plotted_where_there_are_several(tmp_path: Path) -> None:
    rows = {("star", method): {0: report(0, 18, 10)} for method in ("esd-random-0.1", "esd-random")}
    erasure_tables.plot_ratios({("star", "esd-random"): {0: report(0, 18, 10)}}, tmp_path / "one.png")
    erasure_tables.plot_ratios(rows, tmp_path / "two.png")
    assert [path.name for path in tmp_path.iterdir()] == ["two.png"]


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
    ("method", "words", "message"),
    [
        ("esd-full", ("--num_validation_images", "10"), "--num_validation_images 14, now 10 is asked for"),
        ("retrain", ("--num_validation_images", "14"), "--retrain_steps 2, now 12600 is asked for"),
        ("retrain", ("--retrain_steps", "2", "--retrain_shared_steps", "1"), "shared_steps 0, now 1 is asked for"),
        ("retrain", ("--retrain_steps", "2", "--retrain_mixed_precision", "bf16"), "no, now bf16 is asked for"),
    ],
)
def test_other_settings_are_not_mixed_in_one_table(
    benchmark: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    method: str,
    words: tuple[str, ...],
    message: str,
) -> None:
    (tmp_path / f"star-{method}-1.json").write_text(
        json.dumps(report(0, 18, 10, retrain_steps=2, retrain_shared_steps=0, retrain_mixed_precision="no"))
    )
    monkeypatch.setattr(benchmark, "run_cell", pytest.fail)
    assert benchmark.main(["--concepts", "star", "--methods", method, "--output_dir", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "paper-salient"), "MASK one of"),
        (("--methods", "papr-full"), "WHAT one of"),
        (("--methods", "relabel-full-2"), "RATIO such as 0.3"),
        (("--seeds", "one"), "whole numbers"),
        (("--concepts", "circel"), "circle"),
        (("--retrain_steps", "9", "--retrain_shared_steps", "9"), "below --retrain_steps 9"),
        (("--model", "digits", "--retrain_shared_steps", "9"), "--model demo only; got 9 of digits"),
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


def test_a_run_that_fails_is_kept_as_failed_and_the_others_go_on(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seed 0 diverges; its folder goes, its place says why, and the same command does not run it again."""
    from salun_diffusers.errors import UserError

    seen: list[str] = []

    def run(cell, config, output: Path) -> None:
        seen.append(cell.name)
        if cell.seed == 0:
            (output / f"{cell.name}.run").mkdir()
            raise UserError("The loss is not finite.")
        (output / f"{cell.name}.json").write_text(json.dumps(report(0, 18, 10)))

    monkeypatch.setattr(benchmark, "run_cell", run)
    monkeypatch.setattr(benchmark, "accept", lambda config: None)
    words = [
        "--concepts",
        "circle",
        "--methods",
        "relabel-saliency",
        "--seeds",
        "0",
        "1",
        "--output_dir",
        str(tmp_path),
    ]
    for _ in range(2):
        assert benchmark.main(words) == 0
    assert seen == ["circle-relabel-saliency-0", "circle-relabel-saliency-1"]
    assert "| circle | relabel-saliency | 1, 1 failed (30) |" in (tmp_path / "table.md").read_text()
    kept = json.loads((tmp_path / "circle-relabel-saliency-0.json").read_text())
    assert kept["failed"] == "The loss is not finite."
    assert not (tmp_path / "circle-relabel-saliency-0.run").exists()
