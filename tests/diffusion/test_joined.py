"""Several concepts as one: whose prompts are whose, what contradicts itself, and how the numbers grow."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from salun_diffusers.diffusion.concepts import Concept, EvaluationPrompt
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.joined import concept_of, joined, joined_numbers
from salun_diffusers.diffusion.presets.known import find_concept, presets
from salun_diffusers.diffusion.presets.stable_diffusion import STABLE_DIFFUSION
from salun_diffusers.diffusion.presets.text_space import NotAtHand
from salun_diffusers.diffusion.settings import Length
from salun_diffusers.errors import UserError
from salun_diffusers.programs.erase import main


def preset(name: str, recipe: str = "frozen_teacher") -> Concept:
    return presets()[name](recipe)


def concept(name: str, anchor: str, *retain: str, prompts: int = 1) -> Concept:
    forget = tuple(f"a {word}{name}" for word in ("", "red ", "blue ")[:prompts])
    return Concept(
        name=name, forget_prompts=forget, anchor_prompts=(f"a {anchor}",) * prompts, retain_prompts=retain,
        forget_evaluation=(EvaluationPrompt(f"a {name}"),), retain_evaluation=(EvaluationPrompt(retain[0]),),
        numbers=STABLE_DIFFUSION["paper"], target_labels=frozenset({f"shape:{name}"}),
    )  # fmt: skip


class TestJoined:
    def test_prompts_go_round_the_concepts(self):
        made = joined([concept("cat", "dog", "a car", prompts=3), concept("tree", "rock", "a cup")])
        assert made.forget_prompts == ("a cat", "a tree", "a red cat", "a tree", "a blue cat", "a tree")
        assert made.anchor_prompts == ("a dog", "a rock") * 3
        assert (made.name, made.groups, made.retain_prompts) == ("cat + tree", 2, ("a car", "a cup"))
        assert [part.name for part in made.looked_for] == ["cat", "tree"]

    def test_a_concept_with_fewer_prompts_goes_round_its_own(self):
        made = joined([concept("cat", "dog", "a car", prompts=3), concept("tree", "rock", "a cup", prompts=2)])
        assert made.forget_prompts[1::2] == ("a tree", "a red tree", "a tree")

    def test_of_one_concept_there_is_one_group(self):
        assert (concept("cat", "dog", "a car").groups, concept("cat", "dog", "a car").parts) == (1, ())

    def test_what_stays_names_no_other_concept(self):
        made = joined([preset("star"), preset("moon"), preset("striped")])
        texts = (*made.retain_prompts, *made.anchor_prompts, *(prompt.prompt for prompt in made.retain_evaluation))
        for word in ("star", "moon"):
            assert not any(word in text.split() for text in texts)
        # The style's own neighbours are outlines of shapes; no shape keeps a striped one.
        assert not any("striped" in text.split() for text in texts)
        assert any("outline" in text.split() for text in made.retain_prompts)

    def test_no_picture_of_what_stays_is_asked_for_twice(self):
        made = joined([preset("star"), preset("moon")])
        asked = [prompt.prompt for prompt in made.retain_evaluation]
        assert len(asked) == len(set(asked)) == 8
        assert [p for part in made.parts for p in part.retain_evaluation] == list(made.retain_evaluation)

    def test_a_label_that_another_concept_loses_is_expected_of_nobody(self):
        before, made = preset("star"), joined([preset("star"), preset("filled")])
        assert any(prompt.expected_across == "style:filled" for prompt in before.retain_evaluation)
        found = [
            prompt for prompt in made.retain_evaluation if "style:filled" in (prompt.expected, prompt.expected_across)
        ]
        assert found == []

    def test_a_prompt_that_should_show_what_another_concept_loses_is_not_asked(self):
        road = EvaluationPrompt("a road", "shape:road", expected_across="shape:tree")
        asked = (EvaluationPrompt("a park", "shape:tree"), road)
        made = joined(
            [replace(concept("cat", "dog", "a car"), retain_evaluation=asked), concept("tree", "rock", "a cup")]
        )
        assert made.parts[0].retain_evaluation == (replace(road, expected_across=""),)

    def test_is_explicit_if_one_is(self):
        assert joined([preset("nudity"), preset("striped")]).explicit
        assert not joined([preset("star"), preset("striped")]).explicit

    @pytest.mark.parametrize("recipe", ["frozen_teacher", "paper"])
    def test_every_concept_keeps_prompts(self, recipe):
        names = ("star", "moon", "flower", "striped")
        made = joined([preset(name, recipe) for name in names])
        assert all(part.forget_prompts and part.retain_prompts and part.forget_evaluation for part in made.parts)


class TestContradictions:
    @pytest.mark.parametrize("names", [("circle", "square"), ("star", "heart"), ("heart", "moon", "circle")])
    def test_the_anchor_of_one_is_another(self, names):
        with pytest.raises(UserError, match=r"would become .*, which .* asks to forget; name another anchor"):
            joined([preset(name) for name in names])

    def test_the_same_prompts_by_two_names(self):
        one = concept("cat", "dog", "a car")
        with pytest.raises(UserError, match="'cat' and 'kitten' have the same prompts"):
            joined([one, replace(one, name="kitten")])

    def test_nothing_is_left_to_stay(self):
        with pytest.raises(UserError, match="All that 'cat' would keep"):
            joined([concept("cat", "dog", "a tree"), concept("tree", "rock", "a cup")])

    def test_a_prompt_among_the_neighbours_that_the_user_gives(self, tmp_path):
        file = tmp_path / "keep.txt"
        file.write_text("a cup\na photo of a moon\n")
        asked = EraseConfig(concept=("star", "moon"), retain_prompts=str(file))
        with pytest.raises(UserError, match="'a photo of a moon' is to be forgotten and to be retained"):
            concept_of(asked, find_concept)

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (["star", "Star"], "'Star' comes twice"),
            (["circle", "square"], "'circle' would become 'a photo of a square', which 'square' asks to forget"),
            (["star", " "], "needs a name, one is empty"),
            (["star", "muun"], "no word for 'muun'"),
            (["star", "moon", "--forget_prompt", "a star"], "--forget_prompt belongs to one concept, got 2"),
            (["star", "moon", "--detector", "clip:star"], "clip:star describes one concept, got 2"),
            (["star", "moon", "--num_forget_images", "1"], "--num_forget_images must be at least 2"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_is_one_line_and_leaves_nothing(self, small_run, tmp_path, capsys, monkeypatch, words, told):
        # The CLIP that one of them names need not be there.
        monkeypatch.setattr("salun_diffusers.diffusion.request.check_detector", lambda config: None)
        flags = small_run(
            concept=None, forget_prompt=None, anchor_prompt=None, retain_prompts=None, num_forget_images=None
        )
        assert main([*flags, "--output_dir", str(tmp_path / "run"), "--concept", *words]) == 2
        err = capsys.readouterr().err
        assert told in err and err.startswith("error: ") and err.count("\n") == 1
        assert not (tmp_path / "run").exists()


class TestAnchorsOfATable:
    def made(self, tmp_path: Path, text: str) -> Concept:
        (tmp_path / "c.csv").write_text(text)
        return concept_of(
            EraseConfig(concepts=str(tmp_path / "c.csv")), partial(find_concept, space=NotAtHand(of_a_toy=True))
        )

    def test_stand_where_the_name_was(self, tmp_path):
        arrow = self.made(tmp_path, "concept,anchor\narrow,heart\nsquare,\n").parts[0]
        for forget, anchor in zip(arrow.forget_prompts, arrow.anchor_prompts, strict=True):
            assert re.sub(r"\ban arrow", "a arrow", forget).replace("arrow", "heart") == anchor
        assert arrow.anchor_prompts[0] == "a photo of a heart"

    def test_settle_what_presets_contradict(self, tmp_path):
        made = self.made(tmp_path, "concept,anchor\ncircle,ring\nsquare,arrow\n")
        assert made.anchor_prompts[:2] == ("a photo of a ring", "a photo of an arrow")

    def test_of_free_text(self, tmp_path):
        """Each has the prompts of its kind; the table's anchor stands where the concept was."""
        made = self.made(tmp_path, "concept,anchor,kind\nFranz Marc,,artist\nGrumpy Cat,a dog,object\n")
        assert [part.name for part in made.parts] == ["Franz Marc", "Grumpy Cat"]
        marc, cat = made.parts
        assert all("Franz Marc" in prompt for prompt in marc.forget_prompts)
        assert all("Franz" not in anchor for anchor in marc.anchor_prompts)
        exchanged = [prompt.replace("Grumpy Cat", "a dog") for prompt in cat.forget_prompts]
        assert [re.sub(r"\ba a\b", "a a", anchor) for anchor in cat.anchor_prompts] == exchanged
        assert not any("grumpy" in prompt.lower() for prompt in marc.retain_prompts)

    def test_one_row_is_that_concept(self, tmp_path):
        assert self.made(tmp_path, "concept\nstar\n") == preset("star")

    def test_the_anchor_is_not_the_concept(self, tmp_path):
        with pytest.raises(UserError, match="anchor of 'star' must differ"):
            self.made(tmp_path, "concept,anchor\nstar,Star\nmoon,\n")


