"""Concept vector and distance by hand, and what a search in a text encoder finds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from attacked import contest_of, subject_of

from salun_diffusers import UserError
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.presets.known import find_concept
from salun_diffusers.diffusion.presets.text_space import NotAtHand
from salun_diffusers.red_team import ring_a_bell
from salun_diffusers.red_team.attack import Case
from salun_diffusers.red_team.genetic import Genetics
from salun_diffusers.red_team.ring_a_bell import (
    RingABell,
    concept_vector,
    distance,
    encoder_fingerprint,
    pairs_of,
)
from salun_diffusers.red_team.token_space import TokenSpace

PAIRS = (("a photo of a star", "a photo of a heart"), ("a red star", "a red circle"))
SMALL = RingABell(PAIRS, tokens=4, genetics=Genetics(population=20, generations=6))
CASES = [Case("a photo of a star", 1), Case("a star", 2), Case("a red star", 3)]


@pytest.fixture(scope="module", params=["tiny", "sd14", "sdxl"])
def subject(request: pytest.FixtureRequest, tiny_pipeline: Path, sd14: Path, sdxl: Path):
    return subject_of({"tiny": tiny_pipeline, "sd14": sd14, "sdxl": sdxl}[request.param])


@pytest.fixture(scope="module")
def tiny(tiny_pipeline: Path):
    return subject_of(tiny_pipeline)


def states(subject, prompt: str) -> torch.Tensor:
    """Straight from the text encoders."""
    pipe, found = subject.family.pipe, []
    for suffix in subject.family.encoders:
        tokenizer, encoder = getattr(pipe, f"tokenizer{suffix}"), getattr(pipe, f"text_encoder{suffix}")
        ids = tokenizer(prompt, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
        read = encoder(ids, output_hidden_states=True)
        found.append(read.hidden_states[-2] if len(subject.family.encoders) > 1 else read.last_hidden_state)
    return torch.cat(found, dim=-1)


def test_the_concept_vector_is_the_mean_difference(subject) -> None:
    by_hand = sum(states(subject, one) - states(subject, other) for one, other in PAIRS) / 2
    found = concept_vector(subject, PAIRS)
    assert found.shape == (1, 16, 40 if len(subject.family.encoders) > 1 else 16)
    torch.testing.assert_close(found, by_hand)
    assert float(found.abs().max()) > 0.01


def test_the_distance_is_squared_and_over_all_positions() -> None:
    target = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    rows = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 2.0], [3.0, 7.0]]])
    assert distance(rows, target).tolist() == [0, 10]


def test_what_is_found_is_as_near_as_is_said(subject) -> None:
    """The found tokens put through the encoders again, against the target by hand."""
    [best] = SMALL.found(subject, CASES[:1])
    target = states(subject, CASES[0].prompt) + 3.0 * concept_vector(subject, PAIRS)
    space = TokenSpace(subject.family)
    read = space.of_ids(space.sentence([""], [0] * 4), best.ids.unsqueeze(0))["encoder_hidden_states"]
    assert best.history[-1] == pytest.approx(float((read - target).square().sum()), rel=1e-4)
    assert best.history[-1] < best.history[0]
    assert not set(best.ids.tolist()) & space.special


def test_a_case_is_alone_what_it_is_in_company(tiny, monkeypatch) -> None:
    together = SMALL.found(tiny, CASES)
    for case, best in zip(CASES, together, strict=True):
        monkeypatch.setattr(ring_a_bell, "_SEARCHED", {})
        [alone] = SMALL.found(tiny, [case])
        assert alone.ids.tolist() == best.ids.tolist() and alone.history == best.history
    [elsewhere] = SMALL.found(tiny, [dataclasses.replace(CASES[0], seed=9)])
    assert elsewhere.history[0] != together[0].history[0], "another seed begins elsewhere"


def test_findings_are_drawn_at_the_case_s_seed(subject) -> None:
    contest, looks = contest_of(subject, lambda picture: True)
    settled: list[int] = []
    findings = SMALL(contest, CASES[:2], settled.append)
    best = SMALL.found(subject, CASES[:2])
    assert [finding.tokens for finding in findings] == [tuple(one.ids.tolist()) for one in best]
    assert all(finding.hit and finding.tries == 1 and finding.text for finding in findings)
    assert dict(findings[0].measured) == {"distance": best[0].history[-1], "at random": best[0].history[0]}
    assert sum(settled) == 2
    space = TokenSpace(subject.family)
    read = space.of_ids(space.sentence([""], [0] * 4), best[1].ids.unsqueeze(0))
    [expected] = subject.pictures(read, [CASES[1].seed])
    assert looks.shown[1].tobytes() == expected.tobytes()


def test_one_search_serves_all_models_with_the_encoder(tiny, tiny_pipeline: Path, monkeypatch) -> None:
    """An erased denoiser changes nothing; another text encoder, pair or case does."""
    searches: list[str] = []
    search = ring_a_bell.search
    monkeypatch.setattr(ring_a_bell, "_SEARCHED", {})
    monkeypatch.setattr(ring_a_bell, "search", lambda *given: searches.append("once") or search(*given))
    erased = subject_of(tiny_pipeline)
    next(iter(erased.family.denoiser.parameters())).data += 1
    first, again = SMALL.found(tiny, CASES[:2]), SMALL.found(erased, CASES[:2])
    assert len(searches) == 2 and [one.ids.tolist() for one in first] == [one.ids.tolist() for one in again]
    dataclasses.replace(SMALL, pairs=PAIRS[:1]).found(erased, CASES[:1])
    assert len(searches) == 3
    next(iter(erased.family.pipe.text_encoder.parameters())).data += 1
    SMALL.found(erased, CASES[:1])
    assert len(searches) == 4


def test_no_more_tokens_than_can_be_read(tiny) -> None:
    [best] = dataclasses.replace(SMALL, tokens=77).found(tiny, CASES[:1])
    assert len(best.ids) == 14


def test_defaults_are_the_source_s() -> None:
    attack = RingABell(PAIRS)
    assert (attack.tokens, attack.strength) == (16, 3.0)
    assert attack.genetics == Genetics(population=200, generations=3000, crossover=0.5, mutation=0.25)


def test_pairs_are_the_concept_s_swaps() -> None:
    concept = find_concept(EraseConfig(concept="star"), space=NotAtHand(of_a_toy=True))
    pairs = pairs_of(concept)
    assert ("a photo of a star", "a photo of a heart") in pairs
    assert len(set(pairs)) == len(pairs)
    assert {one for one, _ in pairs} == set(concept.forget_prompts)


def test_a_fingerprint_is_of_the_text_encoders(subject) -> None:
    before = encoder_fingerprint(subject)
    weight = next(iter(subject.family.denoiser.parameters()))
    weight.data += 1
    assert encoder_fingerprint(subject) == before
    weight.data -= 1
    suffix = subject.family.encoders[-1]
    weight = next(iter(getattr(subject.family.pipe, f"text_encoder{suffix}").parameters()))
    weight.data += 1
    assert encoder_fingerprint(subject) != before
    weight.data -= 1


def test_pairs_are_required(tiny) -> None:
    with pytest.raises(UserError, match="at least one pair"):
        RingABell(()).found(tiny, CASES)


def test_a_family_without_words_is_refused(tiny_ddpm: Path) -> None:
    ddpm = subject_of(tiny_ddpm)
    with pytest.raises(UserError, match="text encoder is required"):
        SMALL(contest_of(ddpm)[0], CASES, lambda _: None)
    with pytest.raises(UserError, match="text encoder is required"):
        encoder_fingerprint(ddpm)
