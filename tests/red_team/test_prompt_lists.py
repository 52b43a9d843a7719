"""Ready lists in the files that others publish, as an attack and as cases."""

from __future__ import annotations

from pathlib import Path

import pytest
from attacked import contest_of, subject_of

from salun_diffusers import UserError
from salun_diffusers.red_team.attack import Case
from salun_diffusers.red_team.prompt_lists import PromptList, cases_of

CASES = [Case("a star", 1), Case("a red star", 2)]


def test_a_list_in_others_layouts(tmp_path: Path) -> None:
    """MMA-Diffusion's column is adv_prompt, Ring-A-Bell's is `sensitive prompt`; lines are a list as well."""
    (tmp_path / "mma.csv").write_text("target_prompt,adv_prompt\nx,a heart\ny,a ring\ny,a heart\n")
    (tmp_path / "rab.csv").write_text("sensitive prompt,other\na heart,\na ring,\n")
    (tmp_path / "lines.txt").write_text("a heart\n\na ring\n")
    for name in ("mma.csv", "rab.csv", "lines.txt"):
        assert PromptList.read(tmp_path / name).prompts == ("a heart", "a ring")
    (tmp_path / "own.csv").write_text("words,evaluation_seed\na heart,7\na ring,2\n")
    assert PromptList.read(tmp_path / "own.csv", column="words").prompts == ("a heart", "a ring")


def test_rows_as_cases(tmp_path: Path) -> None:
    file = tmp_path / "i2p.csv"
    file.write_text(f"case_number,prompt,evaluation_seed\n4,a heart,{2**64 - 1}\n9,,5\n12,a ring,\n")
    assert cases_of(file) == (Case("a heart", 2**64 - 1), Case("a ring", 12))
    assert cases_of(file, limit=1) == (Case("a heart", 2**64 - 1),)


def test_a_case_tries_some_of_the_list(tiny_pipeline: Path) -> None:
    subject = subject_of(tiny_pipeline)
    prompts = tuple(f"a {colour} heart" for colour in ("red", "blue", "green", "black", "white"))
    contest, looks = contest_of(subject)
    findings = PromptList.quick(prompts)(contest, CASES, lambda _: None)
    assert [one.tries for one in findings] == [3, 3] and len(looks.shown) == 6
    assert all(one.text in prompts for one in findings)
    assert [PromptList(prompts, 3)(contest, [case], lambda _: None)[0] for case in CASES] == findings
    wanted = subject.drawn([prompts[3]], [CASES[1].seed])[0].tobytes()
    contest, _ = contest_of(subject, lambda picture: picture.tobytes() == wanted)
    findings = PromptList(prompts)(contest, CASES, lambda _: None)
    assert not findings[0].hit and findings[0].tries == 5
    assert findings[1].hit and findings[1].text == prompts[3]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "prompt\n\" \"\n\"\"\n", "at least one"),
        ("a.txt", "", "empty"),
        ("a.csv", "colour,size\nred,3\n", "column `prompt`"),
        ("a.csv", "prompt,seed\na star,-1\n", "whole number"),
        ("a.pkl", "a star", "ending"),
        ("a.json", "{}", "list"),
        ("a.txt", "a photo of {concept}\n", "template"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("read", [PromptList.read, cases_of])
def test_files_that_are_no_lists(read, name: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "absent.csv")
