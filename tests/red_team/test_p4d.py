"""P4D: the nearest word and where the gradient goes, by hand; which places are free; and what it makes smaller."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from held_subjects import CASES, contest, rows_asked, subject, untold

from salun_diffusers.red_team.p4d import P4D, nearest_words
from salun_diffusers.red_team.subject import Subject
from salun_diffusers.red_team.token_space import TokenSpace
from salun_diffusers.seeds import stream


@pytest.fixture(scope="module")
def held(tiny_pipeline: Path) -> Subject:
    return subject(tiny_pipeline)


@pytest.fixture(scope="module", params=["tiny", "sd14", "sdxl"])
def each(request: pytest.FixtureRequest, tiny_pipeline: Path, sd14: Path, sdxl: Path) -> Subject:
    return subject({"tiny": tiny_pipeline, "sd14": sd14, "sdxl": sdxl}[request.param])


def test_the_nearest_word_is_that_of_the_largest_cosine():
    """(3, 1) has cosines .95, .32 and .89 with (1, 0), (0, 1) and (1, 1)/√2; (1, 3) is nearest to the second."""
    words = torch.tensor([[1, 0], [0, 1], [0.5**0.5, 0.5**0.5]])
    vectors = torch.tensor([[3.0, 1.0], [1.0, 3.0], [0.01, 0.011], [-1.0, -0.5]])
    assert nearest_words([vectors], [words]).tolist() == [0, 1, 2, 1]


def test_two_encoders_share_the_word_with_the_largest_sum_of_cosines():
    """The first prefers word 0 (.8 to .6), the second word 1 (1 to 0): .8 + 0 < .6 + 1, however long each vector is."""
    words = torch.eye(2)
    assert nearest_words([torch.tensor([80.0, 60.0]), torch.tensor([0.0, 1.0])], [words, words]).item() == 1


def test_free_places(held):
    space = TokenSpace(held.family)
    assert P4D("K").sentence(space, "a photo of a star").places.tolist() == [[1, 5]]  # Before the first, after three.
    assert P4D("K").sentence(space, "a photo of").places.tolist() == [[1, 5]]
    assert P4D("K", every=2).sentence(space, "a photo of a star").places.tolist() == [[1, 4, 7]]
    alone = P4D("N", tokens=4).sentence(space, "a photo of a star")
    assert alone.places.tolist() == [[1, 2, 3, 4]]
    assert alone.ids[0][0, 5].item() == held.family.pipe.tokenizer.eos_token_id
    assert P4D("N").sentence(space, "a star").places.tolist() == [list(range(1, 15))]  # 16 do not fit into 16 - 2.
    long = P4D("K").sentence(space, " ".join(["star"] * 40))
    assert long.places.tolist() == [[1, 5, 9]] or long.places.tolist() == [[1, 5, 9, 13]]


def test_constants_are_the_sources():
    attack = P4D()
    assert (attack.tokens, attack.every, attack.steps, attack.look_every) == (16, 3, 3000, 50)
    assert (attack.learning_rate, attack.weight_decay) == (0.1, 0.1)
    assert (P4D("N").name, P4D("K").name) == ("p4d_n", "p4d_k")


def test_the_gradient_at_the_words_moves_the_vectors(each, monkeypatch):
    """AdamW's first step by hand: z ← z (1 - η λ) - η g / (|g| + 1e-8), g taken where the nearest words lie, not at z.

    The vectors begin at words here, so that the two steps differ: the second's g is at words, z is between them.
    """
    space, case, steps = TokenSpace(each.family), CASES[0], []
    plain = torch.optim.AdamW.step

    def step(self, *rest):
        vectors = self.param_groups[0]["params"]
        before, slopes = [one.detach().clone() for one in vectors], [one.grad.clone() for one in vectors]
        plain(self, *rest)
        steps.append((before, slopes, [one.detach().clone() for one in vectors]))

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    attack = P4D("N", tokens=3, steps=2)
    attack(contest(each, each), [case], untold)
    random = stream(case.seed, "p4d_n")
    words = torch.randint(len(space.words), (3,), generator=random)
    first = [matrix[space.words[words]] for matrix in space.matrices]
    assert all(torch.equal(one, other) for one, other in zip(first, steps[0][0], strict=True))
    latents = each.drawn_latents([case.prompt], [case.seed])
    directions = [torch.nn.functional.normalize(matrix[space.words], dim=-1) for matrix in space.matrices]
    for before, slopes, _ in steps:
        times = each.family.schedule.sample(1, random)
        noised = each.family.schedule.noised(latents, torch.randn(latents.shape[1:], generator=random)[None], times)
        found = space.words[nearest_words(before, directions)]
        at = [matrix[found].unsqueeze(0).requires_grad_() for matrix in space.matrices]
        answers = [
            each.family.predict(each.family.denoiser, noised, times, conditions)
            for conditions in (space.conditions(attack.sentence(space, ""), at), each.family.encode([case.prompt]))
        ]
        expected = torch.autograd.grad((answers[0] - answers[1]).square().mean(), at)
        for one, other in zip(expected, slopes, strict=True):
            torch.testing.assert_close(other, one[0], rtol=1e-3, atol=1e-6 * float(one.abs().max()))
    before, slopes, after = steps[0]
    for one, slope, moved in zip(before, slopes, after, strict=True):
        torch.testing.assert_close(moved, one * (1 - 0.1 * 0.1) - 0.1 * slope / (slope.abs() + 1e-8))
        assert (slope.abs() > 1e-7).float().mean() > 0.8


def test_the_answers_to_the_words_become_those_to_the_prompt(held):
    """Over timesteps and noise that the search has not seen, for three cases."""
    space, random = TokenSpace(held.family), torch.Generator().manual_seed(5)
    attack = P4D("N", tokens=6, steps=25, look_every=25)
    findings = attack(contest(held, held), CASES, untold)
    sentence = space.sentence([""] * 3, [0] * 6)
    begun = [torch.randint(len(space.words), (6,), generator=stream(case.seed, "p4d_n")) for case in CASES]
    asked = held.family.encode([case.prompt for case in CASES])
    states = [
        space.of_ids(sentence, ids)["encoder_hidden_states"]
        for ids in (space.words[torch.stack(begun)], torch.tensor([finding.tokens for finding in findings]))
    ]
    latents = held.drawn_latents([case.prompt for case in CASES], [case.seed for case in CASES])
    errors = torch.zeros(2)
    with torch.no_grad():
        for _ in range(8):
            times = held.family.schedule.sample(3, random)
            noised = held.family.schedule.noised(latents, torch.randn(latents.shape, generator=random), times)
            wanted = held.family.predict(held.family.denoiser, noised, times, asked)
            for number, one in enumerate(states):
                answer = held.family.predict(held.family.denoiser, noised, times, {"encoder_hidden_states": one})
                errors[number] += (answer - wanted).square().mean()
    assert errors[1] < 0.6 * errors[0], errors


def test_a_picture_after_every_so_many_steps_and_after_the_last(held, monkeypatch):
    target = subject(held.family.folder)
    asked, told = rows_asked(target, monkeypatch), []
    match = contest(target, held, [[False, True], [False], [False]])
    findings = P4D("N", tokens=2, steps=5, look_every=2)(match, CASES[:2], told.append)
    assert asked == [2, 2, 1, 1, 1] and match.judge.detector.seen == [2, 1, 1]
    assert [(finding.hit, finding.tries) for finding in findings] == [(False, 3), (True, 1)]
    assert [dict(finding.measured)["step"] for finding in findings] == [5, 2]
    assert told == [1, 1]


def test_the_base_is_asked_what_the_prompt_means(held, monkeypatch):
    """The teacher is the base, not the target."""
    base, target = subject(held.family.folder, "base"), subject(held.family.folder)
    of_base, of_target = rows_asked(base, monkeypatch), rows_asked(target, monkeypatch)
    P4D("N", tokens=2, steps=3)(contest(target, base), CASES[:2], untold)
    assert of_base == [2, 2, 2] and of_target == [2, 2, 2]


def test_the_base_answers_with_its_own_network(held, monkeypatch):
    base, target, asked = subject(held.family.folder, "base"), subject(held.family.folder), []
    base.family.denoiser, plain = copy.deepcopy(target.family.denoiser), base.family.predict
    monkeypatch.setattr(base.family, "predict", lambda network, *rest: asked.append(network) or plain(network, *rest))
    P4D("N", tokens=2, steps=1)(contest(target, base), CASES[:1], untold)
    assert [network is base.family.denoiser for network in asked] == [True]


def test_a_case_does_not_depend_on_those_beside_it(each):
    """K has two, one and three free words in these prompts."""
    attack = P4D("K", steps=2, batch_size=3)
    together = attack(contest(each, each), CASES, untold)
    for number in (0, 1):
        alone = attack(contest(each, each), [CASES[number]], untold)[0]
        assert together[number].tokens == alone.tokens and together[number].text == alone.text
        assert dict(together[number].measured) == pytest.approx(dict(alone.measured), rel=1e-3)
