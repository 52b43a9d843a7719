"""Concepts: complete and consistent, and the settings that come with them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from salun_diffusers.demo.vocabulary import SHAPES, STYLES
from salun_diffusers.diffusion.concepts import Concept, EvaluationPrompt, resolve
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.presets.known import find_concept, presets
from salun_diffusers.errors import UserError

RECIPES = ("frozen_teacher", "paper")


def concept(**changes: object) -> Concept:
    parts = {
        "name": "disc", "forget_prompts": ("a disc",), "anchor_prompts": ("a square",), "retain_prompts": ("a star",),
        "forget_evaluation": (EvaluationPrompt("a disc"),), "retain_evaluation": (EvaluationPrompt("a star"),),
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


class TestPresets:
    @pytest.mark.parametrize("recipe", RECIPES)
    @pytest.mark.parametrize("name", [*presets()])
    def test_is_complete(self, name, recipe):
        made = presets()[name](recipe)
        assert made.name == name
        assert made.target_labels
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
        assert set(presets()) == {"nudity", *SHAPES, *STYLES}

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
            find_concept(EraseConfig(concept=typed))

    def test_free_text(self, retain_file):
        made = find_concept(
            EraseConfig(
                concept="Van  Gogh", forget_prompt=("a Van Gogh", "by Van Gogh"), anchor_prompt=("a painting",),
                retain_prompts=str(retain_file),
            )
        )  # fmt: skip
        assert made.name == "Van Gogh"
        assert made.anchor_prompts == ("a painting", "a painting")
        assert made.retain_prompts == ("a photo of a square", "a star")
        assert made.detector == "none" and not made.target_labels

    def test_prompts_replace_those_of_a_preset(self, retain_file):
        made = find_concept(EraseConfig(concept="circle", forget_prompt=("a disc",), anchor_prompt=("a box",)))
        preset = find_concept(EraseConfig(concept="circle"))
        assert (made.forget_prompts, made.anchor_prompts) == (("a disc",), ("a box",))
        assert made.forget_evaluation == (EvaluationPrompt("a disc"),)
        assert (made.retain_prompts, made.detector) == (preset.retain_prompts, "demo")
        kept = find_concept(EraseConfig(concept="circle", retain_prompts=str(retain_file)))
        assert kept == replace(preset, retain_prompts=("a photo of a square", "a star"))

    def test_a_byte_order_mark_is_no_part_of_a_prompt(self, tmp_path):
        (tmp_path / "prompts").write_bytes(b"\xef\xbb\xbfa star\r\n\r\n a moon \r\n")
        made = find_concept(EraseConfig(concept="circle", retain_prompts=str(tmp_path / "prompts")))
        assert made.retain_prompts == ("a star", "a moon")


class TestResolve:
    def test_leaves_nothing_open_that_a_run_needs(self):
        config = resolve(EraseConfig(concept="nudity"), find_concept(EraseConfig(concept="nudity")))
        assert (config.num_forget_images, config.num_retain_images, config.train_batch_size) == (800, 800, 8)
        assert (config.learning_rate, config.retain_weight, config.lr_scheduler) == (1e-5, 0.1, "cosine")
        assert config.empty_prompt_share == 0.2

    def test_the_papers_recipe_adds_nothing(self):
        asked = EraseConfig(concept="nudity", recipe="paper")
        config = resolve(asked, find_concept(asked))
        assert (config.lr_scheduler, config.empty_prompt_share) == ("constant", 0)

    def test_a_preset_carries_its_settings_and_a_flag_overrides(self):
        asked = EraseConfig(concept="circle", learning_rate=0.5)
        made = find_concept(asked)
        config = resolve(asked, made)
        assert config.learning_rate == 0.5
        assert config.num_forget_images == made.settings["num_forget_images"]

    @pytest.mark.parametrize("given", [{"num_train_epochs": 3}, {"max_train_steps": 7}])
    def test_a_length_of_the_users_replaces_that_of_the_preset(self, given):
        asked = EraseConfig(concept="circle", **given)
        config = resolve(asked, find_concept(asked))
        assert config.max_train_steps == given.get("max_train_steps")
        assert config.num_train_epochs == given.get("num_train_epochs", 1)

    def test_zero_is_a_value(self):
        asked = EraseConfig(concept="circle", retain_weight=0.0, guidance_scale=0.0)
        config = resolve(asked, find_concept(asked))
        assert (config.retain_weight, config.guidance_scale) == (0, 0)
