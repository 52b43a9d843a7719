"""Runs side by side: what is merged, what is refused, and what the page holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.comparison import compare_runs, read_runs
from salun_diffusers.evaluation.manifest import Manifest, PictureRow
from salun_diffusers.evaluation.record import EvaluationRecord, counts
from salun_diffusers.evaluation.record_page import record_page
from salun_diffusers.reports.measurement import Comparison, Measurement


def rate(name: str, hits: int, *, group: str = "concept", protocol: str = "by hand") -> Measurement:
    return Measurement.rate(name, hits, 20, direction="lower", protocol=protocol, group=group)


def write(path: Path, *pairs: tuple[Measurement, Measurement], pictures: str = "", before: str = "base") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    comparisons = tuple(Comparison(new.name, old, new) for old, new in pairs)
    record = EvaluationRecord("objects", "made up", pictures, before, comparisons=comparisons)
    path.write_text(json.dumps(record.to_json()))
    return path


def pair(old: int, new: int, **about: str) -> tuple[Measurement, Measurement]:
    return rate("shown", old, **about), rate("shown", new, **about)


def test_records_are_lossless(tmp_path: Path) -> None:
    data = json.loads(write(tmp_path / "a.json", pair(20, 1)).read_text())
    assert EvaluationRecord.from_json(data).to_json() == data
    with pytest.raises(ValueError, match="under 'format'"):
        EvaluationRecord.from_json({**data, "format": "other"})


def test_both_numbers_of_pictures_are_told_where_they_differ() -> None:
    """The interval before is that of its own n."""
    before, after = (Measurement.rate("shown", 1, n, direction="lower", protocol="by hand") for n in (20, 12))
    pairs = (Comparison("shown", before, after),)
    record = EvaluationRecord("objects", "Forgetting", "after", "before", comparisons=pairs)
    assert record.text().splitlines()[3].endswith("  20, 12")
    assert '<td class="number" data-label="n">20, 12</td>' in record_page(record)
    assert counts(before, before) == "20"


def test_equal_numbers_before_are_one_run(tmp_path: Path) -> None:
    one, other = write(tmp_path / "ours.json", pair(20, 1)), write(tmp_path / "esd.json", pair(20, 4))
    runs = read_runs([str(one), f"ESD={other}"])
    assert [run.name for run in runs] == ["before", "ours", "ESD"]
    table = compare_runs(runs)
    assert [item.value for item in table.row(("concept", "shown")) if item] == [1.0, 0.05, 0.2]
    assert table.markdown().splitlines()[2].startswith("| shown | 100 % [83.9 to 100 %] | 5 %")


def test_other_numbers_before_are_another_run(tmp_path: Path) -> None:
    one, other = write(tmp_path / "ours.json", pair(20, 1)), write(tmp_path / "esd.json", pair(19, 4))
    assert [run.name for run in read_runs([str(one), str(other)])] == ["before 1", "before 2", "ours", "esd"]


def test_a_folder_of_reports_is_one_run(tmp_path: Path) -> None:
    write(tmp_path / "run" / "objects.json", pair(20, 1))
    write(tmp_path / "run" / "fid.json", (rate("other", 1, group="retained"), rate("other", 2, group="retained")))
    (tmp_path / "run" / "config.json").write_text("{}")
    before, run = read_runs([str(tmp_path / "run")])
    assert list(run.measured) == [("retained", "other"), ("concept", "shown")] and len(before.measured) == 2


def test_mixed_protocols_are_refused_in_one_sentence(tmp_path: Path) -> None:
    one = write(tmp_path / "a.json", pair(20, 1, protocol="NudeNet ≥ 0.6"))
    other = write(tmp_path / "b.json", pair(20, 1, protocol="NudeNet > 0.75"), before="elsewhere")
    with pytest.raises(
        UserError, match=r"'shown' does not compare: before 1 was measured by “NudeNet ≥ 0.6”, before 2"
    ):
        compare_runs(read_runs([str(one), str(other)]))


def test_pictures_drawn_differently_are_refused_in_one_sentence(tmp_path: Path) -> None:
    """A measurement that both have; one that only one run has may be of any drawing."""

    def drawn(name: str, steps: int, measured: str = "shown") -> str:
        record = EvaluationRecord(
            "objects", "made up", "", measurements=(rate(measured, 1),), sampling={"num_inference_steps": steps}
        )
        (tmp_path / f"{name}.json").write_text(json.dumps(record.to_json()))
        return str(tmp_path / f"{name}.json")

    ours, esd, other = drawn("ours", 50), drawn("esd", 12), drawn("other", 12, "else")
    words = (
        "'shown' does not compare: pictures of ours and of esd were drawn differently: num_inference_steps 50 and 12"
    )
    with pytest.raises(UserError, match=words):
        compare_runs(read_runs([ours, esd]))
    unknown = write(tmp_path / "unknown.json", pair(20, 1))
    assert len(compare_runs(read_runs([ours, other, str(unknown)])).runs) == 4


def alone(path: Path, *items: Measurement) -> str:
    path.write_text(json.dumps(EvaluationRecord("objects", "made up", "", measurements=items).to_json()))
    return str(path)


def test_what_was_measured_on_something_else_has_a_row_of_its_own(tmp_path: Path) -> None:
    """Other classes than circle are not other classes than star; two data sets are not one."""
    kept = rate("other classes are right", 19, group="retained")
    words = [
        alone(tmp_path / f"{name}.json", kept.of(subject))
        for name, subject in {"a": "without circle", "b": "without star", "c": "without circle", "d": ""}.items()
    ]
    table = compare_runs(read_runs(words))
    rows = {key[1]: [item is not None for item in table.row(key)] for key in table.keys}
    assert rows == {
        "other classes are right (without circle)": [True, False, True, False],
        "other classes are right (without star)": [False, True, False, False],
        "other classes are right": [False, False, False, True],
    }
    assert "| other classes are right (without star) | – | 95 % [" in table.markdown()


def test_an_axis_by_the_bare_name_where_it_is_one_row_only(tmp_path: Path) -> None:
    kept = rate("kept", 19, group="retained")
    first, second = alone(tmp_path / "a.json", kept.of("x")), alone(tmp_path / "b.json", kept.of("x"))
    third = alone(tmp_path / "c.json", kept.of("y"))
    assert compare_runs(read_runs([first, second])).axis((), "kept") == ("retained", "kept (x)")
    several = compare_runs(read_runs([first, third]))
    assert several.axis((), "kept (y)") == ("retained", "kept (y)")
    with pytest.raises(UserError, match=r"one of the measurements 'kept \(x\)', 'kept \(y\)'; got 'kept'"):
        several.axis((), "kept")


def test_numbers_before_of_other_data_are_no_contradiction(tmp_path: Path) -> None:
    """One base, two forget sets: its numbers before are one run with two rows."""
    files = []
    for name, hits in (("x", 20), ("y", 18)):
        old, new = (rate("forget accuracy", count).of(name) for count in (hits, 0))
        files.append(str(write(tmp_path / f"{name}.json", (old, new))))
    table = compare_runs(read_runs(files))
    assert [run.name for run in table.runs] == ["before", "x", "y"]
    assert [len([item for item in table.row(key) if item]) for key in table.keys] == [2, 2]


def test_axes(tmp_path: Path) -> None:
    flat = (rate("flat", 0), rate("flat", 0))
    kept = (rate("kept", 3, group="retained"), rate("kept", 2, group="retained"))
    table = compare_runs(read_runs([str(write(tmp_path / "a.json", flat, pair(20, 1), kept))]))
    assert table.axis(("concept",), None) == ("concept", "shown")
    assert table.axis(("concept",), "flat") == ("concept", "flat")
    assert table.axis(("fidelity",), None) is None
    with pytest.raises(UserError, match="one of the measurements 'flat', 'shown', 'kept'"):
        table.axis(("concept",), "absent")


@pytest.fixture
def compare(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch, capsys
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        code = script("compare").main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def pictures(folder: Path, colour: str, *, explicit: bool = False) -> Path:
    folder.mkdir()
    rows = tuple(PictureRow(f"{n}.png", f"prompt {n // 2}", n, 7.5, n // 2, n % 2) for n in range(4))
    Manifest(rows, {}, explicit=explicit).save(folder)
    for row in rows:
        Image.new("RGB", (8, 8), colour).save(folder / row.file)
    return folder


def test_page_with_plot_and_grid(compare: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    before, after = pictures(tmp_path / "p0", "blue"), pictures(tmp_path / "p1", "red")
    kept = (rate("kept", 3, group="retained"), rate("kept", 2, group="retained"))
    ours = write(tmp_path / "ours.json", pair(20, 1), kept, pictures=str(after), before=str(before))
    code, out, err = compare(ours)
    assert code == 0, err
    assert out.startswith("| measured | before | ours | |")
    page = Path("runs/comparison/comparison.html").read_text()
    assert page.count("<svg") == 1 and page.count("data:image/png") == 8 and "prompt 1" in page
    assert "http:" not in page.split("<pre>")[0]
    numbers = json.loads(Path("runs/comparison/comparison.json").read_text())
    assert Measurement.from_json(numbers["runs"]["ours"][0]).value == 0.05


def test_a_picture_from_elsewhere_is_not_embedded(compare: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """A link in the folder to a file that is not of the run: the page may be published."""
    before, after = pictures(tmp_path / "p0", "blue"), pictures(tmp_path / "p1", "red")
    first = sorted(after.glob("*.png"))[0]
    first.rename(tmp_path / "private.png")
    first.symlink_to(tmp_path / "private.png")
    assert compare(write(tmp_path / "a.json", pair(20, 1), pictures=str(after), before=str(before)))[0] == 0
    assert 0 < Path("runs/comparison/comparison.html").read_text().count("data:image/png") < 8


def test_explicit_grids_are_blurred(compare: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    before, after = (pictures(tmp_path / name, "red", explicit=True) for name in ("p0", "p1"))
    assert compare(write(tmp_path / "a.json", pair(20, 1), pictures=str(after), before=str(before)))[0] == 0
    assert "They are blurred in the file itself" in Path("runs/comparison/comparison.html").read_text()


def test_an_erasures_report(compare: Callable[..., tuple[int, str, str]], small_run, tmp_path: Path) -> None:
    from salun_diffusers.programs.erase import main

    assert main(small_run(output_dir=tmp_path / "run")) == 0
    code, out, _ = compare("run/report.json", write(tmp_path / "other.json", pair(20, 1)))
    assert code == 0 and "pixel drift of retained pictures" in out


def test_erasures_drawn_differently(small_run, tmp_path: Path) -> None:
    from salun_diffusers.programs.erase import main

    assert main(small_run(output_dir=tmp_path / "run")) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    report["config"]["num_inference_steps"] += 1
    (tmp_path / "more.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match="were drawn differently: num_inference_steps"):
        compare_runs(read_runs([str(tmp_path / "run" / "report.json"), str(tmp_path / "more.json")]))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(pictures=5),
        lambda data: data.update(comparisons=5),
        lambda data: data.update(comparisons=[5]),
        lambda data: data["comparisons"][0].update(before=[]),
        lambda data: data["comparisons"][0]["after"].update(name=["a"]),
        lambda data: data["comparisons"][0]["after"].update(group={}),
        lambda data: data["comparisons"][0]["after"].update(value="much"),
        lambda data: data.update(sampling=[3]),
        lambda data: data.update(sampling={"guidance": ["much"]}),
        lambda data: data.update(sampling={"scheduler": "DDIM"}),
        lambda data: data.update(command=5),
        lambda data: data["comparisons"][0]["after"].update(name=5),
        lambda data: data["comparisons"][0]["after"].update(n=True),
    ],
)
def test_records_of_wrong_types(compare: Callable[..., tuple[int, str, str]], tmp_path: Path, change) -> None:
    write(tmp_path / "good.json", pair(20, 1))
    data = json.loads((tmp_path / "good.json").read_text())
    change(data)
    (tmp_path / "bad.json").write_text(json.dumps(data))
    code, out, err = compare("good.json", "bad.json")
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, err


def test_a_terminal_is_not_moved_by_names(compare: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.json", (rate("x\x1b[2J", 20), rate("x\x1b[2J", 1)))
    code, out, err = compare("a.json", "b.json")
    assert code == 0 and "[2J" in out and "\x1b" not in out + err, err


def test_bad_input(compare: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong.json").write_text('{"format": "other"}')
    (tmp_path / "damaged.json").write_text("{")
    alone = tmp_path / "alone.json"
    alone.write_text(json.dumps(EvaluationRecord("fid", "made up", "", measurements=(rate("x", 1),)).to_json()))
    for words, arguments in {
        "arguments are required": (),
        "absent does not exist": ("absent",),
        "empty holds no report": ("empty",),
        "no report of this version": ("wrong.json",),
        "cannot be read as a report": ("damaged.json",),
        "At least two runs": ("alone.json",),
        "'alone' stands there twice": ("alone.json", "alone.json"),
        "An axis must be one of": ("alone.json", "b=alone.json", "--forget_axis", "y"),
    }.items():
        code, out, err = compare(*arguments)
        assert code == 2 and out == "" and words in err and err.count("\n") == 1, err
