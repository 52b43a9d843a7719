"""Reports are the same in a folder and in one file, and docs/results.md shows what that file holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import erasure_tables
import pytest

DOCS = Path(__file__).parents[2] / "docs"
RETRAIN = DOCS / "results" / "retrain.jsonl"


def as_folder(file: Path, folder: Path) -> Path:
    """A folder such as `benchmark_erasure.py` leaves, with the reports of a file."""
    folder.mkdir()
    for line in file.read_text(encoding="utf-8").splitlines():
        report = json.loads(line)
        name = f"{report.pop('concept')}-{report.pop('method')}-{report.pop('seed')}"
        (folder / f"{name}.json").write_text(json.dumps(report, indent=1))
    return folder


def test_a_file_and_a_folder_of_the_same_reports_give_the_same_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, back = as_folder(RETRAIN, tmp_path / "reports"), tmp_path / "new" / "back.jsonl"
    assert erasure_tables.main([str(RETRAIN)]) == 0
    of_file = capsys.readouterr().out
    assert erasure_tables.main([str(folder), "--jsonl", str(back)]) == 0
    assert capsys.readouterr().out == of_file
    assert back.read_bytes() == RETRAIN.read_bytes()
    by_concept, shapes, styles = of_file.split("\n\n")
    assert len(by_concept.splitlines()) == 2 + 13  # ten shapes, three styles
    assert shapes.splitlines()[2].startswith("| retrain | 10 (13, 1560) | 1.000 [0.990, 1.000] |")
    assert styles.splitlines()[2].startswith("| retrain | 3 (6, 840) |")


def test_two_places_make_one_table(tmp_path: Path) -> None:
    lines = RETRAIN.read_text(encoding="utf-8").splitlines(keepends=True)
    halves = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    for half, part in zip(halves, (lines[:7], lines[7:]), strict=True):
        half.write_text("".join(part), encoding="utf-8")
    whole = erasure_tables.read_reports([RETRAIN])
    assert erasure_tables.tables(erasure_tables.read_reports(halves)) == erasure_tables.tables(whole)


def test_the_page_shows_every_model_of_the_file() -> None:
    """UA, RA, what it became, drift, FD and seconds, to the last digit shown."""
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if re.match(r"\| \w+ \| [012] \|", line)
    ]
    shown = {(row[0], row[1]): row for row in rows}
    table = erasure_tables.by_concept(erasure_tables.by_seed(erasure_tables.read_reports([RETRAIN])))
    for line in table.splitlines()[2:]:
        concept, method, _, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        ua, ra, cra, _, became, drift, distances, seconds = cells
        row = shown[concept, method.removeprefix("retrain, seed ")]
        assert {ua, ra, became, drift, distances} <= set(row), line
        assert cra in ("–", row[4]), line
        assert row[-1].rstrip("*") == seconds.removesuffix(" s"), line
    assert len(table.splitlines()[2:]) == 19


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "one JSON object a line"),
        ('{"concept": "star", "seed": 0}', "Line 1"),
        ("", "holds no report"),
        (None, "cannot be read"),
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    path = tmp_path / "reports.jsonl"
    if content is not None:
        path.write_text(content)
    assert erasure_tables.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_report_that_comes_twice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert erasure_tables.main([str(RETRAIN), str(RETRAIN)]) == 2
    assert "circle-retrain-2 once more" in capsys.readouterr().err


FAILED = {"failed": "it diverged", "config": {}}


def good(seed: int = 0) -> dict[str, object]:
    return next(iter(erasure_tables.read_reports([RETRAIN])["circle", "retrain"].values()))


def test_a_run_that_failed_is_shown_as_failed_and_not_counted() -> None:
    """One of two seeds, all of one method: the numbers are those of the runs that came to an end."""
    rows = {
        ("circle", "relabel-saliency"): {0: good(), 1: FAILED},
        ("star", "relabel-saliency"): {0: good(), 1: good()},
        ("circle", "ascent-full"): {0: FAILED, 1: FAILED},
    }
    alone = erasure_tables.by_concept({("circle", "relabel-saliency"): {0: good()}}).splitlines()[2]
    lines = erasure_tables.by_concept(rows).splitlines()[2:]
    assert lines[0].startswith("| circle | relabel-saliency | 1, 1 failed (") and lines[1].startswith(
        "| star | relabel-saliency | 2 ("
    )
    assert lines[0].split("|")[4:] == alone.split("|")[4:]
    assert lines[2] == "| circle | ascent-full | 0, 2 failed |" + " failed |" * 8
    by_method = erasure_tables.by_method(rows, "shapes", ["circle", "star"]).splitlines()[2:]
    assert by_method[0].startswith("| relabel-saliency | 2 (3, 1 failed, ")
    assert by_method[1] == "| ascent-full | 0 (0, 2 failed) |" + " failed |" * 8
    assert {line.count("|") for line in erasure_tables.by_concept(rows).splitlines()} == {12}


def test_pairs_with_a_run_that_failed_are_none() -> None:
    rows = {
        ("circle", f"relabel-{mask}"): {0: good(), 1: other}
        for mask, other in (("saliency", good()), ("random", FAILED))
    }
    (line,) = erasure_tables.against_saliency(rows).splitlines()[2:]
    assert line.startswith("| relabel | random | 0.5 | 1 | 0.000 |")  # One pair, so no interval.


def test_what_was_not_measured_is_a_dash_and_what_nobody_looked_for_is_refused(tmp_path: Path, capsys) -> None:
    """A report without labels of what should stay has no RA; one without a detector has nothing to show."""
    report = json.loads(json.dumps(good()))
    report["comparisons"] = [pair for pair in report["comparisons"] if pair["after"]["group"] == "concept"]
    rows = {("circle", "relabel-saliency"): {0: report}, ("star", "relabel-saliency"): {0: report}}
    assert "| – → – | – |" in erasure_tables.by_concept(rows)
    assert "nan" not in erasure_tables.by_method(rows, "shapes", ["circle", "star"])
    report["comparisons"] = []
    (tmp_path / "one.jsonl").write_text(json.dumps({"concept": "star", "method": "x", "seed": 0, **report}) + "\n")
    assert erasure_tables.main([str(tmp_path / "one.jsonl")]) == 2
    error = capsys.readouterr().err
    assert "only runs with a detector" in error and error.count("\n") == 1
