"""What is said of an unlearned classifier, by hand; and which models and data are no pair to be unlearned."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from salun_diffusers.classification.class_order import in_order_of_model
from salun_diffusers.classification.forget_split import Pools, forget_class, forget_fraction
from salun_diffusers.classification.metrics import Scores, accuracy, measurements
from salun_diffusers.classification.models import load_classifier
from salun_diffusers.classification.preprocessing import PROCESSOR, read_preprocessing
from salun_diffusers.classification.run_report import Outcome, decide, subject_of
from salun_diffusers.errors import UserError
from salun_diffusers.pictures.labelled_pictures import LabelledPictures
from salun_diffusers.programs import train_classifier as train
from salun_diffusers.programs import unlearn_classifier as unlearn


def scores(forget: float, test: float = 0.95, mia: float = 0.0, n: int = 100, tested: int = 200) -> Scores:
    return Scores(forget, 1.0, test, mia, 0.5, (n, 900, tested), classes=10)


def two_classes(test: float, tested: int) -> Scores:
    return dataclasses.replace(scores(1.0, test=test, tested=tested), classes=2)


def judged(
    before: Scores, after: Scores, *, whole_class: bool = True, reference: Scores | None = None
) -> tuple[str, str]:
    return decide(Outcome("class 3", whole_class, before, after, reference, [], {}, "cpu"))


class TestClass:
    @pytest.mark.parametrize(
        ("before", "after", "verdict", "words"),
        [
            (scores(0.99), scores(0.0), "erased", "0 % of the forget set is recognised (99 % before)"),
            (scores(0.99), scores(0.02), "erased", "2 % of the forget set"),
            (scores(0.99), scores(0.03), "partly erased", "3 % of the forget set is recognised (99 % before)"),
            (scores(0.99), scores(0.5), "partly erased", "raise the learning rate"),
            (scores(0.99), scores(0.98), "no effect", "raise the learning rate"),
            (scores(0.99), scores(0.0, test=0.89), "over-erased", "test accuracy went from 95 % to 89 %"),
            # A head drawn at random, and labels in another order: nothing was recognised.
            (scores(0.0, test=0.056), scores(0.0, test=0.091), "not measured", "recognises 5.6 % of 200 test pictures"),
            (scores(0.0), scores(0.0), "not measured", "recognises 0 % of 100 pictures of the class"),
            # Wilson's interval of 14 in 100 begins at 8.5 %, that of 20 at 13.3 %.
            (scores(0.14), scores(0.0), "not measured", "who guesses among 10 classes, 10 %"),
            (scores(0.2), scores(0.0), "erased", "(20 % before)"),
            # All of a few are right: that is not "nothing to forget".
            (two_classes(1.0, 3), two_classes(0.0, 3), "not measured", "50 %, which 3 cannot tell apart: use more"),
            # A model that calls everything a three.
            (scores(1.0, test=0.0), scores(0.0, test=0.1), "not measured", "recognises 0 % of 200 test pictures"),
            (scores(1, n=12), scores(0, n=12), "not measured", "12 pictures are too few to tell: use at least 16"),
            (scores(0.99), scores(0.0, tested=8), "not measured", "8 test pictures are too few to tell: use at least"),
        ],
    )
    def test_verdict(self, before: Scores, after: Scores, verdict: str, words: str) -> None:
        decided, reason = judged(before, after)
        assert (decided, words in reason) == (verdict, True), reason

    def test_without_a_known_number_of_classes_something_must_have_been_recognised(self) -> None:
        old = dataclasses.replace(scores(0.0), classes=0)
        assert judged(old, old)[0] == "not measured"
        assert judged(dataclasses.replace(scores(0.9), classes=0), scores(0.0))[0] == "erased"


class TestPictures:
    @pytest.mark.parametrize(
        ("after", "goal", "verdict", "words"),
        [
            (scores(0.95, mia=0.1), scores(0.94, mia=0.12), "erased", "average gap to Retrain"),
            (scores(1.0, mia=0.1), scores(0.9, mia=0.1), "no effect", "UA is 0 %, Retrain's 10 %"),
            (scores(0.8, mia=0.1), scores(0.9, mia=0.1), "over-erased", "UA is 20 %, Retrain's 10 %"),
            (scores(0.9, mia=0.9), scores(0.9, mia=0.1), "over-erased", "MIA is 90 %, Retrain's 10 %"),
            (scores(0.9, test=0.7), scores(0.9), "over-erased", "test accuracy went from 95 % to 70 %"),
            (scores(1, n=4), scores(1, n=4), "not measured", "4 pictures are too few to tell: forget at least 16"),
        ],
    )
    def test_verdict(self, after: Scores, goal: Scores, verdict: str, words: str) -> None:
        before = dataclasses.replace(scores(1.0), sizes=(after.sizes[0], 900, 200))
        decided, reason = judged(before, after, whole_class=False, reference=goal)
        assert (decided, words in reason) == (verdict, True), reason

    def test_only_retrain_can_tell(self) -> None:
        decided, reason = judged(scores(1.0), scores(0.9), whole_class=False)
        assert decided == "not measured" and "only --retrain can tell" in reason


class TestMeasured:
    def test_a_mean_over_splits_that_overlap_has_no_interval(self) -> None:
        rows = {row.name: row for row in measurements(scores(0.5), whole_class=True, subject="class 3")}
        assert rows["loss attack accuracy"].interval is None and rows["loss attack accuracy"].text() == "50 %"
        assert rows["MIA efficacy"].interval is not None
        assert {row.subject for row in rows.values()} == {"class 3"}

    def test_subjects_tell_data_and_forget_sets_apart(self, pools: Pools) -> None:
        subjects = {
            subject_of(split)
            for split in (
                forget_class(pools, "1"),
                forget_class(pools, "2"),
                forget_fraction(pools, 0.25, seed=0),
                forget_fraction(pools, 0.25, seed=1),
                forget_class(dataclasses.replace(pools, test=pools.validation), "1"),
            )
        }
        assert len(subjects) == 5
        assert subject_of(forget_class(pools, "1")) in subjects
        assert any(subject.startswith("class 1, 12 of 48 pictures ") for subject in subjects)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_a_model_that_broke_is_told_in_one_line(self, value: float) -> None:
        logits = torch.zeros(4, 3)
        logits[2, 1] = value
        with pytest.raises(UserError, match="has diverged: it gives NaN or infinity for 1 of 4 pictures"):
            accuracy(logits, torch.zeros(4, dtype=torch.int64))
        with pytest.raises(UserError, match="at least one picture"):
            accuracy(logits[:0], torch.zeros(0, dtype=torch.int64))


class TestNames:
    def pools(self, *names: str) -> Pools:
        def data(labels: list[int]) -> LabelledPictures:
            pixels = torch.tensor(labels).float().view(-1, 1, 1, 1) / 10
            return LabelledPictures(pixels, torch.tensor(labels, dtype=torch.int64), names)

        return Pools(data([0, 1, 2, 2]), data([]), data([2, 0]))

    def test_they_are_brought_into_the_models_order(self) -> None:
        """Apple is 0 in the data and 1 in the model, and so on; pixels stay with their pictures."""
        found = in_order_of_model(self.pools("apple", "mouse", "zebra"), ("zebra", "Apple", "mouse, rodent"), Path("m"))
        assert found.train.labels.tolist() == [1, 2, 0, 0] and found.test.labels.tolist() == [0, 1]
        assert found.train.class_names == found.test.class_names == ("zebra", "apple", "mouse")
        assert found.train.pixels.flatten().tolist() == pytest.approx([0, 0.1, 0.2, 0.2])

    @pytest.mark.parametrize("names", [("apple", "mouse", "zebra"), ("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "1", "2")])
    def test_equal_names_and_numbers_keep_theirs(self, names: tuple[str, ...]) -> None:
        pools = self.pools("apple", "mouse", "zebra")
        assert in_order_of_model(pools, names, Path("m")) is pools

    @pytest.mark.parametrize(
        ("names", "words"),
        [
            (("zebra", "apple", "house"), "m has no class 'mouse' of the data (its nearest is 'house')"),
            (("zebra", "apple"), "m has 2 classes, the data 3"),
            (("2", "0", "1"), "has no class 'apple'"),
            (("apple, zebra", "mouse", "cat"), "Two classes of the data are 'apple, zebra'"),
        ],
    )
    def test_others_are_refused(self, names: tuple[str, ...], words: str) -> None:
        with pytest.raises(UserError) as error:
            in_order_of_model(self.pools("apple", "mouse", "zebra"), names, Path("m"))
        assert words in str(error.value)


class TestPreprocessing:
    @pytest.mark.parametrize(
        ("change", "size", "mean", "std"),
        [
            ({"size": 224}, 224, 0.5, 0.25),
            ({"size": [32, 32]}, 32, 0.5, 0.25),
            ({"size": {"shortest_edge": 40}}, 40, 0.5, 0.25),
            ({"size": {"height": 8, "width": 8}}, 8, 0.5, 0.25),
            ({"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": 32}, 32, 0.5, 0.25),
            (
                {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 4, "width": 4}},
                4,
                0.5,
                0.25,
            ),
            ({"size": None}, None, 0.5, 0.25),
            ({"size": 64, "do_resize": False}, None, 0.5, 0.25),
            ({"do_normalize": False}, 16, 0.0, 1.0),
            ({"do_normalize": False, "image_mean": None, "image_std": None}, 16, 0.0, 1.0),
            ({"image_mean": [0.5], "image_std": [0.25]}, 16, 0.5, 0.25),
            # 0…255 without rescaling: (255 p - 127.5) / 63.75 = (p - 0.5) / 0.25.
            ({"do_rescale": False, "image_mean": 127.5, "image_std": 63.75}, 16, 0.5, 0.25),
            ({"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 0.5}, 16, 0.5, 0.25),
        ],
    )
    def test_is_understood(
        self, tmp_path: Path, change: dict[str, Any], size: int | None, mean: float, std: float
    ) -> None:
        said = {"size": 16, "image_mean": 0.5, "image_std": 0.25, **change}
        (tmp_path / PROCESSOR).write_text(json.dumps(said))
        found = read_preprocessing(tmp_path)
        assert found.size == size
        assert (found.mean, found.std) == (pytest.approx((mean,)), pytest.approx((std,)))

    def test_without_a_file(self, tmp_path: Path) -> None:
        found = read_preprocessing(tmp_path)
        assert (found.size, found.mean, found.std) == (None, (0.5,), (0.5,))

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("[]", "a JSON object is required, found list"),
            ("{", "is damaged"),
            ('{"size": 16, "image_mean": null, "image_std": [0.5]}', "not by what: write image_mean"),
            ('{"size": 16, "image_mean": [0.5]}', "write image_std"),
            ('{"image_mean": [], "image_std": []}', "write image_mean"),
            ('{"image_mean": ["a"], "image_std": [1]}', "must have numbers as image_mean, got 'a'"),
            ('{"image_mean": NaN, "image_std": 1}', "a finite number is required, found NaN"),
            ('{"image_mean": [0.5], "image_std": [0]}', "positive image_std"),
            ('{"image_mean": [0.5, 0.5, 0.5], "image_std": [1]}', "as many positive image_std"),
            ('{"size": "big", "image_mean": 0, "image_std": 1}', "its size is 'big'"),
            ('{"size": true, "image_mean": 0, "image_std": 1}', "its size is True"),
            ('{"size": 0, "image_mean": 0, "image_std": 1}', "its size is 0"),
            ('{"size": {"height": 8, "width": 9}, "image_mean": 0, "image_std": 1}', "one side of square pictures"),
            ('{"rescale_offset": true, "image_mean": 0, "image_std": 1}', "by more than a positive factor"),
            ('{"rescale_factor": 0, "image_mean": 0, "image_std": 1}', "by more than a positive factor"),
        ],
    )
    def test_what_is_not_understood_is_refused(self, tmp_path: Path, content: str, words: str) -> None:
        (tmp_path / PROCESSOR).write_text(content)
        with pytest.raises(UserError) as error:
            read_preprocessing(tmp_path)
        assert words in str(error.value) and PROCESSOR in str(error.value)

    def test_of_another_number_of_channels(self, trained: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(trained, tmp_path / "copied"))
        (folder / PROCESSOR).write_text('{"size": 16, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
        with pytest.raises(UserError, match="normalises 3 channels, the model takes pictures of 1"):
            load_classifier(folder)


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def attempt(*contents: str, program: Any = unlearn.main, **flags: object) -> None:
        words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
        assert program(words) == 2
        [error] = [line for line in capsys.readouterr().err.split("\n") if line and "\r" not in line]
        assert error.startswith("error: "), error
        for content in contents:
            assert content in error
        assert not (tmp_path / "runs").exists()

    return attempt


def test_a_head_that_would_be_drawn_at_random_is_refused(refused, trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "headless"))
    weights = load_file(folder / "model.safetensors")
    head = [name for name in weights if name.startswith("classifier")]
    kept = {name: tensor for name, tensor in weights.items() if name not in head}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    refused(f"lacks {len(head)} weights, the first is {min(head)}", "drawn at random", model=folder, forget_class=1)


def test_classes_of_other_names_are_refused(refused, trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "named"))
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(number): name for number, name in enumerate(("cat", "dog", "cow", "hen"))}
    (folder / "config.json").write_text(json.dumps(config))
    data = tmp_path / "pictures"
    from PIL import Image

    for part in ("train", "test"):
        for name in ("cat", "cow", "dog", "pig"):
            (data / part / name).mkdir(parents=True)
            for number in range(4):
                Image.new("L", (16, 16), 20 * number).save(data / part / name / f"{number}.png")
    (folder / "training.json").unlink()
    refused("has no class 'pig' of the data", model=folder, dataset=data, forget_class="cat")


@pytest.mark.parametrize(
    "flags",
    [
        {"method": "ga", "learning_rate": 1e30, "batch_size": 1000, "epochs": 1},  # The last step breaks it.
        {"method": "iu", "step": 1e30},
        {"method": "iu", "step": 1e38, "inverse": "diag"},
    ],
)
def test_a_model_that_breaks_in_its_last_step_leaves_one_line(refused, trained: Path, flags: dict[str, object]) -> None:
    refused("diverged", model=trained, forget_class=1, **flags)


def test_a_starting_model_that_broke_is_not_written(refused, data_file: Path, tmp_path: Path) -> None:
    refused(
        "diverged", program=train.main, dataset=data_file, epochs=1, learning_rate=1e30, batch_size=1000,
        output_dir=tmp_path / "start",
    )  # fmt: skip
    assert not (tmp_path / "start").exists()


def test_unlearned_classifiers_share_the_rows_of_one_forget_set(trained: Path, tmp_path: Path) -> None:
    """Two classes of one data set, one of them by two rates: rows of two runs and rows of the third."""
    from salun_diffusers.evaluation.comparison import compare_runs, read_runs

    for name, wanted, rate in (("a", 1, 1e-3), ("b", 2, 1e-3), ("c", 1, 2e-3)):
        flags = ["--model", trained, "--forget_class", wanted, "--epochs", 1, "--learning_rate", rate]
        assert unlearn.main([*map(str, flags), "--output_dir", str(tmp_path / name)]) == 0
    table = compare_runs(read_runs([f"{name}={tmp_path / name / 'report.json'}" for name in "abc"]))
    rows = {
        key: [run.name for run, item in zip(table.runs, table.row(key), strict=True) if item and run.name != "before"]
        for key in table.keys
        if key[0] in ("forgotten", "retained", "membership", "time")
    }
    assert len(rows) == 2 * 7
    assert all(runs in (["a", "c"], ["b"]) for runs in rows.values())
