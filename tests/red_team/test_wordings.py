"""Turns: who is drawn when, at which seed, and when a case is settled."""

from __future__ import annotations

from pathlib import Path

import pytest
from attacked import contest_of, subject_of

from salun_diffusers import UserError
from salun_diffusers.red_team.attack import Case
from salun_diffusers.red_team.token_space import TokenSpace
from salun_diffusers.red_team.wordings import Wording, some, tried

CASES = [Case("a star", 1), Case("a photo of a circle", 2), Case("a red star", 3)]
LISTS = [
    [Wording("a heart"), Wording("a square")],
    [Wording("a red heart"), Wording("a photo of a star"), Wording("a star")],
    [],
]


@pytest.fixture(scope="module")
def subject(tiny_pipeline: Path):
    return subject_of(tiny_pipeline)


def test_turns_end_with_the_first_hit(subject) -> None:
    hit = subject.drawn(["a photo of a star"], [2])[0].tobytes()
    contest, looks = contest_of(subject, lambda picture: picture.tobytes() == hit)
    settled: list[int] = []
    findings = tried(contest, CASES, LISTS, settled.append)
    assert [(one.hit, one.tries, one.text) for one in findings] == [
        (False, 2, "a square"), (True, 2, "a photo of a star"), (False, 0, "")
    ]  # fmt: skip
    assert sum(settled) == 3
    assert len(looks.shown) == 4
    assert looks.shown[0].tobytes() == subject.drawn(["a heart"], [1])[0].tobytes()


def test_a_case_is_alone_what_it_is_in_company(subject) -> None:
    light = sorted(sum(subject.drawn([one.text], [case.seed])[0].tobytes())
                   for case, row in zip(CASES, LISTS, strict=True) for one in row)  # fmt: skip
    contest, _ = contest_of(subject, lambda picture: sum(picture.tobytes()) > light[2])
    together = tried(contest, CASES, LISTS, lambda _: None)
    alone = [tried(contest, [case], [row], lambda _: None)[0] for case, row in zip(CASES, LISTS, strict=True)]
    assert together == alone
    assert {one.hit for one in together} == {True, False}


def test_tokens_count_before_the_text(subject) -> None:
    space = TokenSpace(subject.family)
    contest, looks = contest_of(subject)
    tried(contest, CASES[:1], [[Wording("what it reads like", space.own("a heart"))]], lambda _: None)
    assert looks.shown[0].tobytes() == subject.drawn(["a heart"], [1])[0].tobytes()


def test_words_need_a_text_encoder(tiny_ddpm: Path) -> None:
    with pytest.raises(UserError, match="text encoder is required"):
        tried(contest_of(subject_of(tiny_ddpm))[0], CASES, LISTS, lambda _: None)


def test_the_order_is_the_case_s_own() -> None:
    listed = [Wording(str(number)) for number in range(12)]
    first = some(CASES[0], "attack", listed, 5)
    assert len(first) == len(set(first)) == 5
    assert first == some(CASES[0], "attack", listed, 5)
    assert first != some(CASES[1], "attack", listed, 5)
    assert first != some(CASES[0], "another", listed, 5)
    assert set(some(CASES[0], "attack", listed, 99)) == set(listed)