class TestNumbers:
    def test_each_concept_has_what_it_has_alone(self):
        """Three of 120 steps of 16 at 1.5e-4 and one of 240 of 8 at 6e-4: 7680 rows in 480 steps of 16."""
        made = joined_numbers([preset(name).numbers for name in ("star", "moon", "flower", "striped")])
        assert (made.num_forget_images, made.num_anchor_images, made.num_retain_images) == (384, 384, 1152)
        assert (made.train_batch_size, made.length) == (16, Length(480, "steps"))
        assert made.learning_rate * 480 == pytest.approx(3 * 120 * 1.5e-4 + 240 * 6e-4)

    def test_the_batch_holds_concepts_in_equal_shares_where_it_can(self):
        numbers = preset("star").numbers
        sizes = {k: joined_numbers([numbers] * k).train_batch_size for k in (2, 3, 5, 16, 20)}
        assert sizes == {2: 16, 3: 15, 5: 15, 16: 16, 20: 16}
        three = joined_numbers([numbers] * 3)
        assert three.length.amount * 15 == 3 * 120 * 16

    def test_of_pictures_for_the_report_it_is_the_most(self):
        few, many = (replace(preset("star").numbers, num_validation_images=count) for count in (3, 7))
        assert joined_numbers([few, many]).num_validation_images == 7

    def test_epochs_are_counted_in_steps(self):
        numbers = STABLE_DIFFUSION["paper"]  # One epoch of 800 in batches of 8: 100 steps.
        made = joined_numbers([numbers, numbers])
        assert (made.length, made.num_forget_images) == (Length(200, "steps"), 1600)
        assert made.learning_rate == pytest.approx(1e-5)
