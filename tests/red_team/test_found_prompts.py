"""Found prompts there and back, and never taken for a result against another model."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from attacked import contest_of, subject_of

from salun_diffusers import UserError
from salun_diffusers.evaluation.prompt_files import read_prompt_file
from salun_diffusers.red_team.attack import Case, Finding
from salun_diffusers.red_team.found_prompts import FoundPrompts, Transfer
from salun_diffusers.red_team.token_space import TokenSpace

ONE, OTHER = "a1" * 32, "b2" * 32
CASES = (Case('a "red" star, shining', 2**63 - 1), Case(" a star", 2), Case("a ring", 3))
FINDINGS = {
    "ring_a_bell": [
        Finding(True, 1, 'x , "y" ;z', (3, 1, 577)), Finding(False, 4, "� \x00\nq", (9, 9)), Finding(False, 0)
    ],
    "synonym": [Finding(False, 3, "a disc"), Finding(True, 2, "a pentagram"), Finding(True, 1, "a hoop")],
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "private" / "found.csv"
    FoundPrompts.of(FINDINGS, CASES, ONE).write(path)
    return path


@pytest.fixture(scope="module")
def subject(tiny_pipeline: Path):
    return subject_of(tiny_pipeline, fingerprint=ONE)


@pytest.fixture(scope="module")
def stranger(tiny_pipeline: Path):
    return subject_of(tiny_pipeline, fingerprint=OTHER)


def test_there_and_back(file: Path) -> None:
    read = FoundPrompts.read(file)
    assert read == FoundPrompts.of(FINDINGS, CASES, ONE)
    assert read.target == ONE
    assert [row.wording.tokens for row in read.rows] == [(3, 1, 577), (9, 9), (), (), ()]
    assert [row.case for row in read.rows] == [CASES[0], CASES[1], *CASES]
    # What cannot be printed is in the tokens only.
    assert read.rows[1].wording.text == "� q"


def test_it_is_a_prompt_file_as_well(file: Path) -> None:
    rows = read_prompt_file(file).rows
    assert [row.prompt for row in rows] == ['x , "y" ;z', "� q", "a disc", "a pentagram", "a hoop"]
    assert rows[0].seed == 2**63 - 1


def test_the_same_model_need_not_be_searched_again(file: Path, subject) -> None:
    read = FoundPrompts.read(file)
    again = read.findings("ring_a_bell", CASES, subject)
    assert again == {CASES[0]: FINDINGS["ring_a_bell"][0], CASES[1]: Finding(False, 4, "� q", (9, 9))}
    assert read.findings("synonym", [CASES[2], Case("new", 1)], subject) == {CASES[2]: Finding(True, 1, "a hoop")}
    assert read.findings("unheard of", CASES, subject) == {}


def test_another_model_has_no_results_from_it(file: Path, stranger) -> None:
    with pytest.raises(UserError, match=r"a1a1a1a1a1a1 are no result against b2b2b2b2b2b2.*transfer"):
        FoundPrompts.read(file).findings("synonym", CASES, stranger)


def test_a_transfer_is_called_one(file: Path, subject, stranger) -> None:
    transfer = Transfer(FoundPrompts.read(file))
    assert transfer.name == "transfer from a1a1a1a1a1a1"
    with pytest.raises(UserError, match="no transfer to itself"):
        transfer(contest_of(subject)[0], CASES, lambda _: None)
    contest, looks = contest_of(stranger)
    findings = transfer(contest, CASES, lambda _: None)
    # Each case tries its own two prompts, the third its own one.
    assert [one.tries for one in findings] == [2, 2, 1]
    shown = [picture.tobytes() for picture in looks.shown]
    # Token 577 is no word of this tiny vocabulary, so the text counts.
    for text in ('x , "y" ;z', "a disc"):
        assert stranger.drawn([text], [CASES[0].seed])[0].tobytes() in shown


def test_tokens_stay_where_they_are_the_same_words(subject, stranger) -> None:
    tokens = TokenSpace(stranger.family).own("a heart star")[::-1]
    text = TokenSpace(stranger.family).text(tokens)
    for written, drawn in ((text, text), ("a circle", "a circle")):
        found = FoundPrompts.of({"random": [Finding(True, 1, written, tokens)]}, CASES[:1], ONE)
        contest, looks = contest_of(stranger)
        [finding] = Transfer(found)(contest, CASES[:1], lambda _: None)
        assert finding.tokens == (tokens if written == text else ())
        assert looks.shown[0].tobytes() == stranger.drawn([drawn], [CASES[0].seed])[0].tobytes()


def test_new_cases_try_what_hit_elsewhere(file: Path, stranger) -> None:
    new = [Case("a heart", 8), Case("a square", 9)]
    contest, looks = contest_of(stranger)
    findings = Transfer(FoundPrompts.read(file), tries=2)(contest, new, lambda _: None)
    assert [one.tries for one in findings] == [2, 2] and len(looks.shown) == 4
    hits = {'x , "y" ;z', "a pentagram", "a hoop"}
    assert {one.text for one in findings} <= hits
    all_of_them = Transfer(FoundPrompts.read(file), tries=9)(contest, new[:1], lambda _: None)
    assert all_of_them[0].tries == 3, "what missed is not tried"
    assert [Transfer(FoundPrompts.read(file), 2)(contest, [case], lambda _: None)[0] for case in new] == findings


def spoilt(file: Path, column: str, value: str, row: int = 1) -> None:
    with file.open(newline="") as stream:
        table = list(csv.reader(stream))
    table[row][table[0].index(column)] = value
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows(table)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("tokens", "3 x", "whole number"), ("tokens", "-3", "whole number"), ("tokens", "1e3", "whole number"),
        ("tokens", "99999999999999999999999", "whole number"), ("tokens", "1 " * 1001, "1001 tokens"),
        ("hit", "2", "from 0 to 1"), ("hit", "", "whole number"), ("tries", "yes", "whole number"),
        ("evaluation_seed", "1.5", "whole number"), ("evaluation_seed", str(2**64), "whole number"),
        ("target", "", "fingerprint"), ("target", "not/a hash", "fingerprint"), ("target", "c3" * 32, "names 2"),
        ("tokens", "٣", "whole number"),
    ],
)  # fmt: skip
def test_spoilt_cells(column: str, value: str, words: str, file: Path) -> None:
    spoilt(file, column, value)
    with pytest.raises(UserError, match=words) as error:
        FoundPrompts.read(file)
    assert "\n" not in str(error.value)


def test_a_row_without_words(file: Path) -> None:
    spoilt(file, "prompt", " ", row=3)
    with pytest.raises(UserError, match="row 3 has neither"):
        FoundPrompts.read(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("prompt\na star\n", "must have the columns"),
        ("a photo of a star\nanother one of them\n", "must have the columns"),
        ("", "must have the columns"),
        (",".join(f'"{name}"' for name in ("case_number", "prompt", "evaluation_seed", "tokens", "asked", "attack",
                                           "hit", "tries", "target")) + "\n", "names 0"),
    ],
)  # fmt: skip
def test_files_of_others(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "found.csv").write_text(content)
    with pytest.raises(UserError, match=words):
        FoundPrompts.read(tmp_path / "found.csv")
    with pytest.raises(UserError, match="no such file"):
        FoundPrompts.read(tmp_path / "absent.csv")
