"""Any words as a concept: kind, prompts, anchor and neighbours, on other people's layouts and on the demo model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from salun_diffusers.demo.vocabulary import COLOURS, SHAPES, describe
from salun_diffusers.diffusion.concepts import Concept, EvaluationPrompt
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.presets.everyday import captions
from salun_diffusers.diffusion.presets.known import find_concept
from salun_diffusers.diffusion.presets.surroundings import NEIGHBOURS, around, guessed_kind
from salun_diffusers.diffusion.presets.text_space import NOT_AT_HAND, NotAtHand, TextEncoderSpace
from salun_diffusers.diffusion.presets.word_list import same_thing, section_of, sections
from salun_diffusers.diffusion.presets.written import KINDS
from salun_diffusers.diffusion.request import accept, plan
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.explicit_prompts import explicit_words
from salun_diffusers.programs.erase import main

ROOT = Path(__file__).parents[2]
PIPELINE = ROOT / "salun_diffusers" / "demo" / "pipeline"
DEMO = {"pretrained_model_name_or_path": "demo"}


@pytest.fixture(scope="module")
def demo_space() -> TextEncoderSpace:
    return TextEncoderSpace(PIPELINE)


class Near:
    """Words are near that are told."""

    of_a_toy = False

    def __init__(self, **near: float) -> None:
        self.near = near

    def knows(self, words: str) -> bool:
        return words != "zyx"

    def similarities(self, name: str, candidates: Sequence[str]) -> dict[str, float]:
        return {word: self.near.get(word, -0.5) for word in candidates}


class TestNamesOfToys:
    @pytest.mark.parametrize("name", ["star", "Heart", "striped"])
    def test_are_words_like_any_other_to_a_model_of_many_words(self, name: str) -> None:
        """Not the demo model's prompts, numbers and detector on Stable Diffusion."""
        of_toy = find_concept(EraseConfig(concept=name), space=NotAtHand(of_a_toy=True))
        found = find_concept(EraseConfig(concept=name), space=Near(planet=0.9))
        assert of_toy.detector == "demo" and found.detector == "none"
        assert found.numbers != of_toy.numbers and found.forget_prompts != of_toy.forget_prompts
        assert all(name.lower() in prompt.lower() for prompt in found.forget_prompts)

    @pytest.mark.parametrize("name", ["a star", "hearts", "a ring", "a flower", "red circle", "the moon"])
    def test_nor_is_what_resembles_them_mistyped(self, name: str) -> None:
        found = find_concept(EraseConfig(concept=name), space=Near(planet=0.9))
        assert found.detector == "none" and all(name in prompt for prompt in found.forget_prompts)
        with pytest.raises(UserError, match="the closest first: nudity"):
            find_concept(EraseConfig(concept="nudityy"), space=Near())

    def test_other_presets_stay(self) -> None:
        assert find_concept(EraseConfig(concept="nudity"), space=Near()).detector == "nudenet"

    def test_the_demo_model_is_one(self, demo_space: TextEncoderSpace) -> None:
        assert demo_space.of_a_toy
        assert not NOT_AT_HAND.of_a_toy  # Embedded models are always at hand.
        assert not TextEncoderSpace.around(range(49_408), None).of_a_toy


class TestWordList:
    def test_is_long_and_plain(self) -> None:
        words = [word for section in sections() for word in section.words]
        assert len(set(words)) >= 1000
        assert explicit_words(words) == []
        assert all(word == " ".join(word.split()) and len(word) > 1 for word in words)

    def test_every_section_is_of_a_kind_and_has_no_word_twice(self) -> None:
        for section in sections():
            assert section.kind in KINDS, section.broader
            assert len(set(section.words)) == len(section.words), section.broader

    def test_everything_in_the_file_is_read(self) -> None:
        text = (ROOT / "salun_diffusers/diffusion/presets/words.txt").read_text(encoding="utf-8")
        assert len(sections()) == sum(not line.startswith("#") for line in text.splitlines())

    def test_other_names_of_a_thing_are_one(self) -> None:
        assert same_thing("puppy") == {"dog", "puppy"}
        assert same_thing("nothing of the kind") == {"nothing of the kind"}


class TestGuessedKind:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("a dog", "object"), ("Jane Doe", "person"), ("the Acme logo", "logo"), ("crayon style", "style"),
            ("vorticism", "style"), ("Claude Monet", "artist"), ("a cartoon frog", "character"), ("crimson", "colour"),
            ("firefighter", "person"), ("Eiffel", "object"), ("NASA ESA", "object"),
        ],
    )  # fmt: skip
    def test_by_list_words_and_capitals(self, name: str, kind: str) -> None:
        assert guessed_kind(name)[0] == kind

    def test_is_told_with_its_reason(self) -> None:
        assert find_concept(EraseConfig(concept="Jane Doe")).told[0] == ("kind", "person, by two names with capitals")
        assert find_concept(EraseConfig(concept="Jane Doe", kind="logo")).told[0] == ("kind", "logo, as --kind says")


