"""Unlearning and retained accuracy by hand, and the classifiers behind them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from salun_diffusers import evaluation
from salun_diffusers.classification.models import load_classifier, make_classifier, save_classifier
from salun_diffusers.demo.renderer import Scene, render, sample_scene
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.class_names import IMAGENETTE, find_label
from salun_diffusers.evaluation.comparison import compare_runs, read_runs
from salun_diffusers.evaluation.objects import (
    ClipZeroShot,
    ObjectClassifier,
    measure_objects,
    turned_into,
)
from salun_diffusers.evaluation.pretrained import load_transformers
from salun_diffusers.evaluation.record import EvaluationRecord
from salun_diffusers.files.pipeline_folder import EMBEDDED, embedded_detector
from salun_diffusers.pictures.picture_sources import load_pictures
from salun_diffusers.reports.measurement import Measurement

DETECTOR = str(EMBEDDED["demo"].parent / "detector")


def test_rates_by_hand() -> None:
    """Of three circles one is left; of three others two are right."""
    expected = ["circle", "circle", "circle", "star", "star", "heart"]
    shown = ["square", "circle", "square", "star", "moon", "heart"]
    measured = {item.name: item.value for item in measure_objects(shown, expected, ["circle"], protocol="by hand")}
    assert measured == {
        "UA: circle is not drawn": pytest.approx(2 / 3),
        "RA: other classes are right": pytest.approx(2 / 3),
        "star is right": 0.5,
        "heart is right": 1.0,
    }
    assert turned_into(shown, expected, "circle") == [("square", 2), ("circle", 1)]


class TestWhatTheOthersAre:
    """RA without circles is no RA without stars: the record says which classes were measured, and rows part by it."""

    EXPECTED = ("circle", "star", "heart")

    def measured(self, forget: str, expected: Sequence[str] = EXPECTED) -> list[Measurement]:
        return measure_objects(expected, expected, [forget], protocol="by hand")

    def test_the_subject_names_what_was_forgotten_and_what_was_asked(self) -> None:
        subjects = {item.name: item.subject for item in self.measured("circle")}
        assert subjects == {
            "UA: circle is not drawn": "",
            "RA: other classes are right": "without circle: heart, star",
            "star is right": "",
            "heart is right": "",
        }

    def test_many_classes_are_told_apart_by_a_digest(self) -> None:
        """Twenty names would be no row's name any more; twenty others are others."""
        many = [f"class {number}" for number in range(20)]
        found = []
        for last in ("x", "y"):
            (subject,) = {item.subject for item in self.measured("circle", ["circle", *many, last])} - {""}
            assert subject.startswith("without circle: 21 classes ") and len(subject) < 60
            found.append(subject)
        assert found[0] != found[1]

    def test_comparing_keeps_them_in_rows_of_their_own(self, tmp_path: Path) -> None:
        runs = {
            "a": self.measured("circle"),
            "again": self.measured("circle"),
            "other forgotten": self.measured("star"),
            "other classes": self.measured("circle", ("circle", "star", "moon")),
        }
        for name, items in runs.items():
            record = EvaluationRecord("objects", "by hand", "", measurements=tuple(items))
            (tmp_path / f"{name}.json").write_text(json.dumps(record.to_json()))
        table = compare_runs(read_runs([str(tmp_path / f"{name}.json") for name in runs]))
        rows = {key[1]: [item is not None for item in table.row(key)] for key in table.keys if key[1].startswith("RA")}
        assert rows == {
            "RA: other classes are right (without circle: heart, star)": [True, True, False, False],
            "RA: other classes are right (without star: circle, heart)": [False, False, True, False],
            "RA: other classes are right (without circle: moon, star)": [False, False, False, True],
        }


def test_nothing_left_of_the_others() -> None:
    (only,) = measure_objects(["circle"], ["circle"], ["circle"], protocol="by hand")
    assert only.value == 0


def test_class_that_nobody_drew() -> None:
    with pytest.raises(UserError, match="none was drawn for 'tench', there are circle"):
        measure_objects(["circle"], ["circle"], ["tench"], protocol="by hand")


