"""The experiments' cells: resumable, tuned on a seed of their own, and the benchmark's tables."""

from __future__ import annotations

import importlib.util
import json
import math
import runpy
import sys
from pathlib import Path
from types import ModuleType

import classification_experiments as experiments
import pytest
from classification_experiments import GRIDS, Cell, Laboratory, grid

from salun_diffusers.classification.methods import METHODS

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmark_classification.py"


def benchmark() -> ModuleType:
    """The script, loaded as a module: a dataclass looks up its types in `sys.modules`."""
    spec = importlib.util.spec_from_file_location("benchmark_classification", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def lab(tmp_path_factory, data_file) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("lab"), str(data_file), epochs=1)


def test_every_method_has_eight_settings():
    assert set(GRIDS) == set(METHODS) - {"retrain", "l2ul"}
    assert all(len(grid(method)) == 8 for method in GRIDS)
    assert grid("ft")[0] == (("epochs", 4), ("learning_rate", 1e-4))


def test_cells_have_names_of_their_own():
    names = {
        Cell("class", "salun", seed, mask, ratio, settings).name
        for seed in (0, 1)
        for mask in ("saliency", "random_like")
        for ratio in (0.1, 0.5)
        for settings in grid("salun")
    }
    assert len(names) == 64


def test_a_cell_is_computed_once(lab, monkeypatch):
    cell = Cell("class", "ft", 0, settings=(("epochs", 1), ("learning_rate", 0.01)))
    first = lab.run(cell)
    assert first["sizes"] == [20, 60, 30] and first["seconds"] > 0
    monkeypatch.setattr(Laboratory, "_unlearn", lambda *_: pytest.fail("computed again"))
    assert lab.run(cell) == first


def test_two_processes_may_train_the_same_start(tmp_path, monkeypatch):
    """The other one is done first: its model stays, and nothing else is left."""
    target = tmp_path / "models" / "resnet_small-digits-60-7"

    def train(config):
        for folder, content in ((Path(config.output_dir), "mine"), (target, "theirs")):
            folder.mkdir(parents=True)
            (folder / "model").write_text(content)

    monkeypatch.setattr(experiments, "run_training", train)
    assert Laboratory(tmp_path).start(7) == target
    assert [path.read_text() for path in (tmp_path / "models").rglob("model")] == ["theirs"]


def test_failed_cells_are_infinitely_far(lab):
    cell = Cell("class", "ga", 0, settings=(("epochs", 9), ("learning_rate", 1e20)))
    assert "use a lower --learning_rate" in lab.run(cell)["failed"]
    assert lab.gap(cell) == math.inf


def test_a_cell_that_breaks_in_its_last_step_failed(lab):
    """What can be trained and cannot be measured is no traceback."""
    for method, settings in (
        ("iu", (("step", 1e30), ("inverse", "diag"))),
        ("ga", (("epochs", 1), ("learning_rate", 1e30))),
    ):
        assert "diverged" in lab.run(Cell("class", method, 0, settings=settings))["failed"]


def test_a_cell_whose_retrain_failed_has_no_gap():
    fine = {"unlearning_accuracy": 0, "retain_accuracy": 1, "test_accuracy": 1, "mia": 0}
    assert experiments.gap_between(fine, {"failed": "diverged"}) == math.inf
    assert experiments.gap_between({"failed": "diverged"}, fine) == math.inf
    assert experiments.gap_between({**fine, "mia": 0.4}, fine) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("values", "percent", "runs"),
    [
        ([0.5, 0.7], "60.00 ± 14.14", "2"),  # √(0.1² + 0.1²)
        ([0.5], "50.00", "1"),
        ([0.5, math.inf], "50.00", "1, 1 failed"),
        ([0.5, 0.7, math.nan], "60.00 ± 14.14", "2, 1 failed"),
        ([math.inf, math.inf], "failed", "0, 2 failed"),
        ([], "failed", "0"),
    ],
)
def test_runs_that_failed_are_counted_and_single_ones_have_no_deviation(values, percent, runs):
    mean = experiments.mean_of(values)
    assert (mean.percent, mean.runs) == (percent, runs)


@pytest.fixture
def stubbed(monkeypatch):
    """A laboratory that takes no time: the cells of seeds from `failing` on fail."""
    script = benchmark()

    def make(failing: int) -> ModuleType:
        def run(self, cell):
            if cell.method != "retrain" and cell.seed >= failing:
                return {"failed": "diverged"}
            names = ("forget_accuracy", "unlearning_accuracy", "retain_accuracy", "test_accuracy", "mia")
            return dict.fromkeys(names, 0.9 + 0.01 * cell.seed) | {"seconds": 1.0, "mask_seconds": 0.5}

        monkeypatch.setattr(Laboratory, "run", run)
        for module in (script, experiments):
            monkeypatch.setattr(module, "TUNING_SEEDS", (0,))
        return script

    return make


@pytest.mark.parametrize(
    ("failing", "row"),
    [
        (5, "| ga | full | update | 3 | 91.00 ± 1.00 | 91.00 ± 1.00 | 91.00 ± 1.00 | 91.00 ± 1.00 | 0.00 ± 0.00 |"),
        (2, "| ga | full | update | 2, 1 failed | 90.50 ± 0.71 |"),
        (1, "| ga | full | update | 1, 2 failed | 90.00 | 90.00 | 90.00 | 90.00 | 0.00 | 1.00 | 0.50 |"),
        (0, "| ga | full | update | 0, 3 failed | failed | failed | failed | failed | failed | failed | failed |"),
    ],
)
def test_a_table_shows_what_failed(stubbed, tmp_path, failing, row):
    script = stubbed(failing)
    words = ["--methods", "ga", "--scenarios", "class", "--seeds", "0", "1", "2", "--output_dir", str(tmp_path)]
    assert script.main(words) == 0
    table = (tmp_path / "full_stack.md").read_text()
    assert row in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


