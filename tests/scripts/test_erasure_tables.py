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
