"""The curve of erasures stacked on each other: what each row counts, and that every run starts from the one before."""

from __future__ import annotations

import json

import pytest

from salun_diffusers.errors import UserError


def pair(name: str, group: str, before: float, after: float) -> dict:
    return {"name": name, "before": {"group": group, "value": before}, "after": {"group": group, "value": after}}


REPORT = {
    "verdict": "erased",
    "comparisons": [
        pair("moon appears for its prompts", "concept", 1, 0.1),
        pair("other concepts are right", "retained", 0.5, 0.4),
        pair("a photo of a star", "retained, by prompt", 0, 0),
        pair("a photo of a ring", "retained, by prompt", 1, 0.5),
        pair("a photo of a cross", "retained, by prompt", 0.5, 0.5),
        pair("star (erased earlier) appears for its prompts", "erased earlier", 0, 0.25),
        pair("heart (erased earlier) appears for its prompts", "erased earlier", 0, 0.75),
    ],
}


@pytest.fixture
def stacked(script):
    return script("stacked_erasures")


def test_a_row_counts_what_has_not_been_erased(stacked):
    row = stacked.row_of(REPORT, ("star", "heart", "moon"))
    assert (row.erased, row.concept, row.left, row.worst_earlier) == (3, "moon", 0.1, 0.75)
    assert (row.right_before, row.right) == (0.75, 0.5)
    assert "| 3 | moon | 10.0 % | 75.0 % | 75.0 % → 50.0 % | erased |" in stacked.markdown([row])


def test_a_run_without_a_detector_is_refused(stacked):
    with pytest.raises(UserError, match="no rate of its concept"):
        stacked.row_of({"verdict": "not measured", "comparisons": []}, ("star",))


def test_every_run_starts_from_the_one_before_and_is_done_once(stacked, monkeypatch, tmp_path, capsys):
    asked = []

    def erase(words):
        flags = dict(zip(words[::2], words[1::2], strict=True))
        asked.append((flags["--concept"], flags["--pretrained_model_name_or_path"]))
        folder = tmp_path / "s" / flags["--output_dir"].rpartition("/")[2]
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps(REPORT))
        return 0

    monkeypatch.setattr(stacked, "erase", erase)
    words = ["--output_dir", str(tmp_path / "s"), "--concepts", "star", "heart"]
    assert stacked.main(words) == stacked.main(words) == 0
    assert asked == [("star", "demo"), ("heart", str(tmp_path / "s" / "01-star" / "pipeline"))]
    rows = json.loads((tmp_path / "s" / "curve.json").read_text())["rows"]
    assert [row["concept"] for row in rows] == ["star", "heart"]
