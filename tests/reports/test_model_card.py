"""The model card: all it must say, "not measured" where nothing is, and no markup from a user's or stranger's words."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from salun_diffusers.files.base_card import BaseCard
from salun_diffusers.reports.measurement import Comparison, Measurement
from salun_diffusers.reports.model_card import CardBase, CardFacts, model_card, patched_card
from salun_diffusers.reports.report import EvaluationReport, MaskSummary, ReceiptSummary

LICENCE = BaseCard(("creativeml-openrail-m",))
BASE = CardBase("CompVis/stable-diffusion-v1-4", "hub", "a" * 40, "b" * 64, LICENCE)
FACTS = CardFacts(
    concepts=("Van Gogh",),
    base=BASE,
    pipeline_class="StableDiffusionPipeline",
    settings={"recipe": "frozen_teacher", "mask ratio": "0.5 (saliency, global)", "seed": "0"},
    load='pipe = DiffusionPipeline.from_pretrained("me/x")',
    made={"concept": ["Van Gogh"], "base": "CompVis/stable-diffusion-v1-4"},
    mask_sha256="c" * 64,
    weights={"unet/diffusion_pytorch_model.safetensors": "d" * 64},
    place="me/x",
)


def rate(found: int, n: int, group: str = "", name: str = "it") -> Measurement:
    return Measurement.rate(name, found, n, direction="lower", protocol="a detector", group=group)


def pair(name: str, before: int, after: int, group: str) -> Comparison:
    return Comparison(name, rate(before, 20, group, name), rate(after, 20, group, name))


def report(**changes) -> EvaluationReport:
    values = {
        "concept": "Van Gogh", "verdict": "erased", "verdict_reason": "It is gone.", "base": "/home/me/base",
        "recipe": "frozen_teacher", "mask": MaskSummary(0.5, 1234), "receipt": ReceiptSummary(0, True, 0.25),
        "created": "2026-01-01T00:00:00+00:00", "command": "salun erase --output_dir /home/me/run",
        "comparisons": (
            pair("Van Gogh appears for its prompts", 20, 1, "concept"),
            pair("other concepts are right", 20, 19, "retained"),
            pair("an explicit prompt", 20, 1, "concept, by prompt"),
        ),
        "collateral": (pair("colours are bound", 10, 10, "bound words"),),
        "measurements": (Measurement.mean("drift", [0.1, 0.2], direction="lower", protocol="pixels", group="drift"),),
    }  # fmt: skip
    return EvaluationReport(**values | changes)


class TestSays:
    def test_what_was_done_to_what(self):
        text = model_card(FACTS, report())
        for words in (
            "# CompVis/stable-diffusion-v1-4 without “Van Gogh”",
            "**This model was changed: “Van Gogh” was erased from it.**",
            "[CompVis/stable-diffusion-v1-4](https://huggingface.co/CompVis/stable-diffusion-v1-4)",
            f"| revision of the base | `{'a' * 40}` |",
            "| mask ratio | 0.5 (saliency, global) |",
            "| recipe | frozen\\_teacher |",
            "| mask | 50 % of the denoiser's weights, 1,234, might move |",
            "Every weight outside the mask is bit-identical to the base.",
            "**Verdict: erased.** It is gone.",
            'pipe = DiffusionPipeline.from_pretrained("me/x")',
        ):
            assert words in text

    def test_every_figure_with_its_interval(self):
        text = model_card(FACTS, report())
        # 1 of 20 is 5 % [0.9, 23.6] by Wilson's interval, so UA is 95 % [76.4, 99.1].
        assert "without the concept | 95 % | (76.4 to 99.1 %) | 20 |" in text
        assert "what else was asked for is there | 95 % | (76.4 to 99.1 %) | 20 |" in text
        assert "| Van Gogh appears for its prompts | 100 % (83.9 to 100 %) | 5 % (0.9 to 23.6 %) | 20 | ↓ |" in text
        assert "| colours are bound | 50 % (29.9 to 70.1 %) |" in text and "| drift |  | 0.15 (" in text

    def test_what_was_not_measured(self):
        text = model_card(FACTS, report())
        assert "so is the other kind of label | not measured |" in text
        bare = model_card(FACTS, report(verdict="not measured", comparisons=(), measurements=(), collateral=()))
        assert bare.count("| not measured |") == 3 and "**Verdict: not measured.**" in bare
        assert "Nothing else was measured." in bare
        early = model_card(FACTS, None)
        assert "**Verdict: not measured yet.**" in early and "## Figures\n\nNot measured yet." in early

    def test_how_to_verify_and_why_the_mask_is_not_there(self):
        text = model_card(FACTS, report())
        assert "salun verify CompVis/stable-diffusion-v1-4 me/x --mask mask.safetensors\n" in text
        assert "arxiv.org/abs/2603.06640" in text and "--mask full" in text
        assert "c" * 64 in text and "d" * 64 in text
        published = model_card(replace(FACTS, mask_published="salun/mask.safetensors"), report())
        assert "--mask salun/mask.safetensors\n" in published and "--mask full" not in published

    def test_its_limits(self):
        text = model_card(FACTS, report())
        assert "no proof that the concept cannot come back" in text and "arxiv.org/abs/2310.11868" in text
        assert "Neither attacks nor relearning were measured here" in text

    def test_no_prompt_and_no_path_of_the_machine(self):
        text = model_card(FACTS, report())
        assert "an explicit prompt" not in text and "/home/me" not in text

    def test_the_same_twice(self):
        """It belongs to a folder whose files decide what a later run makes of it: no clock, no machine."""
        assert model_card(FACTS, report()) == model_card(FACTS, report(created="2027-02-02T00:00:00+00:00"))

    def test_several_concepts(self):
        assert "“a”, “b” and “c” were erased" in model_card(replace(FACTS, concepts=("a", "b", "c")), report())

    def test_a_strength_that_is_not_one(self):
        text = model_card(FACTS, report(receipt=ReceiptSummary(0, True, 0.25, 0.6)))
        assert "| strength | 0.6 of the whole change |" in text


class TestMetadata:
    def data(self, base: CardBase = BASE, **changes):
        return ModelCard(model_card(replace(FACTS, base=base, **changes), report())).data.to_dict()

    def test_as_the_hub_reads_them(self):
        assert self.data() == {
            "license": "creativeml-openrail-m", "base_model": "CompVis/stable-diffusion-v1-4",
            "base_model_relation": "finetune", "library_name": "diffusers", "pipeline_tag": "text-to-image",
            "tags": [
                "diffusers", "salun", "concept-erasure", "machine-unlearning", "diffusers:StableDiffusionPipeline",
            ],
            "salun_diffusers": FACTS.made,
        }  # fmt: skip

    def test_a_licence_of_its_own_name(self):
        data = self.data(replace(BASE, card=BaseCard(("other",), "a-name", "https://example.org/l")))
        assert (data["license"], data["license_name"], data["license_link"]) == (
            "other", "a-name", "https://example.org/l",
        )  # fmt: skip

    def test_a_local_base_is_named_by_what_its_card_names(self):
        data = self.data(CardBase("folder", "local", card=BaseCard(("mit",), base_model=("some/one",))))
        assert (data["license"], data["base_model"]) == ("mit", "some/one")

    def test_nothing_is_claimed_that_is_not_known(self):
        card = ModelCard(model_card(replace(FACTS, base=CardBase("folder", "local")), report()))
        assert not {"license", "base_model", "base_model_relation"} & card.data.to_dict().keys()
        assert "No card with a licence of the base could be read" in card.text

    def test_a_class_conditional_model_reads_no_text(self):
        assert self.data(pipeline_class="ClassConditionalDDPMPipeline")["pipeline_tag"] == (
            "unconditional-image-generation"
        )


class TestLicence:
    def test_the_bases_card_is_called_the_bases(self):
        text = model_card(replace(FACTS, base=replace(BASE, kept_as="BASE_README.md")), report())
        assert "licence `creativeml-openrail-m`" in text and "restrictions of use included" in text
        assert "Its card lies here as `BASE_README.md`, to the byte; it describes the base." in text


@pytest.mark.parametrize("words", ["a | b\n# c", "<script>x</script>", "[x](http://evil)", "`x`", "---\nlicense: mit"])
def test_words_are_no_markup(words):
    hostile = BaseCard((words.replace("\n", " "),), words.replace("\n", " "), "javascript:alert(1)", (words,))
    base = CardBase(words, "local", card=hostile)
    card = ModelCard(model_card(replace(FACTS, concepts=(words,), base=base), report(concept=words)))
    assert card.data.to_dict()["salun_diffusers"] == FACTS.made
    for markup in (r"<script", r"\]\(http://evil", r"`x`[^ ]"):
        assert not re.search(rf"(?<!\\){markup}", card.text)
    assert "\n# c" not in card.text
    assert "javascript:" not in card.text
    rows = [line for line in card.text.splitlines() if line.startswith("| erased |")]
    assert len(rows) == 1 and rows[0].replace("\\|", "").count("|") == 3


def test_a_patched_folder_says_that_nothing_was_measured():
    card = ModelCard(
        patched_card(replace(BASE, kept_as="BASE_README.md"), "StableDiffusionPipeline", "e" * 64, "f" * 64)
    )
    assert "changed by a patch" in card.text and "Nothing was measured here" in card.text
    assert "e" * 64 in card.text and "f" * 64 in card.text and "`BASE_README.md`" in card.text
    assert card.data.license == "creativeml-openrail-m" and card.data.to_dict()["salun_diffusers"]["patch"] == "e" * 64
    assert "gives the base back, bit for bit" in card.text and "| strength |" not in card.text


def test_a_folder_patched_at_a_strength_is_not_said_to_be_reverted():
    text = patched_card(BASE, "StableDiffusionPipeline", "e" * 64, "", 0.7)
    assert "| strength | 0.7 of the whole change |" in text
    assert "does not give the base back" in text and "bit for bit" not in text
