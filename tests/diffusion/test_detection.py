"""Which detector looks for a concept: what the flags choose, what they refuse before anything heavy, what they find."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from salun_diffusers.diffusion.concepts import EvaluationPrompt
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.detection import chosen_detector, with_detector
from salun_diffusers.diffusion.presets.known import find_concept
from salun_diffusers.diffusion.presets.text_space import NotAtHand
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation import detector_choice
from salun_diffusers.evaluation.detectors import ClassDetector, ClipDetector, WithClip, make_detector
from salun_diffusers.files.pipeline_folder import embedded_detector
from salun_diffusers.programs.erase import main
from salun_diffusers.reports.report import EvaluationReport

TOY = NotAtHand(of_a_toy=True)
"""What a model of few words says that is not here."""
DEMO = str(embedded_detector("demo"))


def chosen(**flags: Any) -> tuple[frozenset[str], detector_choice.DetectorChoice]:
    """Target labels and detector of some flags."""
    config = EraseConfig(**{"concept": "circle", **flags})
    concept = with_detector(find_concept(config, space=TOY), config)
    return concept.target_labels, chosen_detector(concept, config)


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has fetched before."""
    monkeypatch.setattr("salun_diffusers.diffusion.detection.cached_clip", lambda: "")


@pytest.mark.parametrize("dry_run", [None, True])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"detector": "nudnet"}, ("--detector must be preset, none, nudenet, demo, digits", "got 'nudnet'")),
        ({"detector": "./no/such"}, ("got './no/such'",)),
        ({"detector": "someone/something"}, ("neither a local folder nor could be had from the hub",)),
        ({"detector": "clip:"}, ("needs the words that describe the concept",)),
        ({"detector": 'clip:"" '}, ("needs the words that describe the concept",)),
        ({"detector": "clip:a disc"}, ("--clip openai/clip-vit-base-patch16 is neither",)),
        ({"detector": "clip:a disc", "clip": DEMO}, ("must be a CLIP model with its text and its vision tower",)),
        ({"clip": DEMO}, ("must be a CLIP model",)),
        ({"detector_labels": "circle"}, ("name the classifier by --detector, got --detector preset",)),
        ({"detector_labels": "circle", "detector": "none"}, ("got --detector none",)),
        ({"detector_labels": "circle", "detector": "clip:a disc"}, ("--detector_labels is for classifiers",)),
        ({"detector": DEMO}, ("No label of the detector is 'disc'", "say by --detector_labels")),
        ({"detector": DEMO, "detector_labels": "circel"}, ("'circel' is none of its", "nearest is 'shape:circle'")),
        ({"detector": "nudenet", "detector_labels": "FEET"}, ("'FEET' is none of its 5",)),
    ],
)
def test_what_is_no_detector_is_refused_before_anything_heavy(
    refused: Callable[..., str], flags: dict[str, object], words: tuple[str, ...], dry_run: bool | None
) -> None:
    refused(*words, **flags, dry_run=dry_run)


def test_folders_that_are_no_classifiers(refused: Callable[..., str], tmp_path: Path) -> None:
    for name, files, words in (
        ("empty", {}, "has no config.json"),
        ("pickled", {"config.json": "{}", "pytorch_model.bin": ""}, "must hold safetensors weights"),
        ("damaged", {"config.json": "{", "model.safetensors": ""}, "is damaged: JSON is required"),
        ("a-list", {"config.json": "[]", "model.safetensors": ""}, "a JSON object is required, found list"),
        ("nameless", {"config.json": "{}", "model.safetensors": ""}, "has no id2label"),
        ("lettered", {"config.json": '{"id2label": {"a": "b"}}', "model.safetensors": ""}, "must count its classes"),
    ):
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file).write_text(content)
        refused(words, detector=tmp_path / name)


class TestChosen:
    def test_the_presets_own(self) -> None:
        assert chosen() == (frozenset({"shape:circle"}), detector_choice.find_detector("demo"))
        assert chosen(detector="none")[1].name == "none"

    def test_a_classifiers_label_is_found_by_the_concepts_name(self) -> None:
        assert chosen(detector=DEMO)[0] == {"shape:circle"}
        labels = ("style:striped", "Star")
        assert chosen(detector=DEMO, detector_labels=labels)[0] == {"style:striped", "shape:star"}

    def test_labels_that_the_detector_does_not_know_are_dropped(self) -> None:
        """The demo's shapes mean nothing to the digits' classifier; without labels, drift or CLIP must do."""
        config = EraseConfig(concept="circle", detector="digits", detector_labels=("7",))
        concept = with_detector(find_concept(config, space=TOY), config)
        assert concept.target_labels == {"digit:7"}
        assert not any(prompt.expected or prompt.expected_across for prompt in concept.retain_evaluation)
        kept = with_detector(find_concept(config, space=TOY), replace(config, detector=DEMO, detector_labels=()))
        assert all(prompt.expected for prompt in kept.retain_evaluation)

    def test_a_class_is_expected_of_its_name(self) -> None:
        """The prompts of a class-conditional model are its classes; a sentence is none."""
        made = find_concept(EraseConfig(concept="circle"), space=TOY)
        named = tuple(map(EvaluationPrompt, ("Star", "a heart", "moon")))
        config = EraseConfig(concept="circle", detector=DEMO)
        concept = with_detector(replace(made, retain_evaluation=named), config)
        assert [prompt.expected for prompt in concept.retain_evaluation] == ["shape:star", "", "shape:moon"]

    def test_words_are_told_from_those_of_the_anchor(self, tiny_clip: Path) -> None:
        flags = {"concept": "Van Gogh", "forget_prompt": ("a Van Gogh", "by Van Gogh"), "retain_prompts": None}
        config = EraseConfig(
            **{**flags, "concept": "circle", "anchor_prompt": ("a box", ""), "detector": 'clip: "a disc" '},
            clip=str(tiny_clip),
        )
        concept = with_detector(find_concept(config, space=TOY), config)
        choice = chosen_detector(concept, config)
        assert concept.target_labels == {"a disc"}
        assert choice.labels == ("a disc", "a box", "a picture")
        assert (choice.weights, choice.clip) == (str(tiny_clip), str(tiny_clip))

    def test_words_that_the_anchor_has_too(self, tiny_clip: Path) -> None:
        flags = {"forget_prompt": ("a disc",), "anchor_prompt": ("a box",), "detector": "clip:a box"}
        _, choice = chosen(**flags, clip=str(tiny_clip))
        with pytest.raises(UserError, match="describe the concept in other words"):
            make_detector(choice)

    @pytest.mark.parametrize(("cached", "wanted"), [("", ""), ("openai/clip", "openai/clip")])
    def test_clip_helps_only_where_labels_lack(self, monkeypatch, cached: str, wanted: str) -> None:
        monkeypatch.setattr("salun_diffusers.diffusion.detection.cached_clip", lambda: cached)
        assert chosen()[1].clip == ""
        assert chosen(concept="nudity")[1].clip == wanted
        assert chosen(concept="nudity", detector="none")[1].clip == ""


