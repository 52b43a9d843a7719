"""UnlearnDiffAtk: the simplex and the straight-through gradient by hand, the schedule, and who goes on."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from held_subjects import CASES, contest, rows_asked, subject, untold

from salun_diffusers import UserError
from salun_diffusers.red_team import unlearn_diff_atk
from salun_diffusers.red_team.subject import Subject
from salun_diffusers.red_team.token_space import TokenSpace
from salun_diffusers.red_team.unlearn_diff_atk import DrawnWord, UnlearnDiffAtk, drawn_words, onto_simplex

SMALL = UnlearnDiffAtk(tokens=2, timesteps=3, steps=2)


@pytest.fixture(scope="module")
def held(tiny_pipeline: Path) -> Subject:
    return subject(tiny_pipeline)


@pytest.fixture(scope="module", params=["tiny", "sd14", "sdxl"])
def each(request: pytest.FixtureRequest, tiny_pipeline: Path, sd14: Path, sdxl: Path) -> Subject:
    return subject({"tiny": tiny_pipeline, "sd14": sd14, "sdxl": sdxl}[request.param])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([0.5, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]),
        ([2, 0, 0], [1, 0, 0]),
        ([0.6, 0.6, -0.5], [0.5, 0.5, 0]),
        # 0.1 falls away (μ over all three would be 0.4 / 3 > 0.1), and of the two others μ = (1.3 - 1) / 2.
        ([0.9, 0.4, 0.1], [0.75, 0.25, 0]),
        ([-3, -3.5, -9], [0.75, 0.25, 0]),
        ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),
    ],
)
def test_the_nearest_point_of_the_simplex_by_hand(row, expected):
    torch.testing.assert_close(onto_simplex(torch.tensor(row, dtype=torch.float32)), torch.tensor(expected).float())


@pytest.mark.parametrize("spread", [1e-3, 1, 30])
@pytest.mark.parametrize("width", [2, 37, 5000])
def test_bisection_is_the_projection_by_sorting(width, spread):
    """Of the sorted entries those up to the largest ρ with a_ρ > (Σ_{i ≤ ρ} a_i - 1) / ρ are positive."""
    rows = spread * torch.randn(8, width, generator=torch.Generator().manual_seed(width))
    ordered = rows.double().sort(dim=-1, descending=True).values
    shifts = (ordered.cumsum(dim=-1) - 1) / torch.arange(1, width + 1)
    shift = shifts.gather(-1, (ordered > shifts).sum(dim=-1, keepdim=True) - 1)
    found = onto_simplex(rows)
    torch.testing.assert_close(
        found.double(), (rows.double() - shift).clamp(min=0), rtol=1e-4, atol=1e-5 * max(1, spread)
    )
    torch.testing.assert_close(found.double().sum(dim=-1), torch.ones(8).double(), rtol=0, atol=3e-5)
    assert bool((found >= 0).all())


def test_the_gradient_goes_straight_through_cut_to_one():
    """ℓ = Σ w·onehot: ∂ℓ/∂p is w, with -3 and 2.5 cut."""
    slopes = torch.tensor([[0.5, -3, 0], [2.5, -0.25, 1]])
    distribution = torch.full((2, 3), 1 / 3, requires_grad=True)
    hot = DrawnWord.apply(distribution, torch.tensor([2, 0]))
    assert hot.tolist() == [[0, 0, 1], [1, 0, 0]]
    (hot * slopes).sum().backward()
    assert distribution.grad.tolist() == [[0.5, -1, 0], [1, -0.25, 1]]


def test_words_are_drawn_by_their_probability():
    row = torch.tensor([0, 0.25, 0, 0.5, 0.25, 0])
    chances = torch.tensor([0, 0.24, 0.25, 0.74, 0.75, 0.999])
    assert drawn_words(row.expand(6, 6), chances).tolist() == [1, 1, 3, 3, 4, 4]


def test_timesteps_by_hand():
    assert UnlearnDiffAtk().schedule(1000) == list(range(10, 1000, 20))
    assert UnlearnDiffAtk(timesteps=4).schedule(1000) == [125, 375, 625, 875]
    assert UnlearnDiffAtk(timesteps=3).schedule(10) == [1, 4, 7]
    with pytest.raises(UserError, match="timesteps are required"):
        UnlearnDiffAtk(timesteps=11).schedule(10)


def test_constants_are_the_sources():
    attack = UnlearnDiffAtk()
    assert (attack.tokens, attack.timesteps, attack.steps) == (5, 50, 40)
    assert (attack.learning_rate, attack.weight_decay) == (0.01, 0.1)


def test_a_case_that_is_hit_rests_and_the_others_go_on(held, monkeypatch):
    """Two steps at each of t = 166, 499, 832: the second case falls at the first look, the first at the last."""
    asked, told = rows_asked(held, monkeypatch), []
    match = contest(held, held, [[False, True, False], [False, False], [True, False]])
    findings = SMALL(match, CASES, told.append)
    assert asked == [3, 3, 2, 2, 2, 2]
    assert match.judge.detector.seen == [3, 2, 2]
    assert [finding.hit for finding in findings] == [True, True, False]
    assert [finding.tries for finding in findings] == [3, 1, 3]
    assert [dict(finding.measured)["timestep"] for finding in findings] == [832, 166, 832]
    assert told == [1, 1, 1]


def test_nothing_is_asked_once_all_are_hit(held, monkeypatch):
    asked, told = rows_asked(held, monkeypatch), []
    findings = SMALL(contest(held, held, [[True, True, True]]), CASES, told.append)
    assert asked == [3, 3] and told == [3] and all(finding.hit for finding in findings)


def test_a_finding_is_the_whole_prompt(held):
    space = TokenSpace(held.family)
    finding = SMALL(contest(held, held), CASES[:1], untold)[0]
    assert finding.tokens[2:] == space.own(CASES[0].prompt)
    assert finding.text == space.text(finding.tokens) and finding.text.endswith(CASES[0].prompt)


def test_a_case_does_not_depend_on_those_beside_it(each):
    # The third case is in a batch of its own. The first step of Adam goes as far for all words, so that they are as
    # likely, and the decay is more than so small a model's gradients.
    attack = UnlearnDiffAtk(tokens=2, timesteps=2, steps=3, weight_decay=0, batch_size=2)
    cases = [CASES[0], CASES[2], CASES[1]]
    together, alone = attack(contest(each, each), cases, untold), attack(contest(each, each), [CASES[2]], untold)
    assert together[1].tokens == alone[0].tokens
    assert dict(together[1].measured) == pytest.approx(dict(alone[0].measured), rel=1e-4)
    assert together[0].tokens[:2] != together[1].tokens[:2]


def test_the_same_seed_finds_the_same_words(held):
    first, second = (SMALL(contest(held, held), CASES[:2], untold) for _ in range(2))
    assert first == second


def test_every_step_has_noise_of_its_own(held, monkeypatch):
    seen, plain = [], unlearn_diff_atk.own_errors
    monkeypatch.setattr(unlearn_diff_atk, "own_errors", lambda *given: seen.append(given[-1]) or plain(*given))
    SMALL(contest(held, held), CASES[:2], untold)
    assert len(torch.cat(seen).flatten(1).unique(dim=0)) == 6 * 2


def test_adams_first_step_by_hand(held, monkeypatch):
    """p ← p - η s / (|s| + 1e-8) with s = g + λ p: the decay is part of the slope, as Adam has it."""
    steps, plain = [], torch.optim.Adam.step

    def step(self, *rest):
        (row,) = self.param_groups[0]["params"]
        before, slope = row.detach().clone(), row.grad.clone()
        plain(self, *rest)
        steps.append((before, slope, row.detach().clone()))

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    UnlearnDiffAtk(tokens=2, timesteps=1, steps=1, learning_rate=0.02, weight_decay=3.0)(
        contest(held, held), CASES[:1], untold
    )
    before, slope, after = steps[0]
    slope = slope + 3.0 * before
    torch.testing.assert_close(after, before - 0.02 * slope / (slope.abs() + 1e-8))


def test_rows_stay_on_the_simplex_and_move(held, monkeypatch):
    seen = []

    def watched(distributions, chances):
        seen.append(distributions.detach().clone())
        return drawn_words(distributions, chances)

    monkeypatch.setattr(unlearn_diff_atk, "drawn_words", watched)
    SMALL(contest(held, held), CASES, untold)
    assert len(seen) == 6
    for rows in seen:
        assert bool((rows >= 0).all())
        torch.testing.assert_close(rows.sum(dim=-1), torch.ones(rows.shape[:2]))
    assert torch.equal(seen[0], torch.full_like(seen[0], 1 / seen[0].shape[-1]))
    assert all(not torch.equal(one, other) for one, other in pairwise(seen))


def test_words_are_found_that_the_model_denoises_best_with(held, monkeypatch):
    """A model that answers x₀ with a reading of the first word's state: trying all words says which are best."""
    space, shape = TokenSpace(held.family), held.family.latent_shape
    random = torch.Generator().manual_seed(3)
    mixing, latents = torch.randn(16, 64, generator=random) / 4, torch.randn(1, *shape, generator=random)

    def answer(_denoiser, noised, _timesteps, conditions):
        return (conditions["encoder_hidden_states"][:, 1] @ mixing).view_as(noised)

    monkeypatch.setattr(held.family, "generate_from", lambda _wanted, seeds, **_: latents.expand(len(seeds), *shape))
    monkeypatch.setattr(held.family, "predict", answer)
    monkeypatch.setattr(held.family.schedule, "prediction", "sample")
    cases = [replace(CASES[1], seed=seed) for seed in range(6)]  # Each begins with another word.
    findings = UnlearnDiffAtk(tokens=1, timesteps=2, steps=25)(contest(held, held), cases, untold)
    count = len(space.words)
    states = space.of_ids(space.sentence([CASES[1].prompt] * count, [0]), space.words.unsqueeze(1))
    losses = (answer(None, latents.expand(count, *shape), None, states) - latents).square().mean(dim=(1, 2, 3))
    places = [space.words.tolist().index(finding.tokens[0]) for finding in findings]
    better = [int((losses < losses[place]).sum()) for place in places]
    assert sum(better) / len(better) < count / 10, f"{better} of {count} words are better"