class TestAround:
    def test_the_nearest_section_says_the_broader_word_and_neighbours_come_by_nearness(self) -> None:
        found = around("dingo", "object", Near(wolf=0.9, fox=0.8, jackal=0.7, oak=0.85))
        assert found.broader == "an animal"
        assert found.neighbours[:4] == ("wolf", "oak", "fox", "jackal")
        assert len(found.neighbours) == NEIGHBOURS

    def test_a_word_of_the_list_keeps_its_section(self) -> None:
        assert around("oak", "object", Near(wolf=0.9, fox=0.8, jackal=0.7)).broader == "a plant"

    def test_other_names_of_the_concept_are_no_neighbours(self) -> None:
        words = dict.fromkeys(("puppy", "poodle", "hot dog", "sheepdog", "kitten", "cat"), 0.9)
        found = around("dog", "object", Near(**words))
        assert not {"dog", "puppy", "poodle", "hot dog", "sheepdog"} & set(found.neighbours)
        assert found.broader == "an animal", "not a dog, of which the concept is the whole section"
        assert len({"cat", "kitten"} & set(found.neighbours)) == 1

    def test_until_the_weights_are_there_the_lists_own_order_counts(self) -> None:
        found = around("violin", "object", NOT_AT_HAND)
        assert (found.broader, found.neighbours[:2]) == ("a musical instrument", ("piano", "organ"))
        assert around("dingo", "object", NOT_AT_HAND).neighbours == ()

    def test_kinds_stay_among_themselves(self) -> None:
        near = around("a stranger", "person", Near(cat=1.0, nurse=0.9))
        assert near.neighbours[0] == "nurse" and "cat" not in near.neighbours


class TestFreeText:
    def test_needs_no_other_flag(self) -> None:
        made = find_concept(EraseConfig(concept="a dingo"), space=Near(wolf=0.9, fox=0.8, jackal=0.7))
        assert len(made.forget_prompts) >= 20
        assert made.forget_prompts[:2] == ("a dingo", "a photo of a dingo")
        assert made.anchor_prompts[:2] == ("an animal", "a photo of an animal")
        assert all("dingo" not in prompt for prompt in (*made.anchor_prompts, *made.retain_prompts))
        assert made.retain_prompts[0] == "a photo of a wolf" and set(made.retain_prompts[1::2]) <= set(captions())
        assert made.neighbours[0] == EvaluationPrompt("a photo of a wolf", trained_on=True)
        assert len(made.neighbours) == NEIGHBOURS
        assert ("becomes", "an animal (the nearest broader word)") in made.told
        assert next(line for word, line in made.told if word == "beside").startswith("wolf, fox, jackal")

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("recipe", ["frozen_teacher", "paper"])
    def test_every_kind_makes_a_concept(self, kind: str, recipe: str) -> None:
        made = find_concept(EraseConfig(concept="Quuxly", kind=kind, recipe=recipe))
        assert all("Quuxly" in prompt for prompt in made.forget_prompts)
        assert not any("Quuxly" in prompt for prompt in (*made.anchor_prompts, *made.retain_prompts))
        assert not any("{" in prompt for prompt in (*made.forget_prompts, *made.anchor_prompts, *made.retain_prompts))
        assert made.retain_evaluation and made.forget_evaluation

    def test_a_kind_takes_the_words_whatever_preset_is_named_so(self) -> None:
        toy = NotAtHand(of_a_toy=True)
        assert find_concept(EraseConfig(concept="star", kind="object"), space=toy).detector == "none"
        assert find_concept(EraseConfig(concept="star"), space=toy).detector == "demo"

    def test_a_colour_becomes_the_nearest_other(self) -> None:
        made = find_concept(EraseConfig(concept="red", kind="colour"), space=Near(pink=0.9))
        assert ("a red car", "a pink car") in zip(made.forget_prompts, made.anchor_prompts, strict=True)
        assert not any("pink" in prompt for prompt in made.retain_prompts[::2])

    def test_an_anchor_of_the_users_stands_for_all(self) -> None:
        made = find_concept(EraseConfig(concept="a dingo", anchor_prompt=("a cat",)))
        assert set(made.anchor_prompts) == {"a cat"}
        assert "becomes" not in dict(made.told)

    def test_explicit_words_stay_explicit(self) -> None:
        assert find_concept(EraseConfig(concept="naked statues", kind="object")).explicit
        with pytest.raises(UserError, match="closest first: nudity,"):
            find_concept(EraseConfig(concept="naked statues"))