def test_imagenettes_places() -> None:
    thousand = [f"LABEL_{index}" for index in range(1000)]
    assert find_label("Church", thousand) == 497
    assert find_label("english_springer", thousand) == IMAGENETTE["english springer"] == 217
    assert find_label("dog", thousand) is None
    assert find_label("tench", ["goldfish", "tench, Tinca tinca"]) == 1


def test_the_label_itself_comes_before_a_synonym() -> None:
    """ImageNet has a dog called cardigan, and later the garment."""
    assert find_label("cardigan", ["Cardigan, Cardigan Welsh corgi", "cardigan"]) == 1
    assert find_label("cardigan welsh corgi", ["Cardigan, Cardigan Welsh corgi", "cardigan"]) == 0


def test_two_names_of_one_class_are_refused(tiny_clip: Path) -> None:
    """One of them would never be shown: a class that is still drawn would count as gone."""
    with pytest.raises(UserError, match="'Circle' and 'circle' are one class of the classifier"):
        ObjectClassifier(DETECTOR, ["Circle", "star", "circle"])
    with pytest.raises(UserError, match="'garbage truck' and 'garbage_truck' are one class of the pictures"):
        ClipZeroShot(str(tiny_clip), ["garbage truck", "garbage_truck"])


class TestOwnClassifiers:
    """What `salun train-classifier` leaves is a classifier as any other."""

    def saved(self, folder: Path, name: str, labels: tuple[str, ...], channels: int) -> str:
        classifier = make_classifier(name, class_names=labels, channels=channels, image_size=32, seed=0)
        save_classifier(classifier, folder, 32, {})
        return str(folder)

    def test_grey_pictures(self, tmp_path: Path) -> None:
        """The model of digits, its default, takes one channel."""
        weights = self.saved(tmp_path / "grey", "resnet_small", ("0", "1"), 1)
        classifier = ObjectClassifier(weights, ["1"])
        shown = classifier.classify([Image.new("RGB", (32, 32), colour) for colour in ("black", "white")])
        model, _ = load_classifier(Path(weights))
        with torch.no_grad():
            wanted = model.logits(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 32, 32)).argmax(dim=1)
        assert shown == [str(int(place)) for place in wanted]

    def test_a_network_that_transformers_does_not_have(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Folders of resnet18, resnet50 and vgg16_bn load only once the module that registers them is imported."""
        monkeypatch.delattr(evaluation, "small_picture_networks", raising=False)
        monkeypatch.setitem(sys.modules, "salun_diffusers.evaluation.small_picture_networks", None)
        with pytest.raises(ImportError, match="small_picture_networks"):
            ObjectClassifier(DETECTOR, ["circle"])

    def test_several_labels_of_one_name(self, tmp_path: Path) -> None:
        """ImageNet's thousand have two cranes."""
        weights = self.saved(tmp_path / "twice", "resnet_small", ("crane", "Crane", "dog"), 3)
        assert ObjectClassifier(weights, ["dog"]).protocol
        with pytest.raises(UserError, match="several that read 'crane'"):
            ObjectClassifier(weights, ["crane", "dog"])

    def test_weights_of_another_shape_are_named(self, tmp_path: Path) -> None:
        """Of them transformers says that it raises an error, and to look at a report above, which is not there."""
        weights = self.saved(tmp_path / "seven", "resnet_small", tuple("0123456"), 1)
        path = tmp_path / "seven" / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"id2label": {"0": "0", "1": "1"}, "label2id": {"0": 0, "1": 1}}))
        shapes = r"2 do not, the first is classifier\.1\.bias"  # transformers 4 does not say which shapes.
        with pytest.raises(UserError, match=shapes):
            ObjectClassifier(weights, ["1"])
        with pytest.raises(UserError, match=shapes):
            load_classifier(Path(weights))
        with pytest.raises(UserError, match=r"model\.safetensors is a file"):
            ObjectClassifier(f"{weights}/model.safetensors", ["1"])

    def test_a_preprocessor_of_another_model(self, tmp_path: Path) -> None:
        weights = self.saved(tmp_path / "grey", "resnet_small", ("0", "1"), 1)
        path = tmp_path / "grey" / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
        with pytest.raises(UserError, match=r"cannot take pictures as its preprocessor_config\.json prepares them"):
            ObjectClassifier(weights, ["1"]).classify([Image.new("RGB", (32, 32))])

    def test_the_classifier_of_digits(self) -> None:
        """Its pictures have 32 pixels; scaled to the 64 of the demo's they are none of its classes."""
        data = load_pictures("digits", image_size=32)[0][torch.arange(20)]
        pictures = [Image.fromarray(grey.numpy()).convert("RGB") for grey in data.pixels[:, 0]]
        shown = ObjectClassifier(str(embedded_detector("digits")), ["3"]).classify(pictures)
        assert sum(found == str(int(digit)) for found, digit in zip(shown, data.labels, strict=True)) >= 18