@pytest.mark.parametrize(
    ("experiment", "failing", "cells"),
    [
        ("ratios", 1, "| ga | 0.00 (n = 1, 2 failed) |"),
        ("ratios", 0, "| ga | failed | failed |"),
        ("masks", 2, "| saliency | 0.00 ± 0.00 (n = 2, 1 failed) |"),
        ("sensitivity", 2, "| ga | full | 16, 8 failed | 0.00 | 0.00 | 0.00 | 0.00 |"),
        ("sensitivity", 0, "| ga | full | 0, 24 failed | failed | failed | failed | – |"),
        ("instances", 2, "| update | 2, 1 failed | 90.50 ± 0.71 |"),
        ("instances", 0, "| update | 0, 3 failed | failed | failed | failed | failed |"),
    ],
)
def test_other_tables_do_too(stubbed, tmp_path, experiment, failing, cells):
    script = stubbed(failing)
    words = ["--experiment", experiment, "--methods", "ga", "--seeds", "0", "1", "2", "--output_dir", str(tmp_path)]
    assert script.main(words) == 0
    table = (tmp_path / f"{experiment}.md").read_text()
    assert cells in table and "nan" not in table and "inf" not in table


def test_tuning_takes_the_smallest_mean_gap(lab, monkeypatch):
    """Means 0.4, 0.3 and 0.35: not the setting with the smallest gap of one seed (0.1), nor the last."""
    monkeypatch.setitem(experiments.GRIDS, "iu", ({"step": (1.0, 2.0, 3.0)},))
    monkeypatch.setattr(experiments, "TUNING_SEEDS", (1000, 1001))
    gaps = {(1.0, 1000): 0.1, (1.0, 1001): 0.7, (2.0, 1000): 0.3, (2.0, 1001): 0.3, (3.0, 1000): 0.2, (3.0, 1001): 0.5}
    monkeypatch.setattr(Laboratory, "gap", lambda self, cell: gaps[dict(cell.settings)["step"], cell.seed])
    assert lab.tuned("instances-4", "iu", "full") == (("step", 2.0),)


def test_benchmark_leaves_its_table(tmp_path, data_file, capsys, monkeypatch):
    monkeypatch.setitem(experiments.GRIDS, "iu", ({"step": (0.1,), "inverse": ("diag",)},))
    main = benchmark().main
    words = ["--dataset", data_file, "--epochs", 1, "--methods", "iu", "--scenarios", "class", "--seeds", "0", "1"]
    assert main([*map(str, words), "--output_dir", str(tmp_path)]) == 0
    table = (tmp_path / "full_stack.md").read_text()
    assert "### class, 2 seeds" in table and "| retrain | full | update | 2 |" in table
    assert "| iu | full | update | 2 |" in table and "step 0.1, inverse diag" in table
    assert table in capsys.readouterr().out
    assert all(json.loads(path.read_text()) for path in (tmp_path / "cells").rglob("*.json"))


@pytest.mark.parametrize(
    "experiment",
    ["ratios", "masks", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sensitivity", "instances"))],
)
def test_other_experiments_leave_theirs(experiment, tmp_path, data_file, monkeypatch):
    script = benchmark()
    steps = tuple(round(0.01 * step, 2) for step in range(1, 9))
    for method in ("iu", "rl", "ga", "salun"):
        part = {"step": steps, "inverse": ("diag",)} if method == "iu" else {"epochs": (1,), "learning_rate": steps}
        monkeypatch.setitem(experiments.GRIDS, method, (part,))
    monkeypatch.setattr(script, "_DENSITIES", (0.3, 0.6))
    monkeypatch.setattr(script, "_COUNTS", (4, 8))
    monkeypatch.setattr(script, "_L2UL_RATES", (1e-3, 1e-2))
    for module in (script, experiments):
        monkeypatch.setattr(module, "TUNING_SEEDS", (1000,))
    words = ["--experiment", experiment, "--dataset", data_file, "--epochs", 1, "--methods", "iu", "--seeds", "0"]
    assert script.main([*map(str, words), "--output_dir", str(tmp_path)]) == 0
    table = (tmp_path / f"{experiment}.md").read_text()
    rows = {"ratios": 2 + 1, "sensitivity": 2 + 6, "masks": 2 * (2 + 3), "instances": 2 * (2 + 8)}[experiment]
    assert sum(line.startswith("|") for line in table.splitlines()) == rows
    assert "nan" not in table
    plots = {
        "ratios": ["ratios.png"],
        "sensitivity": [],
        "masks": ["masks-class.png", "masks-random-0.1.png"],
        "instances": ["instances-misclassify.png", "instances-relabel.png"],
    }
    assert sorted(path.name for path in tmp_path.glob("*.png")) == plots[experiment]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "salum"], "got 'salum'"),
        (["--seeds", "x"], "--seeds must be whole numbers"),
        (["--experiment", "best"], "invalid choice"),
    ],
)
def test_benchmark_refuses(words, message, capsys):
    assert benchmark().main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize("program", ["train_classifier", "unlearn_classifier", "benchmark_classification"])
def test_help(program, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [f"{program}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT.with_name(f"{program}.py")), run_name="__main__")
    assert end.value.code == 0
    assert "--output_dir" in capsys.readouterr().out