class TestRefused:
    @pytest.mark.parametrize(
        ("flags", "told"),
        [
            ({"kind": "thing"}, "argument --kind: invalid choice: 'thing'"),
            ({"concept": "a dog"}, "no word"),
            ({"concept": "a heart", "anchor": "a red heart"}, "names the concept 'a heart' itself"),
            ({"concept": "heart", "kind": "person", **DEMO}, "--kind person does not go with 'heart'"),
            ({"concept": "a lantern", **DEMO}, "'a lantern': required is one of its shapes (circle,"),
            ({"concept": "a red circle", "kind": "object", **DEMO}, "several words for 'a red circle'"),
            ({"concept": "circles"}, "closest first: circle,"),
        ],
    )
    def test_in_one_line_with_exit_code_2(self, refused: Callable[..., str], flags: dict[str, str], told: str) -> None:
        refused(told, **{"concept": "a heart", "forget_prompt": None, "anchor_prompt": None, **flags})

    def test_words_that_the_model_would_spell(self) -> None:
        with pytest.raises(UserError, match="no word for 'zyx'"):
            find_concept(EraseConfig(concept="zyx"), space=Near())

    def test_a_text_encoder_that_cannot_be_loaded(self, tiny_pipeline: Path, tmp_path: Path) -> None:
        (tmp_path / "tokenizer").symlink_to(tiny_pipeline / "tokenizer")
        (tmp_path / "text_encoder").mkdir()
        (tmp_path / "text_encoder" / "config.json").write_text("{}")
        (tmp_path / "text_encoder" / "model.safetensors").write_bytes(b"nothing")
        with pytest.raises(UserError, match="cannot be loaded, and neighbours"):
            find_concept(EraseConfig(concept="a heart", kind="object"), space=TextEncoderSpace(tmp_path))


class TestTextEncoderSpace:
    def test_knows_words_and_not_letters(self, demo_space: TextEncoderSpace) -> None:
        assert demo_space.knows("star") and demo_space.knows("a dog on a star")
        assert not demo_space.knows("dog") and not demo_space.knows("Van Gogh")

    def test_candidates_that_would_be_spelled_are_dropped(self, demo_space: TextEncoderSpace) -> None:
        assert set(demo_space.similarities("star", ["moon", "dog", "polar bear", "red"])) == {"moon", "red"}
        assert demo_space.similarities("star", ["dog"]) == {}

    def test_words_alike_lie_near(self, demo_space: TextEncoderSpace) -> None:
        near = demo_space.similarities("red", [*SHAPES, *(colour for colour in COLOURS if colour != "red")])
        ranked = sorted(near, key=lambda word: -near[word])
        assert set(ranked[:5]) < set(COLOURS)

    def test_what_all_have_in_common_does_not_count(self, demo_space: TextEncoderSpace) -> None:
        """Of two states, less their mean, one is the other's opposite."""
        assert demo_space.similarities("star", ["moon"]) == {"moon": -1.0}

    def test_batches_change_nothing(self, demo_space: TextEncoderSpace) -> None:
        words = [*SHAPES, *COLOURS]
        assert demo_space.similarities("star", words) == demo_space.similarities("star", words * 9)


