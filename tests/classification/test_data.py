"""Data sets, splits, models: what goes in, and what is refused."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from salun_diffusers.classification.batches import Augmentation, in_order, shuffled
from salun_diffusers.classification.classifier import Classifier, predict
from salun_diffusers.classification.datasets import cut, load_pools
from salun_diffusers.classification.forget_split import (
    Pools,
    forget_class,
    forget_fraction,
    forget_instances,
    read_indices,
)
from salun_diffusers.classification.models import fresh_copy, load_classifier, make_classifier, save_classifier
from salun_diffusers.errors import UserError
from salun_diffusers.pictures.labelled_pictures import LabelledPictures


class TestSplits:
    @pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5])
    def test_disjoint_and_complete(self, pools, ratio):
        split = forget_fraction(pools, ratio, 0)
        both = torch.cat([split.forget_indices, split.retain_indices]).sort().values
        assert torch.equal(both, torch.arange(48))
        assert len(split.forget) == int(ratio * 48)
        assert torch.equal(split.forget.labels, pools.train.labels[split.forget_indices])

    def test_seeded(self, pools):
        first, again, other = (forget_fraction(pools, 0.5, seed).forget_indices for seed in (0, 0, 1))
        assert torch.equal(first, again) and not torch.equal(first, other)

    def test_a_class_leaves_the_test_set(self, pools):
        split = forget_class(pools, "2")
        assert split.whole_class
        assert set(split.forget.labels.tolist()) == {2}
        assert 2 not in split.retain.labels and 2 not in split.test.labels and 2 not in split.validation.labels
        assert len(split.test) == 18

    def test_too_few_pictures_a_class_to_hold_some_out(self, tmp_path):
        """A fifth of three pictures is none: the line says that five would do, and five do."""
        for name in ("cat", "dog"):
            for number in range(3):
                (tmp_path / name).mkdir(exist_ok=True)
                Image.new("RGB", (6, 6), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
        few = load_pools(str(tmp_path))
        words = "where it is held out of the training set, at least five pictures a class"
        for forget in (lambda: forget_class(few, "cat"), lambda: forget_fraction(few, 0.5, 0)):
            with pytest.raises(UserError, match=f"No test picture is left to measure on; .*{words}"):
                forget()
        for name in ("cat", "dog"):
            for number in (3, 4):
                Image.new("RGB", (6, 6), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
        assert len(forget_class(load_pools(str(tmp_path)), "cat").test) == 1

    @pytest.mark.parametrize(
        ("indices", "words"),
        [
            ([], "forget set is empty"),
            ([48], "48 is out of range; the training set has positions 0 to 47"),
            ([-1], "-1 is out of range"),
            ([3, 5, 3], "3 is there 2 times"),
            (list(range(48)), "all 48 training pictures"),
        ],
    )
    def test_refuses(self, pools, indices, words):
        with pytest.raises(UserError, match=words):
            forget_instances(pools, indices)

    @pytest.mark.parametrize("ratio", [0.001, 1.0])
    def test_refuses_nothing_and_everything(self, pools, ratio):
        with pytest.raises(UserError, match="forget set is"):
            forget_fraction(pools, ratio, 0)

    def test_refuses_unknown_classes(self, pools):
        with pytest.raises(UserError, match="--forget_class 7 is not in the data; classes are 0, 1, 2, 3"):
            forget_class(pools, "7")

    def test_refuses_one_class(self, pools):
        ones = pools.train[(pools.train.labels == 1).nonzero().squeeze(1)]
        with pytest.raises(UserError, match=r"two classes or more, .* found 12 pictures of 1\."):
            forget_instances(Pools(ones, ones, ones), [0])

    @pytest.mark.parametrize("text", ["3, 1 2", "3\n1\n2\n", "[3, 1, 2]"])
    def test_index_files(self, tmp_path, text):
        (tmp_path / "indices.txt").write_text(text)
        assert read_indices(tmp_path / "indices.txt") == [3, 1, 2]

    def test_index_files_that_are_none(self, tmp_path):
        (tmp_path / "indices.txt").write_text("1 two")
        with pytest.raises(UserError, match="must hold whole numbers, found 'two'"):
            read_indices(tmp_path / "indices.txt")
        with pytest.raises(UserError, match="does not exist"):
            read_indices(tmp_path / "nothing.txt")


class TestPictures:
    def test_refuses_nan(self):
        pixels = torch.rand(3, 1, 2, 2)
        pixels[1, 0, 0, 0] = torch.nan
        with pytest.raises(UserError, match="1 hold NaN or infinity, first number 1"):
            LabelledPictures(pixels, torch.zeros(3, dtype=torch.int64), ("a",))

    def test_refuses_other_ranges(self):
        with pytest.raises(UserError, match=r"must lie in \[0, 1\], got 0 to 255; divide by 255"):
            LabelledPictures(torch.tensor([0.0, 255.0]).view(1, 1, 1, 2), torch.zeros(1, dtype=torch.int64), ("a",))

    def test_refuses_missing_labels(self):
        with pytest.raises(UserError, match="-1 often means that the labels are missing"):
            LabelledPictures(torch.zeros(1, 1, 2, 2), torch.tensor([-1]), ("a",))
        with pytest.raises(UserError, match="got 2 pictures and labels of shape"):
            LabelledPictures(torch.zeros(2, 1, 2, 2), torch.tensor([0]), ("a",))

    def test_passes_are_complete_and_seeded(self, pools):
        rows = [batch.labels for batch in shuffled(pools.train, 7, torch.Generator().manual_seed(0))]
        assert sorted(torch.cat(rows).tolist()) == sorted(pools.train.labels.tolist())
        again = [batch.labels for batch in shuffled(pools.train, 7, torch.Generator().manual_seed(0))]
        assert all(torch.equal(first, second) for first, second in zip(rows, again, strict=True))
        assert torch.equal(torch.cat([batch.labels for batch in in_order(pools.train, 7)]), pools.train.labels)

    def test_augmentation(self):
        pixels = torch.rand(64, 1, 5, 5)
        changed = Augmentation(shift=1, flip=True)(pixels, torch.Generator().manual_seed(0))
        assert changed.shape == pixels.shape and not torch.equal(changed, pixels)
        assert torch.equal(Augmentation()(pixels, torch.Generator()), pixels)
        flipped = Augmentation(flip=True)(pixels, torch.Generator().manual_seed(0))
        same = (flipped == pixels).flatten(1).all(1)
        assert torch.equal(flipped[~same], pixels[~same].flip(-1)) and 10 < same.sum() < 54


class TestDatasets:
    def test_digits(self):
        pools = load_pools("digits", image_size=16, validation=0.1)
        assert len(pools.train) + len(pools.validation) + len(pools.test) == 1797
        assert pools.train.pixels.shape[1:] == (1, 16, 16) and pools.train.pixels.dtype == torch.uint8
        again = load_pools("digits", image_size=16, validation=0.1)
        other = load_pools("digits", image_size=16, validation=0.1, seed=1)
        assert torch.equal(pools.test.labels, again.test.labels)
        assert not torch.equal(pools.test.pixels, other.test.pixels)

    def test_digits_without_scikit_learn(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        with pytest.raises(UserError, match=r"needs scikit-learn: pip install 'salun-diffusers\[classification\]'"):
            load_pools("digits")

    def test_hub_data_without_datasets(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(UserError, match="needs the datasets package"):
            load_pools("cifar10")

    def test_unknown(self):
        with pytest.raises(UserError, match=r"The data set must be one of digits, shapes, .* got 'mnist'"):
            load_pools("mnist")

    def test_image_folder(self, tmp_path):
        for part, count in (("train", 4), ("test", 2)):
            for name, value in (("cat", 20), ("dog", 200)):
                (tmp_path / part / name).mkdir(parents=True)
                for number in range(count):
                    Image.new("RGB", (6, 6), (value, value, value)).save(tmp_path / part / name / f"{number}.png")
        pools = load_pools(str(tmp_path))
        assert pools.train.class_names == ("cat", "dog")
        assert (len(pools.train), len(pools.test)) == (8, 4)
        assert set(pools.train.pixels[pools.train.labels == 1].unique().tolist()) == {200}
        whole = load_pools(str(tmp_path / "train"), test=0.25)
        assert (len(whole.train), len(whole.test)) == (6, 2)

    def test_damaged_or_empty_folder(self, tmp_path):
        with pytest.raises(UserError, match="found no picture in such a folder"):
            load_pools(str(tmp_path))
        (tmp_path / "cat").mkdir()
        (tmp_path / "cat" / "a.png").write_bytes(b"no picture")
        with pytest.raises(UserError, match=r"a\.png cannot be read as a picture"):
            load_pools(str(tmp_path))

    def test_cut_by_class(self, pools):
        left, out = cut(pools.train, 0.25, 0, "test")
        assert np.bincount(out.labels).tolist() == [3, 3, 3, 3] and len(left) == 36

    @pytest.mark.slow
    def test_shapes(self):
        pools = load_pools("shapes")
        assert pools.train.pixels.shape[1:] == (3, 32, 32) and pools.train.num_classes == 10


class TestModels:
    @pytest.mark.parametrize("name", ["resnet_small", "resnet18", "vgg16_bn", "vit"])
    def test_come_back_from_their_folder(self, tmp_path, name):
        from transformers import AutoModelForImageClassification

        classifier = make_classifier(name, class_names=("a", "b", "c"), channels=1, image_size=16, seed=0)
        pixels = torch.rand(4, 1, 16, 16)
        expected = predict(classifier, pixels)
        assert expected.shape == (4, 3)
        save_classifier(classifier, tmp_path / "model", 16, {"dataset": "x"})
        again, size = load_classifier(tmp_path / "model")
        assert size == 16 and torch.equal(predict(again, pixels), expected)
        plain = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
        assert plain.config.id2label == {0: "a", 1: "b", 2: "c"}
        assert not any(path.suffix in (".bin", ".pt", ".pth") for path in (tmp_path / "model").iterdir())

    @pytest.mark.slow
    def test_resnet50(self):
        classifier = make_classifier("resnet50", class_names=("a", "b"), channels=3, image_size=8, seed=0)
        assert predict(classifier, torch.rand(2, 3, 8, 8)).shape == (2, 2)

    def test_seeded_without_touching_the_global_state(self):
        state = torch.random.get_rng_state()
        first, again, other = (
            make_classifier("resnet_small", class_names=("a", "b"), channels=1, image_size=8, seed=seed)
            for seed in (0, 0, 1)
        )
        assert torch.equal(torch.random.get_rng_state(), state)
        name = first.head_name + ".weight"
        assert torch.equal(first.parameters[name], again.parameters[name])
        assert not torch.equal(first.parameters[name], other.parameters[name])

    def test_unknown(self):
        with pytest.raises(UserError, match=r"--model must be one of resnet_small, .*timm/NAME; got 'resnet9'"):
            make_classifier("resnet9", class_names=("a", "b"), channels=1, image_size=8, seed=0)

    def test_a_trained_classifier_is_not_trained_anew(self, tmp_path):
        """Its folder is what the other program takes, and the line says so."""
        told = rf"the folder {tmp_path} is not taken up\. `salun unlearn-classifier --model {tmp_path}` works on"
        with pytest.raises(UserError, match=told):
            make_classifier(str(tmp_path), class_names=("a", "b"), channels=1, image_size=8, seed=0)

    def test_folder_that_is_no_model(self, tmp_path):
        with pytest.raises(UserError, match=r"has no config\.json"):
            load_classifier(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
        (tmp_path / "pytorch_model.bin").touch()
        with pytest.raises(UserError, match="pickled weights are not opened"):
            load_classifier(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"damaged")
        with pytest.raises(UserError, match="cannot be loaded as an image classifier"):
            load_classifier(tmp_path)

    def test_plain_modules(self, make_task):
        classifier = make_task().classifier
        fresh = fresh_copy(classifier, 1)
        assert fresh.parameters.keys() == classifier.parameters.keys()
        assert not torch.equal(fresh.parameters["0.weight"], classifier.parameters["0.weight"])

    def test_layer_that_cannot_be_drawn_anew(self):
        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.ones(1))

        with pytest.raises(UserError, match="has no reset_parameters"):
            fresh_copy(Classifier(Odd(), 2), 0)

    def test_answers_of_other_kinds(self):
        with pytest.raises(UserError, match=r"must return logits or an output with \.logits"):
            two = type("Two", (nn.Module,), {"forward": lambda self, pixels: (pixels, pixels)})()
            Classifier(two, 3).logits(torch.rand(1, 1, 2, 2))
        with pytest.raises(UserError, match=r"must give 3 logits per picture, got shape \(1, 4\)"):
            Classifier(nn.Flatten(), 3).logits(torch.rand(1, 1, 2, 2))

    def test_no_linear_head(self):
        with pytest.raises(UserError, match="name it as `head`"):
            _ = Classifier(nn.Sequential(nn.Linear(4, 5)), 3).head_name
