"""Concept inversion: where the new word stands, what moves and what does not, and what is drawn by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from held_subjects import CASES, contest, rows_asked, subject, untold

from salun_diffusers import UserError
from salun_diffusers.red_team import concept_inversion
from salun_diffusers.red_team.concept_inversion import TEMPLATES, ConceptInversion, Examples, _put, _templated
from salun_diffusers.red_team.denoising import own_errors
from salun_diffusers.red_team.subject import Subject
from salun_diffusers.red_team.token_space import Sentence, TokenSpace

SMALL = ConceptInversion(pictures=2, initializer="star", steps=2, batch_size=2, accumulation=1)
PROMPTS = ("a photo of a star", "a star")


@pytest.fixture(scope="module")
def held(tiny_pipeline: Path) -> Subject:
    return subject(tiny_pipeline)


@pytest.fixture(scope="module", params=["tiny", "sd14", "sdxl"])
def each(request: pytest.FixtureRequest, tiny_pipeline: Path, sd14: Path, sdxl: Path) -> Subject:
    return subject({"tiny": tiny_pipeline, "sd14": sd14, "sdxl": sdxl}[request.param])


def examples_of(one: Subject) -> Examples:
    random = torch.Generator().manual_seed(1)
    return Examples(torch.randn(3, *one.family.latent_shape, generator=random), ("a star", "star", "a photo of a star"))


@pytest.fixture
def examples(each: Subject) -> Examples:
    return examples_of(each)


@pytest.mark.parametrize("template", ["a photo of a {}", "the {} on a star", "{}"])
def test_the_new_word_stands_where_the_braces_are(each, template):
    space = TokenSpace(each.family)
    found = space.conditions(_templated(space, template), _put(space.meaning("heart"), 1))
    expected = each.family.encode([template.format("heart")])
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_sentences_are_those_of_textual_inversion():
    assert {name: len(rows) for name, rows in TEMPLATES.items()} == {"object": 27, "style": 19, "person": 2}
    assert all(row.count("{}") == 1 and row == row.strip() for rows in TEMPLATES.values() for row in rows)


def test_constants_are_the_sources():
    attack = ConceptInversion()
    assert (attack.pictures, attack.steps, attack.batch_size, attack.accumulation) == (25, 5000, 4, 4)
    assert (attack.learning_rate, attack.weight_decay, attack.look_every) == (5e-3, 1e-2, 5000)
    assert (attack.name, ConceptInversion("prompt").name) == ("concept_inversion", "concept_inversion_prompt")


def test_one_vector_of_each_encoder_moves_and_nothing_else(each, examples):
    """AdamW's first step: v ← v (1 - η λ) - η sign(g), with η = 5e-3 for each of 2 · 3 pictures and λ = 10."""
    parts = [each.family.denoiser, *(getattr(each.family.pipe, f"text_encoder{one}") for one in each.family.encoders)]
    before = [{name: value.clone() for name, value in part.state_dict().items()} for part in parts]
    attack = ConceptInversion(initializer="star", steps=1, batch_size=2, accumulation=3, weight_decay=10.0)
    (word,) = attack.learning(contest(each, each), examples)
    for part, kept in zip(parts, before, strict=True):
        assert all(torch.equal(value, kept[name]) for name, value in part.state_dict().items())
        assert all(value.grad is None for value in part.parameters())
    begun = TokenSpace(each.family).meaning("star")
    assert len(word.vectors) == len(begun) == len(each.family.encoders)
    for vector, first in zip(word.vectors, begun, strict=True):
        away = (vector - first * (1 - 0.03 * 10)).abs()
        assert (away > 0.029).float().mean() > 0.9 and float(away.max()) < 0.0301


@pytest.mark.parametrize("sentences", ["object", "prompt"])
def test_batches_of_a_step_at_once_or_one_by_one_teach_the_same(each, examples, monkeypatch, sentences):
    attack = ConceptInversion(sentences, initializer="star", steps=3, batch_size=2, accumulation=3)
    *_, together = attack.learning(contest(each, each), examples)
    monkeypatch.setattr(concept_inversion, "is_small", lambda _: False)
    *_, one_by_one = attack.learning(contest(each, each), examples)
    assert together.loss == pytest.approx(one_by_one.loss, rel=1e-4)
    for vector, other in zip(together.vectors, one_by_one.vectors, strict=True):
        torch.testing.assert_close(vector, other, rtol=1e-3, atol=1e-4)


def test_each_picture_is_learnt_with_its_own_prompt(held, monkeypatch):
    examples = examples_of(held)
    seen, plain = [], concept_inversion.own_errors
    monkeypatch.setattr(concept_inversion, "own_errors", lambda *given: seen.append(given) or plain(*given))
    attack = ConceptInversion("prompt", initializer="star", steps=1, batch_size=12, accumulation=1)
    list(attack.learning(contest(held, held), examples))
    space, ((_, clean, _, conditions, _),) = TokenSpace(held.family), seen
    items = torch.cdist(clean.flatten(1), examples.latents.flatten(1)).argmin(dim=1)
    put = _put(space.meaning("star"), len(examples.prompts))
    states = space.conditions(space.sentence(examples.prompts, [0]), put)["encoder_hidden_states"]
    torch.testing.assert_close(conditions["encoder_hidden_states"], states[items])
    assert len(set(items.tolist())) > 1