class TestOnOtherLayouts:
    @pytest.mark.parametrize("model", ["tiny_pipeline", "sd14", "sdxl"])
    def test_neighbours_are_in_the_plan_and_in_the_retain_set(
        self, request: pytest.FixtureRequest, model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        folder = request.getfixturevalue(model)
        asked = EraseConfig(
            concept="a heart", kind="object", pretrained_model_name_or_path=str(folder), dry_run=True,
            output_dir=str(tmp_path / "run"),
        )  # fmt: skip
        accepted = accept(asked)
        text = plan(accepted)
        assert "kind      object, as --kind says\n" in text
        assert "becomes   a shape (the nearest broader word)\n" in text
        line = next(line for line in text.splitlines() if line.startswith("beside"))
        assert "circle" in line and "square" in line and "star" in line, "what this tokenizer has words for"
        assert {"a photo of a circle", "a photo of a star"} <= set(accepted.concept.retain_prompts)
        assert {prompt.prompt for prompt in accepted.concept.neighbours} >= {"a photo of a circle"}

    def test_a_run_by_words_alone(self, small_run: Callable[..., list[str]], tmp_path: Path) -> None:
        where = tmp_path / "run"
        flags = {"concept": "a heart", "forget_prompt": None, "anchor_prompt": None, "retain_prompts": None}
        assert main(small_run(**flags, kind="object", output_dir=where)) == 0
        record = json.loads((where / "config.json").read_text())
        assert record["concept_prompts"]["forget"][0] == "a heart"
        assert "a photo of a circle" in record["concept_prompts"]["retain"]
        assert record["kind"] == "object"

    def test_before_the_weights_are_there_a_plan_says_so(self) -> None:
        made = find_concept(EraseConfig(concept="a dingo"))
        assert ("beside", "none yet: they are found when the weights are there") in made.told


class TestOnTheDemo:
    @pytest.fixture
    def made(self, demo_space: TextEncoderSpace) -> Callable[..., Concept]:
        return lambda **flags: find_concept(EraseConfig(**DEMO, **flags), space=demo_space)

    def test_a_shape_becomes_the_nearest_and_the_others_stay(self, made: Callable[..., Concept]) -> None:
        concept = made(concept="a star", kind="object")
        preset = made(concept="star")
        assert concept.name == "a star"
        assert (concept.forget_prompts, concept.numbers) == (preset.forget_prompts, preset.numbers)
        assert set(concept.retain_prompts) == set(preset.retain_prompts)
        [anchor] = {word for word in SHAPES if any(word in prompt.split() for prompt in concept.anchor_prompts)}
        assert concept.neighbours[0].expected == f"shape:{anchor}"
        assert {label.expected for label in concept.neighbours} == {f"shape:{word}" for word in SHAPES} - {"shape:star"}

    def test_a_colour_covers_every_shape_and_keeps_it(self, made: Callable[..., Concept]) -> None:
        concept = made(concept="red")
        drawn = [*zip(concept.forget_prompts, concept.anchor_prompts, strict=True)][: concept.numbers.num_forget_images]
        for shape in SHAPES:
            mine = [(forget, anchor) for forget, anchor in drawn if shape in forget.split()]
            assert len(mine) >= 8
            assert all("red" in forget.split() and shape in anchor.split() for forget, anchor in mine)
        for forget, anchor in drawn:
            changed = [pair for pair in zip(forget.split(), anchor.split(), strict=True) if pair[0] != pair[1]]
            assert [one for one, _ in changed if one not in ("a", "an")] == ["red"], (forget, anchor)
        assert not any("red" in prompt.split() for prompt in (*concept.anchor_prompts, *concept.retain_prompts))
        for shape in SHAPES:
            for other in set(COLOURS) - {"red"}:
                assert any({shape, other} <= set(prompt.split()) for prompt in concept.retain_prompts)
            assert describe(shape) in concept.retain_prompts
        assert concept.target_labels == {"colour:red"}
        assert {one.expected_across for one in concept.retain_evaluation} == {f"shape:{shape}" for shape in SHAPES}
        assert {one.expected for one in concept.retain_evaluation} == {f"colour:{one}" for one in COLOURS} - {
            "colour:red"
        }

    def test_a_shape_and_its_background_never_share_a_colour(self, made: Callable[..., Concept]) -> None:
        concept = made(concept="red")
        for prompt in (*concept.forget_prompts, *concept.anchor_prompts, *concept.retain_prompts):
            colours = [word for word in prompt.split() if word in COLOURS]
            assert len(colours) == len(set(colours)), prompt

    def test_a_style_is_the_styles_own(self, made: Callable[..., Concept]) -> None:
        assert made(concept="striped", kind="style") == made(concept="striped")

    def test_prompts_alone_retain_all_other_combinations(self, made: Callable[..., Concept]) -> None:
        concept = made(concept="it", forget_prompt=("a red star", "a star"), anchor_prompt=("a red moon", "a moon"))
        assert not any("star" in prompt.split() for prompt in concept.retain_prompts)
        assert {shape for shape in SHAPES if any(shape in prompt for prompt in concept.retain_prompts)} == (
            {*SHAPES} - {"star"}
        )
        assert any("red" in prompt.split() for prompt in concept.retain_prompts), "the anchor has it, so it stays"

    @pytest.mark.parametrize("recipe", ["frozen_teacher", "paper"])
    @pytest.mark.parametrize("word", [*SHAPES, *COLOURS])
    def test_every_word_makes_a_concept(self, made: Callable[..., Concept], word: str, recipe: str) -> None:
        concept = made(concept=f"a {word}", recipe=recipe, kind="object" if word in SHAPES else "colour")
        assert concept.detector == "demo" and len(concept.target_labels) == 1


def test_section_of_is_by_kind() -> None:
    assert section_of("orange").kind == "object"
    assert section_of("orange", "colour").kind == "colour"
    assert section_of("no such word") is None
