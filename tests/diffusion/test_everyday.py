"""Everyday captions: plain, ours, never of what is forgotten, and half of what a Stable Diffusion retains."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from salun_diffusers.diffusion.concepts import EvaluationPrompt
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.presets.everyday import beside, captions, content_words, everyday
from salun_diffusers.diffusion.presets.known import find_concept
from salun_diffusers.evaluation.explicit_prompts import explicit_words

ROOT = Path(__file__).parents[2]
VAN_GOGH = {
    "concept": "Van Gogh", "forget_prompt": ("a painting by Van Gogh",), "anchor_prompt": ("a painting",)
}  # fmt: skip


class TestCaptions:
    def test_are_many_and_each_is_another(self) -> None:
        assert len(captions()) >= 200
        assert len({" ".join(sorted(content_words(caption))) for caption in captions()}) == len(captions())

    @pytest.mark.parametrize("caption", captions())
    def test_are_plain(self, caption: str) -> None:
        assert 6 <= len(caption.split()) <= 14
        assert caption == " ".join(caption.split())
        assert caption == caption.lower(), "names of persons and brands have capitals"
        assert explicit_words([caption]) == []

    def test_nobody_in_them_is_undressed(self) -> None:
        words = {word for caption in captions() for word in content_words(caption)}
        assert not words & {"skin", "bikini", "swimsuit", "underwear", "bath", "shower", "body", "swimmer", "statue"}

    def test_fit_the_text_encoder(self) -> None:
        """CLIP's tokens are made of bytes, each of at least one; spaces are none. 77 less start and end are 75."""
        assert max(len(caption.replace(" ", "").encode()) for caption in captions()) <= 75

    def test_come_with_the_package(self) -> None:
        """The wheel takes all that git knows below the package."""
        file = "salun_diffusers/diffusion/presets/everyday.txt"
        ignored = subprocess.run(["git", "check-ignore", "-q", file], cwd=ROOT, check=False)
        assert (ROOT / file).is_file() and ignored.returncode == 1


class TestEveryday:
    def test_some_are_kept_for_the_report(self) -> None:
        seen, unseen = everyday("Van Gogh", ["a painting by Van Gogh"], ["a painting"])
        assert len(unseen) == 8 and len(seen) > 200
        assert not set(seen) & set(unseen)
        assert {*seen, *unseen} <= set(captions())

    @pytest.mark.parametrize(
        ("forgotten", "anchor", "word"),
        [("a photo of a dog", "a photo of a cat", "dog"), ("Dogs", "", "dog"), ("a picture of BICYCLES", "", "bicycle"),
         ("snow scene", "a scene", "snowman")],
    )  # fmt: skip
    def test_none_names_what_is_forgotten(self, forgotten: str, anchor: str, word: str) -> None:
        assert any(word in caption for caption in captions())
        assert not any(word in caption for side in everyday("it", [forgotten], [anchor]) for caption in side)

    def test_words_of_the_anchor_may_stay(self) -> None:
        left_out = set(captions()) - {*everyday("nudity", ["a nude woman"], ["a woman in a coat"])[0]}
        assert any("woman" in caption for caption in captions())
        assert len(left_out) == 8, "those for the report alone"

    @pytest.mark.parametrize(
        ("neighbours", "others", "expected"),
        [
            (("n",), ("a", "b"), ("n", "a", "n", "b")),
            (("n", "m", "o"), ("a", "b"), ("n", "a", "m", "b", "o", "a")),
            ((), ("a",), ("a",)),
            (("n",), (), ("n",)),
        ],
    )
    def test_each_is_half_of_whatever_is_drawn(
        self, neighbours: tuple[str, ...], others: tuple[str, ...], expected: tuple[str, ...]
    ) -> None:
        assert beside(neighbours, others) == expected


class TestWhatIsRetained:
    def test_free_text_needs_no_retain_prompts(self) -> None:
        made = find_concept(EraseConfig(**VAN_GOGH))
        assert len(made.retain_prompts) > 200
        assert not any("van" in content_words(prompt) for prompt in made.retain_prompts)
        assert made.retain_evaluation == tuple(
            EvaluationPrompt(caption, trained_on=False)
            for caption in everyday("Van Gogh", ["a painting by Van Gogh"], ["a painting"])[1]
        )
        assert not {prompt.prompt for prompt in made.retain_evaluation} & set(made.retain_prompts)

    def test_given_ones_come_first_and_are_half(self, retain_file: Path) -> None:
        made = find_concept(EraseConfig(**VAN_GOGH, retain_prompts=str(retain_file)))
        assert made.retain_prompts[:8:2] == ("a photo of a square", "a star") * 2
        assert set(made.retain_prompts[::2]) == {"a photo of a square", "a star"}
        assert set(made.retain_prompts[1::2]) <= set(captions())
        assert made.retain_evaluation == (EvaluationPrompt("a photo of a square"), EvaluationPrompt("a star"))

    def test_the_papers_recipe_retains_its_anchor_or_what_is_given(self, retain_file: Path) -> None:
        paper = EraseConfig(**VAN_GOGH, recipe="paper")
        assert find_concept(paper).retain_prompts == ("a painting",)
        given = EraseConfig(**VAN_GOGH, recipe="paper", retain_prompts=str(retain_file))
        assert find_concept(given).retain_prompts == ("a photo of a square", "a star")

    def test_an_anchor_that_is_forgotten_itself_is_not_retained(self) -> None:
        prompts = {"forget_prompt": ("a dog", "a cat"), "anchor_prompt": ("a cat", "a horse")}
        assert find_concept(EraseConfig(concept="pets", recipe="paper", **prompts)).retain_prompts == ("a horse",)

    def test_nudity_retains_dressed_people_and_everyday_scenes(self, retain_file: Path) -> None:
        made = find_concept(EraseConfig(concept="nudity"))
        assert made.retain_prompts[0] == "a photo of a person wearing clothes"
        assert set(made.retain_prompts[1::2]) <= set(captions())
        risky = {"statue", "beach", "swimming", "dancing"} & {*content_words(" ".join(made.retain_prompts[::2]))}
        assert not risky, "the base draws nudes for such prompts, and what it draws is retained"
        given = find_concept(EraseConfig(concept="nudity", retain_prompts=str(retain_file)))
        assert given.retain_prompts[:4:2] == ("a photo of a square", "a star")
        assert set(given.retain_prompts[1::2]) <= set(captions())

    def test_the_embedded_model_knows_none_of_them(self, retain_file: Path) -> None:
        config = EraseConfig(**VAN_GOGH, retain_prompts=str(retain_file), pretrained_model_name_or_path="demo")
        assert find_concept(config).retain_prompts == ("a photo of a square", "a star")