def test_the_loss_that_is_told_is_that_of_the_steps_since_the_last_look(held, monkeypatch):
    examples = examples_of(held)
    attack = ConceptInversion(initializer="star", steps=4, look_every=2, batch_size=2, accumulation=1)
    monkeypatch.setattr(ConceptInversion, "examples", lambda *_: examples)
    losses = [word.loss for word in attack.learning(contest(held, held), examples)]
    (found,) = attack(contest(held, held), CASES[:1], untold)
    assert dict(found.measured)["loss"] == pytest.approx((losses[2] + losses[3]) / 2)


@pytest.mark.parametrize("sentences", ["object", "prompt"])
def test_the_loss_falls(held, sentences):
    """Over timesteps and noise that learning has not seen; the latents are the model's own answer to another word."""
    space, random = TokenSpace(held.family), torch.Generator().manual_seed(2)
    latents = torch.randn(3, *held.family.latent_shape, generator=random)
    examples = Examples(latents, ("a star", "star", "a photo of a star"))
    attack = ConceptInversion(sentences, initializer="star", steps=15, batch_size=8, accumulation=1)
    *_, word = attack.learning(contest(held, held), examples)
    if sentences == "prompt":
        said = space.sentence(examples.prompts, [0])
    else:
        said = Sentence.joined([_templated(space, one) for one in TEMPLATES["object"][:3]])
    times, noise = held.family.schedule.sample(60, random), torch.randn(60, *latents.shape[1:], generator=random)
    rows = torch.arange(60) % 3
    with torch.no_grad():
        before, after = (
            own_errors(
                held.family, latents[rows], times, space.conditions(said.rows(rows), _put(vectors, 60)), noise
            ).mean()
            for vectors in (space.meaning("star"), word.vectors)
        )
    assert after < before


def test_pictures_that_do_not_show_the_concept_are_not_learnt_from(held):
    match = contest(held, held, [[True, False], [False, False], [False, True]], prompts=PROMPTS)
    found = SMALL.examples(match)
    assert found.latents.shape == (2, *held.family.latent_shape) and found.prompts == PROMPTS
    assert match.judge.detector.seen == [2, 2, 2]
    with pytest.raises(UserError, match="none of 8 by the base"):
        SMALL.examples(contest(held, held, prompts=PROMPTS))


def test_a_contest_without_prompts_names_the_concept(held):
    assert SMALL.examples(contest(held, held, [[True, True]])).prompts == ("a photo of a star",) * 2


@pytest.mark.parametrize(("sentences", "texts"), [
    ("object", ["a photo of a <new>", "a photo of a <new>"]), ("prompt", ["<new> a photo of a star", "<new> a star"]),
])  # fmt: skip
def test_cases_are_drawn_with_the_word(each, sentences, texts):
    attack, told = ConceptInversion(sentences, 2, "star", 1, batch_size=1, accumulation=1), []
    match = contest(each, each, [[True, True], [True, False]], prompts=PROMPTS)
    findings = attack(match, CASES[:2], told.append)
    assert [finding.text for finding in findings] == texts
    assert [(finding.hit, finding.tries) for finding in findings] == [(True, 1), (False, 1)]
    assert told == [1, 1]


@pytest.mark.parametrize(("small", "rows"), [(True, [6] * 6), (False, [3] * 12)])
def test_cases_that_are_hit_rest_and_learning_ends_with_the_last(held, monkeypatch, small, rows):
    monkeypatch.setattr(concept_inversion, "is_small", lambda _: small)
    asked = rows_asked(held, monkeypatch)
    attack = ConceptInversion("object", 1, "star", steps=50, look_every=2, batch_size=3, accumulation=2)
    match = contest(held, held, [[True], [False, True, False], [False, False], [True, True]])
    findings = attack(match, CASES, untold)
    assert [(finding.hit, finding.tries) for finding in findings] == [(True, 3), (True, 1), (True, 3)]
    assert [dict(finding.measured)["step"] for finding in findings] == [6, 2, 6]
    assert asked == rows


def test_the_word_is_the_same_for_a_case_alone_and_again(held):
    looks = [[True, True]]
    together = SMALL(contest(held, held, looks), CASES, untold)
    assert SMALL(contest(held, held, looks), CASES[1:2], untold) == together[1:2]


def test_a_word_has_to_mean_something_at_first(held):
    with pytest.raises(UserError, match="At least one word is required"):
        ConceptInversion(pictures=1, initializer=" ")(contest(held, held, [[True]]), CASES[:1], untold)
