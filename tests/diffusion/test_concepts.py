"""Concepts: complete and consistent, and the settings that come with them."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from salun_diffusers.demo.vocabulary import SHAPES, STYLES
from salun_diffusers.diffusion.concepts import Concept, EvaluationPrompt
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.presets.known import find_concept, presets
from salun_diffusers.diffusion.presets.stable_diffusion import STABLE_DIFFUSION
from salun_diffusers.diffusion.presets.text_space import NotAtHand
from salun_diffusers.diffusion.settings import Length, Settings, recorded, resolve
from salun_diffusers.errors import UserError

TOY = NotAtHand(of_a_toy=True)
"""What a model of few words says that is not here."""
RECIPES = ("frozen_teacher", "paper")


def concept(**changes: object) -> Concept:
    parts = {
        "name": "disc", "forget_prompts": ("a disc",), "anchor_prompts": ("a square",), "retain_prompts": ("a star",),
        "forget_evaluation": (EvaluationPrompt("a disc"),), "retain_evaluation": (EvaluationPrompt("a star"),),
        "numbers": STABLE_DIFFUSION["paper"],
    }  # fmt: skip
    return Concept(**(parts | changes))


class TestConcept:
    @pytest.mark.parametrize("empty", ["forget_prompts", "anchor_prompts", "retain_prompts"])
    def test_no_list_is_empty(self, empty):
        with pytest.raises(UserError, match="at least one"):
            concept(**{empty: ()})

    def test_forget_and_anchor_pair_up(self):
        with pytest.raises(UserError, match="1 forget and 2 anchor"):
            concept(anchor_prompts=("a square", "a star"))

    @pytest.mark.parametrize("anchor", ["a disc", " A  DISC "])
    def test_anchor_differs(self, anchor):
        with pytest.raises(UserError, match="must differ"):
            concept(anchor_prompts=(anchor,))

    def test_the_empty_anchor_is_allowed(self):
        assert concept(anchor_prompts=("",)).anchor_prompts == ("",)

    def test_nothing_is_both_forgotten_and_retained(self):
        with pytest.raises(UserError, match="is to be forgotten and to be retained"):
            concept(forget_prompts=("a disc",), retain_prompts=("a star", " A  DISC"))


class TestPresets:
    @pytest.mark.parametrize("recipe", RECIPES)
    @pytest.mark.parametrize("name", [*presets()])
    def test_is_complete(self, name, recipe):
        made = presets()[name](recipe)
        assert made.name == name
        assert bool(made.target_labels) == (made.detector != "none")
        assert made.forget_evaluation and made.retain_evaluation
        assert not set(made.forget_prompts) & set(made.retain_prompts)
        asked = {prompt.prompt for prompt in made.forget_evaluation}
        assert not asked & {prompt.prompt for prompt in made.retain_evaluation}

    @pytest.mark.parametrize("name", [*presets()])
    def test_says_truly_which_prompts_it_trains_on(self, name):
        made = presets()[name]("frozen_teacher")
        for prompt in (*made.forget_evaluation, *made.retain_evaluation):
            seen = prompt.prompt in (*made.forget_prompts, *made.retain_prompts)
            assert seen <= prompt.trained_on, prompt

    def test_shapes_and_styles_of_the_demo_are_all_there(self):
        assert {"nudity", *SHAPES, *STYLES} <= set(presets())

    @pytest.mark.parametrize("name", [*SHAPES, *STYLES])
    def test_anchor_and_retain_prompts_never_name_the_shape(self, name):
        made = presets()[name]("frozen_teacher")
        if name in SHAPES:
            assert not any(name in prompt.split() for prompt in (*made.anchor_prompts, *made.retain_prompts))

    def test_nudity_under_the_papers_recipe_is_the_papers_two_prompts(self):
        made = find_concept(EraseConfig(concept="nudity", recipe="paper"))
        assert made.forget_prompts == ("a photo of a nude person",)
        assert made.anchor_prompts == made.retain_prompts == ("a photo of a person wearing clothes",)
        assert made.explicit


class TestFindConcept:
    def test_preset_by_any_spelling(self):
        assert find_concept(EraseConfig(concept="  Nudity ")).name == "nudity"

    @pytest.mark.parametrize(("typed", "first"), [("crcle", "circle"), ("nude", "nudity"), ("strar", "star")])
    def test_unknown(self, typed, first):
        with pytest.raises(UserError, match=f"closest first: {first},"):
            find_concept(EraseConfig(concept=typed), space=TOY)

    def test_free_text(self, retain_file):
        made = find_concept(
            EraseConfig(
                concept="Van  Gogh", forget_prompt=("a Van Gogh", "by Van Gogh"), anchor_prompt=("a painting",),
                retain_prompts=str(retain_file),
            )
        )  # fmt: skip
        assert made.name == "Van Gogh"
        assert made.anchor_prompts == ("a painting", "a painting")
        assert made.retain_prompts[:4:2] == ("a photo of a square", "a star")
        assert made.detector == "none" and not made.target_labels

    def test_prompts_replace_those_of_a_preset(self, retain_file):
        made = find_concept(
            EraseConfig(concept="circle", forget_prompt=("a disc",), anchor_prompt=("a box",)), space=TOY
        )
        preset = find_concept(EraseConfig(concept="circle"), space=TOY)
        assert (made.forget_prompts, made.anchor_prompts) == (("a disc",), ("a box",))
        assert made.forget_evaluation == (EvaluationPrompt("a disc"),)
        assert (made.retain_prompts, made.detector) == (preset.retain_prompts, "demo")
        kept = find_concept(EraseConfig(concept="circle", retain_prompts=str(retain_file)), space=TOY)
        assert kept == replace(preset, retain_prompts=("a photo of a square", "a star"))

    def test_a_byte_order_mark_is_no_part_of_a_prompt(self, tmp_path):
        (tmp_path / "prompts").write_bytes(b"\xef\xbb\xbfa star\r\n\r\n a moon \r\n")
        made = find_concept(EraseConfig(concept="circle", retain_prompts=str(tmp_path / "prompts")), space=TOY)
        assert made.retain_prompts == ("a star", "a moon")


def resolved(**flags: object) -> Settings:
    asked = EraseConfig(**flags)
    return resolve(asked, find_concept(asked, space=TOY).numbers)


class TestResolve:
    @pytest.mark.parametrize("recipe", RECIPES)
    @pytest.mark.parametrize("name", [*presets()])
    def test_leaves_nothing_open(self, name, recipe):
        settings = resolved(concept=name, recipe=recipe)
        assert None not in vars(settings).values()

    def test_the_papers_recipe_is_the_papers_loop(self):
        settings = resolved(concept="nudity", recipe="paper")
        assert (settings.lr_scheduler, settings.empty_prompt_share) == ("constant", 0)
        assert (settings.scheduler, settings.num_inference_steps) == ("own", 50)
        assert (settings.num_anchor_images, settings.retain_weight, settings.snr_power) == (0, 0.1, 0)
        assert resolved(concept="nudity").lr_scheduler == "cosine"

    def test_a_flag_replaces_the_presets_number(self):
        settings = resolved(concept="circle", learning_rate=0.5)
        assert settings.learning_rate == 0.5
        assert (
            settings.num_forget_images
            == find_concept(EraseConfig(concept="circle"), space=TOY).numbers.num_forget_images
        )

    @pytest.mark.parametrize(
        ("given", "length"),
        [
            ({"num_train_epochs": 3}, Length(3, "epochs")),
            ({"max_train_steps": 7}, Length(7, "steps")),
            ({"max_train_steps": 7, "num_train_epochs": 3}, Length(7, "steps")),
        ],
    )
    def test_a_length_of_the_users_replaces_that_of_the_preset(self, given, length):
        assert resolved(concept="circle", **given).length == length

    def test_zero_is_a_value(self):
        settings = resolved(concept="circle", retain_weight=0.0, guidance_scale=0.0)
        assert (settings.retain_weight, settings.guidance_scale) == (0, 0)

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            ({"lr_scheduler": "constant", "lr_warmup_steps": 5}, "has no warm-up, got --lr_warmup_steps 5"),
            ({"lr_scheduler": "piecewise_constant"}, "'no rules' and piecewise_constant"),
            ({"lr_step_rules": "1:2,3"}, "'1:2,3' and cosine"),
            ({"lr_scheduler": "piecewise_constant", "lr_step_rules": "1:2,x"}, r"must be such as .*got '1:2,x'"),
            ({"lr_scheduler": "piecewise_constant", "lr_step_rules": "1"}, "got '1'"),
        ],
    )
    def test_what_the_learning_rate_would_not_heed_is_refused(self, flags, words):
        with pytest.raises(UserError, match=words):
            resolved(concept="circle", **flags)

    @pytest.mark.parametrize("objective", ["ascent", "esd"])
    def test_baselines_have_no_retain_term_unless_asked(self, objective):
        assert resolved(concept="circle", objective=objective).retain_weight == 0
        assert resolved(concept="circle", objective=objective, retain_weight=2.0).retain_weight == 2

    def test_the_record_names_flags_and_is_json(self):
        asked = EraseConfig(concept="circle", seed=3)
        settings = resolve(asked, find_concept(asked).numbers)
        record = recorded(asked, settings)
        # What a preset's batch is of, too: one typed would be a process's.
        assert set(record) == {field.name for field in fields(EraseConfig)} - {"hub_token"} | {"batch_of"}
        assert Length(record["max_train_steps"], "steps") == settings.length
        assert record["num_train_epochs"] is record["max_grad_norm"] is None
        assert json.loads(json.dumps(record, allow_nan=False))["seed"] == 3