class TestFound:
    def test_any_classifier_gives_one_label_or_one_of_each_group(self) -> None:
        detector = make_detector(detector_choice.find_detector(DEMO))
        assert isinstance(detector, ClassDetector)
        (found,) = detector.labels([Image.new("RGB", (64, 64), "red")])
        groups = sorted(label.split(":")[0] for label in found)
        assert groups == sorted({label.split(":")[0] for label in detector.names})

    def test_a_classifier_without_groups_has_one(self, tmp_path: Path) -> None:
        import torch
        from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

        names = {0: "cat", 1: "dog"}
        small = {"embedding_size": 4, "hidden_sizes": [4], "depths": [1], "layer_type": "basic", "id2label": names}
        model = ResNetForImageClassification(ResNetConfig(**small))
        with torch.no_grad():
            model.classifier[1].weight.zero_()
            model.classifier[1].bias.copy_(torch.tensor([0.0, 1.0]))
        model.save_pretrained(tmp_path)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
        detector = make_detector(detector_choice.find_detector(str(tmp_path)))
        assert detector.labels([Image.new("RGB", (40, 30))] * 2) == [frozenset({"dog"})] * 2
        assert detector.labels([]) == []

    def test_clip_finds_the_nearest_words(self, tiny_clip: Path, monkeypatch) -> None:
        import torch

        detector = make_detector(
            detector_choice.DetectorChoice("clip", str(tiny_clip), ("a disc", "a box", "a star"), str(tiny_clip))
        )
        assert isinstance(detector, ClipDetector)
        assert "'a disc' against 'a box', 'a star'" in detector.protocol
        texts = detector.clip.texts(["a disc", "a box", "a star"])
        monkeypatch.setattr(detector.clip, "images", lambda pictures: torch.stack([texts[2], texts[0]]))
        assert detector.labels([Image.new("RGB", (8, 8))] * 2) == [{"a star"}, {"a disc"}]
        assert detector.labels([]) == []

    def test_clip_goes_beside_another_detector(self, tiny_clip: Path) -> None:
        choice = replace(detector_choice.find_detector("demo"), clip=str(tiny_clip))
        detector = make_detector(choice)
        assert isinstance(detector, WithClip) and detector.protocol == make_detector("demo").protocol
        assert f"retained pictures by {tiny_clip}" in str(choice)


@pytest.mark.usefixtures("empty_folder")
@pytest.mark.parametrize("kind", ["clip", "classifier"])
def test_free_text_is_measured_by_what_the_flags_name(small_run, tmp_path: Path, tiny_clip: Path, kind: str) -> None:
    """Four forget pictures decide nothing; but it is looked for, and what stays is measured without labels."""
    flags: dict[str, object] = {"detector": "clip:a photo of a circle", "clip": tiny_clip}
    if kind == "classifier":
        flags = {"detector": DEMO, "detector_labels": "circle"}
    assert main(small_run(output_dir=tmp_path / "run", **flags)) == 0
    report = EvaluationReport.from_json(json.loads((tmp_path / "run" / "report.json").read_text()))
    gone = report.comparisons[0]
    assert (gone.name, gone.after.group, gone.after.n) == ("disc appears for its prompts", "concept", 2)
    assert ("CLIP zero-shot" if kind == "clip" else "top-1 of") in gone.after.protocol
    (moved,) = (item for item in report.measurements if item.group == "retained, against another seed")
    assert moved.n == 4 and ("cosine" if kind == "clip" else "pixels") in moved.protocol
    assert report.verdict in ("not measured", "no effect", "partly erased")


@pytest.mark.usefixtures("empty_folder")
def test_the_plan_names_the_detector(small_run, tiny_clip: Path, capsys) -> None:
    assert main(small_run(detector="clip:a disc", clip=tiny_clip, dry_run=True)) == 0
    assert f"detector clip of {tiny_clip}, retained pictures by {tiny_clip}" in capsys.readouterr().out
