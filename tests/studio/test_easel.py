"""What is drawn: at strength 0 the base's picture, at 1 the erased model's, each as its own folder draws it."""

from __future__ import annotations

import math

import pytest

from salun_diffusers.errors import UserError
from salun_diffusers.studio import easel as module
from salun_diffusers.studio.easel import BASE, Asked
from salun_diffusers.studio.opened import Drawing, opened
from salun_diffusers.studio.shown import Where

ASKED = Asked("a photo of a circle", 5, 2, 2.0)


class TestPictures:
    def test_the_ends_are_what_the_folders_draw(self, easel, drawn_plainly):
        base = drawn_plainly(easel.shown.base, ASKED)
        erased = drawn_plainly(easel.shown.erased[0].folder, ASKED)
        assert base.tobytes() != erased.tobytes()
        assert easel.picture(BASE, 1.0, ASKED).tobytes() == base.tobytes()
        assert easel.picture(0, 1.0, ASKED).tobytes() == erased.tobytes()
        assert easel.picture(0, 0.0, ASKED).tobytes() == base.tobytes()
        between = easel.picture(0, 0.5, ASKED).tobytes()
        assert between not in (base.tobytes(), erased.tobytes())

    def test_back_at_the_base_from_anywhere(self, easel, drawn_plainly, monkeypatch):
        """Nothing is remembered here, so that all are drawn."""
        monkeypatch.setattr(module, "_KEPT_BYTES", 0)
        base = drawn_plainly(easel.shown.base, ASKED).tobytes()
        for strength in (1.0, 0.35, 1.5):
            easel.picture(0, strength, ASKED)
            assert easel.picture(0, 0, ASKED).tobytes() == base

    def test_two_models_of_one_base(self, erased_run, drawn_plainly):
        words = [str(erased_run), str(erased_run / "patch.safetensors")]
        with opened(words, Where(), Drawing(num_inference_steps=2)) as (easel, _):
            erased = drawn_plainly(erased_run / "pipeline", ASKED).tobytes()
            assert easel.picture(0, 1.0, ASKED).tobytes() == easel.picture(1, 1.0, ASKED).tobytes() == erased

    def test_what_was_drawn_is_not_drawn_again(self, easel, monkeypatch):
        first = easel.picture(0, 1.0, ASKED)
        monkeypatch.setattr(module, "draw", None)
        assert easel.picture(0, 1.0, ASKED) is first
        with pytest.raises(TypeError):
            easel.picture(0, 1.0, Asked("a photo of a circle", 6, 2, 2.0))

    def test_so_many_are_kept(self, easel, monkeypatch):
        monkeypatch.setattr(module, "_KEPT_BYTES", 2 * 3 * 16 * 16)
        kept = [easel.picture(BASE, 0, Asked("a star", seed, 1, 1.0)) for seed in range(3)]
        assert easel.picture(BASE, 0, Asked("a star", 2, 1, 1.0)) is kept[2]
        assert easel.picture(BASE, 0, Asked("a star", 1, 1, 1.0)) is kept[1]
        assert easel.picture(BASE, 0, Asked("a star", 0, 1, 1.0)) is not kept[0]

    def test_after_a_failure_on_the_way_the_place_is_taken_anew(self, easel, drawn_plainly, monkeypatch):
        """Half of the weights may be elsewhere then."""

        def halfway(*_: object) -> None:
            next(easel._pipe.unet.parameters()).data.zero_()
            raise UserError("the disk is gone")

        with monkeypatch.context() as patch:
            patch.setattr(module, "walk", halfway)
            with pytest.raises(UserError, match="the disk is gone"):
                easel.picture(0, 1.0, ASKED)
        assert easel.picture(BASE, 0, ASKED).tobytes() == drawn_plainly(easel.shown.base, ASKED).tobytes()

    @pytest.mark.parametrize("strength", [-1, 2, math.nan])
    def test_strengths_outside(self, easel, strength):
        with pytest.raises(UserError, match=r"at least 0 and at most 1\.5"):
            easel.picture(0, strength, ASKED)

    def test_classes(self, drawn_plainly):
        """A class-conditional model is asked by the names of its classes."""
        with opened(["digits"], Where(base="digits"), Drawing(num_inference_steps=1, guidance_scale=1)) as (easel, _):
            assert easel.classes == [str(digit) for digit in range(10)]
            asked = Asked("7", 1, 1, 1.0)
            assert easel.picture(0, 1.0, asked).tobytes() == drawn_plainly(easel.shown.base, asked).tobytes()
            with pytest.raises(UserError, match="names of the model's classes"):
                easel.picture(BASE, 0, Asked("a seven", 1, 1, 1.0))


