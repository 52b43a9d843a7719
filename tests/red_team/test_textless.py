"""Inversion where its answer is known, and the control that says what a hit is worth."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from attacked import contest_of, subject_of
from PIL import Image
from tiny_models import build_pipeline

from salun_diffusers import UserError
from salun_diffusers.red_team.attack import Case, Contest, Finding
from salun_diffusers.red_team.ddim_path import EmptyPath
from salun_diffusers.red_team.judge import Judge
from salun_diffusers.red_team.textless import Tina, difference, rebuilt, shuffled

CASES = [Case("a photo of a star", 1), Case("a star", 2), Case("a red star", 3)]
SMALL = Tina(steps=2, iterations=1, batch_size=2)


class Toy:
    """A linear network, whose fixed points have a formula: ε(z) = a z + b, under ᾱ_t falling evenly."""

    has_empty_prompt = True
    folder = Path("toy")
    device = torch.device("cpu")
    denoiser = torch.nn.Identity()

    def __init__(self, prediction: str = "epsilon", slope: float = 0.3, shift: float = 0.2) -> None:
        self.slope, self.shift = slope, shift
        self.asked: list[tuple[int, ...]] = []
        self.schedule = SimpleNamespace(
            num_train_timesteps=10, prediction=prediction, signal_to_noise=lambda t: self.kept(t) / (1 - self.kept(t))
        )

    @staticmethod
    def kept(timesteps):
        return 0.95 - 0.09 * timesteps

    def encode(self, prompts):
        assert list(prompts) == [""]
        return {"states": torch.zeros(1, 2)}

    def predict(self, denoiser, noised, timesteps, conditions):
        assert len(conditions["states"]) == len(noised) == len(timesteps)
        self.asked.append(tuple(timesteps.tolist()))
        noise = self.slope * noised + self.shift
        kept = self.kept(timesteps.float()).view(-1, 1, 1, 1)
        if self.schedule.prediction == "v_prediction":
            return (noise - (1 - kept).sqrt() * noised) / kept.sqrt()
        if self.schedule.prediction == "sample":
            return (noised - (1 - kept).sqrt() * noise) / kept.sqrt()
        return noise


LATENTS = torch.linspace(-1, 1, 2 * 4).view(2, 1, 2, 2)


def test_the_timesteps_are_even_and_end_at_the_last() -> None:
    assert EmptyPath(Toy(), 5).timesteps == (1, 3, 5, 7, 9)
    assert EmptyPath(Toy(), 3).timesteps == (2, 6, 9)
    assert EmptyPath(Toy(), 99).timesteps == tuple(range(10))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_fixed_point_is_found_and_leads_back(prediction: str) -> None:
    """z_t = C₁ z_s + C₂ (a z_t + b), so z_t = (C₁ z_s + C₂ b) / (1 - C₂ a)."""
    toy = Toy(prediction)
    path = EmptyPath(toy, 5)
    found = path.inverted(LATENTS, 60, 5e-3)
    expected, kept = LATENTS, 1.0
    for timestep in path.timesteps:
        less = float(toy.kept(timestep))
        first = (less / kept) ** 0.5
        second = (1 - less) ** 0.5 - first * (1 - kept) ** 0.5
        expected, kept = (first * expected + second * 0.2) / (1 - second * 0.3), less
    torch.testing.assert_close(found.noise, expected, rtol=0, atol=5e-3)
    assert float(found.error.max()) < 1e-6
    torch.testing.assert_close(path.drawn(found.noise), LATENTS, rtol=0, atol=5e-3)
    # Drawing exact noise is exact.
    torch.testing.assert_close(path.drawn(expected), LATENTS, rtol=0, atol=1e-5)


def test_the_error_is_the_mean_over_steps() -> None:
    """Without iterations z = f(z_s) at every step."""
    path = EmptyPath(Toy(), 5)
    now, total = LATENTS, torch.zeros(2)
    for before, timestep in pairwise((-1, *path.timesteps)):
        start = path.backwards(now, now, before, timestep)
        total += (path.backwards(start, now, before, timestep) - start).square().flatten(1).mean(dim=1)
        now = start
    torch.testing.assert_close(path.inverted(LATENTS, 0, 1e-2).error, total / 5)


def test_iterations_bring_it_nearer() -> None:
    path = EmptyPath(Toy(slope=0.9), 5)
    errors = [float(path.inverted(LATENTS, count, 1e-2).error.mean()) for count in (0, 5, 20)]
    assert errors[0] > errors[1] > errors[2]


def test_a_hasty_optimizer_makes_nothing_worse() -> None:
    """A rate that leaps over every point leaves f(z_s) as the best."""
    path = EmptyPath(Toy(), 1)
    start = path.backwards(LATENTS, LATENTS, -1, 9)
    torch.testing.assert_close(path.inverted(LATENTS, 3, 1e3).noise, start)


def test_every_step_asks_at_its_own_time() -> None:
    toy = Toy()
    path = EmptyPath(toy, 2)
    path.inverted(LATENTS, 1, 1e-3)
    path.drawn(LATENTS)
    assert toy.asked == [(4, 4)] * 3 + [(9, 9)] * 3 + [(9, 9), (4, 4)]


def test_a_model_without_an_empty_prompt_is_refused() -> None:
    toy = Toy()
    toy.has_empty_prompt = False
    with pytest.raises(UserError, match="empty prompt"):
        EmptyPath(toy, 5)


@pytest.fixture(scope="module", params=["sd14", "sdxl", "ddpm", "v"])
def subject(request: pytest.FixtureRequest, sd14: Path, sdxl: Path, tiny_ddpm: Path,
            tmp_path_factory: pytest.TempPathFactory):  # fmt: skip
    if request.param == "v":
        return subject_of(build_pipeline(tmp_path_factory.mktemp("v") / "v", prediction_type="v_prediction"))
    return subject_of({"sd14": sd14, "sdxl": sdxl, "ddpm": tiny_ddpm}[request.param])


def test_any_family_is_inverted(subject) -> None:
    words = subject.family.has_encoder
    cases = CASES if words else [Case("cat", 1), Case("dog", 2), Case("7", 3)]
    contest, looks = contest_of(subject, lambda picture: True)
    settled: list[int] = []
    findings = SMALL(contest, cases, settled.append)
    assert [one.hit for one in findings] == [True] * 3 and sum(settled) == 3
    assert len(looks.shown) == 3, "the control is not the judge's"
    for one in findings:
        measured = dict(one.measured)
        assert 0 <= measured["distance"] <= 1 and 0 <= measured["control's distance"] <= 1
        assert measured["rebuilt"] == (measured["distance"] <= 0.1)
        assert measured["control rebuilt"] == (measured["control's distance"] <= 0.1)
        assert np.isfinite(measured["fixed-point error"])


def test_a_case_is_alone_what_it_is_in_company(tiny_pipeline: Path) -> None:
    contest, looks = contest_of(subject_of(tiny_pipeline))
    together = SMALL(contest, CASES, lambda _: None)
    shown, looks.shown = looks.shown, []
    for case, finding in zip(CASES, together, strict=True):
        [alone] = SMALL(contest, [case], lambda _: None)
        for (name, value), (_, other) in zip(finding.measured, alone.measured, strict=True):
            assert value == pytest.approx(other, rel=1e-3, abs=1e-4), name
    for one, other in zip(shown, looks.shown, strict=True):
        assert difference(one, other) < 2 / 255


def test_the_base_draws_and_the_target_is_asked(tiny_pipeline: Path, tmp_path: Path) -> None:
    base, target = subject_of(tiny_pipeline, "base"), subject_of(build_pipeline(tmp_path / "other", seed=5))
    _, looks = contest_of(target)
    asked: list[str] = []
    for subject in (base, target):
        subject.family.denoiser.register_forward_pre_hook(lambda *_, name=subject.name: asked.append(name))
    contest = Contest(target, base, Judge(looks, frozenset({"it"})), "star")
    SMALL(contest, CASES[:1], lambda _: None)
    drawn = asked.count("base")
    assert drawn == 2 and asked[:2] == ["base", "base"], "the base draws its picture in two steps, and no more"
    # Picture and control: two steps of a start and two looks each, and two back.
    assert asked.count("erased") == 2 * (2 * 3 + 2)


def test_no_tile_stays() -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8).repeat(3).reshape(8, 8, 3)
    picture = Image.fromarray(pixels)
    moved = np.asarray(shuffled(picture, 4, 1))
    assert sorted(moved[..., 0].ravel()) == sorted(pixels[..., 0].ravel())
    for row in range(0, 8, 2):
        for column in range(0, 8, 2):
            assert (moved[row : row + 2, column : column + 2] != pixels[row : row + 2, column : column + 2]).all()
    assert np.array_equal(moved, np.asarray(shuffled(picture, 4, 1)))
    assert not np.array_equal(moved, np.asarray(shuffled(picture, 4, 2)))
    grey = shuffled(picture.convert("L").crop((0, 0, 7, 7)), 2, 1)
    assert grey.mode == "L" and grey.size == (7, 7)


def test_difference_and_rates_by_hand() -> None:
    black, white = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "white")
    assert difference(black, white) == 1 and difference(black, black) == 0
    half = black.copy()
    half.paste("white", (0, 0, 2, 4))
    assert difference(black, half) == pytest.approx(0.5**0.5)
    findings = [
        Finding(True, 1, measured=(("rebuilt", own), ("control rebuilt", other)))
        for own, other in ((1.0, 0.0), (1.0, 1.0), (0.0, 0.0))
    ]
    assert rebuilt(findings) == (2, 1)


def test_defaults_are_the_source_s() -> None:
    attack = Tina()
    assert (attack.steps, attack.iterations, attack.learning_rate) == (50, 25, 1e-3)