def test_the_demo_classifier_ranks_shapes_only() -> None:
    rng = np.random.default_rng(3)
    scenes: list[Scene] = [sample_scene(rng) for _ in range(20)]
    classifier = ObjectClassifier(DETECTOR, ["circle", "star"])
    found = classifier.classify([render(scene) for scene in scenes])
    assert sum(name == scene.shape for name, scene in zip(found, scenes, strict=True)) >= 19
    assert "11 labels of group 'shape'" in classifier.protocol


def test_classes_of_several_groups_are_ranked_among_all_labels() -> None:
    classifier = ObjectClassifier(DETECTOR, ["circle", "red"])
    assert classifier.protocol.endswith("top-1 of 30 labels")
    (found,) = classifier.classify([Image.new("RGB", (64, 64), "white")])
    assert found


def test_class_that_the_classifier_lacks() -> None:
    with pytest.raises(UserError, match="has no class 'tench'; it has shape:circle"):
        ObjectClassifier(DETECTOR, ["circle", "tench"])


def test_any_transformers_classifier(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", id2label={0: "tench, fish", 1: "church"}
    )
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    preprocessing = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    pictures = [Image.new("RGB", (40, 30)), Image.new("RGB", (32, 32))]
    installed = tuple(int(part) for part in version("transformers").split(".")[:2])
    if (5, 4) <= installed < (5, 18) and find_spec("torchvision") is None:
        with pytest.raises(UserError, match=r"torchvision, or transformers 5\.18 or newer"):
            ObjectClassifier(str(tmp_path), ["tench"])
        return
    found = ObjectClassifier(str(tmp_path), ["tench"]).classify(pictures)
    assert len(found) == 2 and set(found) <= {"tench", "church"}


def test_a_package_that_transformers_lacks_is_told() -> None:
    class Lacking:
        @staticmethod
        def from_pretrained(weights: str) -> None:
            raise ImportError("AutoImageProcessor requires the Torchvision library\nbut it was not found.")

    with pytest.raises(UserError, match=r"The classifier needs torchvision, or transformers 5\.18 or newer"):
        load_transformers(Lacking, "FOLDER", "The classifier")


def test_a_folder_without_its_last_layer_is_refused(tmp_path: Path) -> None:
    """transformers would draw the layer at random and classify with it."""
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lack classifier\.1\.bias and would be drawn at random"):
        ObjectClassifier(str(tmp_path), ["tench"])


def test_clip_zero_shot(tiny_clip: Path) -> None:
    classifier = ClipZeroShot(str(tiny_clip), ["circle", "star"])
    assert set(classifier.classify([Image.new("RGB", (32, 32), "red"), Image.new("RGB", (9, 12))])) <= {
        "circle",
        "star",
    }
    assert classifier.protocol.startswith("CLIP zero-shot")


def test_missing_classifier_offline() -> None:
    with pytest.raises(UserError, match="The classifier needs the weights microsoft/resnet-50"):
        ObjectClassifier("microsoft/resnet-50", ["tench"])