class TestAsked:
    def test_what_a_page_sends(self):
        assert Asked.read("  a\n star ", 3, 12.0, 7) == Asked("a star", 3, 12, 7.0)

    @pytest.mark.parametrize(
        ("sent", "words"),
        [
            (("", 0, 1, 1), "A prompt is required"),
            ((None, 0, 1, 1), "A prompt is required"),
            ((["a"], 0, 1, 1), "A prompt is required"),
            (("x" * 2001, 0, 1, 1), "at most 2,000 characters, it has 2,001"),
            (("x", None, 1, 1), "The seed must be a number, got None"),
            (("x", "1\n", 1, 1), "The seed must be a number, got 1."),
            (("x", True, 1, 1), "The seed must be a number"),
            (("x", math.inf, 1, 1), "The seed must be a number"),
            (("x", -1, 1, 1), "The seed must be at least 0"),
            (("x", 2**60, 1, 1), "The seed must be at least 0 and at most"),
            (("x", 0, 0, 1), "The number of steps must be at least 1 and at most 200, got 0"),
            (("x", 0, 10**9, 1), "The number of steps"),
            (("x", 0, 1, math.nan), "The guidance must be a number"),
            (("x", 0, 1, 31), "The guidance must be at least 0 and at most 30, got 31"),
        ],
    )
    def test_refuses(self, sent, words):
        with pytest.raises(UserError) as told:
            Asked.read(*sent)
        assert words in str(told.value) and "\n" not in str(told.value)


class TestFirstNumbers:
    @pytest.mark.parametrize(
        ("drawing", "expected"),
        [(Drawing(), (2, 2.0)), (Drawing(num_inference_steps=3, guidance_scale=0.0), (3, 0.0))],
    )
    def test_are_the_users_or_the_runs(self, erased_run, drawing, expected):
        with opened([str(erased_run)], Where(), drawing) as (_, numbers):
            assert (numbers.steps, numbers.guidance) == expected

    def test_or_the_usual_ones(self, erased_run):
        with opened([str(erased_run / "patch.safetensors")], Where(base=_base(erased_run)), Drawing()) as (_, numbers):
            assert (numbers.steps, numbers.guidance) == (50, 7.5)

    def test_the_scheduler_of_the_run_draws(self, erased_run, tiny_pipeline):
        with opened([str(erased_run)], Where(), Drawing(scheduler="EulerDiscreteScheduler")) as (easel, _):
            assert type(easel._pipe.scheduler).__name__ == "EulerDiscreteScheduler"

    @pytest.mark.parametrize(
        ("drawing", "words"),
        [
            (Drawing(scheduler="Euler"), "--scheduler must be the name of a diffusers class"),
            (
                Drawing(num_inference_steps=200, scheduler="DDIMScheduler", height=12),
                "--height must be a multiple of 8",
            ),
        ],
    )
    def test_what_the_pipeline_cannot_do_is_refused_before(self, erased_run, drawing, words):
        with pytest.raises(UserError, match=words), opened([str(erased_run)], Where(), drawing):
            pass


def _base(run):
    import json

    return json.loads((run / "report.json").read_text())["base"]
