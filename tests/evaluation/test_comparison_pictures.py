"""Whose pictures a comparison shows: those of our own programs, and of no folder that a stranger's report names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from salun_diffusers.evaluation.manifest import Manifest, PictureRow
from salun_diffusers.evaluation.record import EvaluationRecord
from salun_diffusers.programs.compare import main
from salun_diffusers.reports.measurement import Comparison, Measurement


def drawn(folder: Path) -> Path:
    """A folder as `salun generate` leaves it."""
    rows = tuple(PictureRow(f"{number}.png", "a star", number, 7.5) for number in range(2))
    Manifest(rows, {}).save(folder)
    for row in rows:
        Image.new("RGB", (8, 8), "red").save(folder / row.file)
    return folder


def report(file: Path, before: str, pictures: str) -> Path:
    """What an evaluation program leaves."""
    old, new = (Measurement.rate("shown", hits, 20, direction="lower", protocol="by hand") for hits in (20, 1))
    record = EvaluationRecord("objects", "", pictures, before, comparisons=(Comparison("shown", old, new),))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record.to_json()))
    return file


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the pictures before erasing in it."""
    drawn(tmp_path / "work" / "runs" / "before")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def compared(work: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Compare, and return how many pictures the page shows and what was told."""

    def run(*words: object) -> tuple[int, str]:
        assert main([str(word) for word in words]) == 0
        told = capsys.readouterr().err
        return (work / "runs" / "comparison" / "comparison.html").read_text().count("data:image/png"), told

    return run


class TestShown:
    def test_what_our_programs_write(self, work: Path, compared) -> None:
        """Paths as they were typed: from the working folder, or absolute."""
        drawn(work / "runs" / "after")
        report(work / "runs" / "evaluation" / "objects.json", "runs/before", str(work / "runs" / "after"))
        assert compared("runs/evaluation") == (4, "")

    def test_beside_the_report_and_below_it(self, work: Path, compared, tmp_path: Path) -> None:
        """A colleague's results, copied whole to somewhere else."""
        theirs = tmp_path / "theirs"
        before, after = drawn(theirs / "before"), drawn(theirs / "evaluation" / "after")
        report(theirs / "evaluation" / "objects.json", str(before), str(after))
        assert compared(theirs / "evaluation") == (4, "")
        assert compared(theirs / "evaluation" / "objects.json") == (4, "")

    def test_what_the_user_names(self, work: Path, compared, tmp_path: Path) -> None:
        far = drawn(tmp_path / "disk" / "pictures" / "after")
        report(work / "evaluation" / "objects.json", "runs/before", str(far))
        shown, told = compared("evaluation")
        assert shown == 0 and "--pictures_from FOLDER allows it" in told
        assert compared("evaluation", "--pictures_from", tmp_path / "disk") == (4, "")


class TestNotShown:
    @pytest.fixture
    def private(self, tmp_path: Path) -> Path:
        """The user's own drawings, which are nobody's business."""
        return drawn(tmp_path / "home" / "private")

    @pytest.mark.parametrize("way", ["absolute", "up", "linked"])
    def test_elsewhere(self, work: Path, compared, tmp_path: Path, private: Path, way: str) -> None:
        (work / "stranger").mkdir()
        (work / "stranger" / "link").symlink_to(private)
        named = {"absolute": str(private), "up": "../home/private", "linked": "stranger/link"}[way]
        report(work / "stranger" / "objects.json", "runs/before", named)
        shown, told = compared("stranger")
        assert shown == 0
        assert told.startswith("note: pictures are not shown that a report in ") and told.count("\n") == 1, told
        assert named in told

    def test_before_is_held_to_the_same(self, work: Path, compared, private: Path) -> None:
        drawn(work / "runs" / "after")
        report(work / "runs" / "evaluation" / "objects.json", str(private), "runs/after")
        shown, told = compared("runs/evaluation")
        assert shown == 0 and str(private) in told

    def test_a_folder_that_was_not_drawn_by_us(self, work: Path, compared) -> None:
        """Without a manifest nothing of a folder is shown, wherever it lies."""
        (work / "runs" / "photos").mkdir()
        Image.new("RGB", (8, 8)).save(work / "runs" / "photos" / "0.png")
        report(work / "runs" / "evaluation" / "objects.json", "runs/before", "runs/photos")
        assert compared("runs/evaluation") == (0, "")

    @pytest.mark.parametrize("named", ["a\0b", "x" * 5000, "loop"], ids=["null", "long", "loop"])
    def test_no_path_at_all(self, work: Path, compared, named: str) -> None:
        (work / "loop").symlink_to("loop")
        report(work / "runs" / "evaluation" / "objects.json", "runs/before", named)
        shown, told = compared("runs/evaluation")
        assert shown == 0 and told.count("\n") <= 1
