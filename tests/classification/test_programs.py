"""The programs, from the command line to the folder, and what they refuse in one line."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from safetensors.torch import load_file, save_file

from salun_diffusers.arguments import parse
from salun_diffusers.classification import run
from salun_diffusers.classification.config import METHOD_FLAGS, TRAINING_FLAGS, MethodName, TrainConfig, UnlearnConfig
from salun_diffusers.classification.hyper_parameters import HYPER_PARAMETERS, Training
from salun_diffusers.classification.methods import METHODS
from salun_diffusers.classification.presets import TRAINING
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.programs import train_classifier as train
from salun_diffusers.programs import unlearn_classifier as unlearn
from salun_diffusers.reports.report import EvaluationReport


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def words(**flags: object) -> list[str]:
    found: list[str] = []
    for name, value in flags.items():
        found += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return found


@pytest.fixture
def refused(capsys, trained):
    """Run a program, expect exit code 2, one line on stderr that holds all of some words, and no run folder."""

    def attempt(*contents: str, program=unlearn.main, **flags: object) -> None:
        flags = {"model": trained, **flags} if program is unlearn.main else flags
        assert program(words(**flags)) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
        for content in contents:
            assert content in captured.err

    return attempt


def test_unlearn_a_class(trained, tmp_path, capsys):
    from transformers import AutoModelForImageClassification

    folder = tmp_path / "run"
    flags = words(model=trained, forget_class=2, epochs=3, learning_rate=0.02, output_dir=folder, retrain=True)
    assert unlearn.main(flags) == 0
    assert str(folder / "model") in capsys.readouterr().out
    left = {path.name for path in folder.iterdir()}
    assert left == {"model", "mask.safetensors", "report.json", "report.html", "run.json"}
    report = EvaluationReport.from_json(json.loads((folder / "report.json").read_text()))
    assert report.concept == "class 2" and report.receipt.violations == 0
    assert report.mask.density == pytest.approx(0.5, abs=1e-4)
    names = [pair.name for pair in report.comparisons]
    assert names[:2] == ["forget accuracy (1 - UA)", "test accuracy (TA)"]
    assert "average gap to Retrain" in [item.name for item in report.measurements]
    page = (folder / "report.html").read_text()
    assert "class 2" in page and "Unlearning report" in page
    before = AutoModelForImageClassification.from_pretrained(trained).state_dict()
    after = AutoModelForImageClassification.from_pretrained(folder / "model").state_dict()
    mask = SaliencyMask.load(folder / "mask.safetensors")
    assert all(torch.equal(after[name][~mask[name]], before[name][~mask[name]]) for name in mask)


def test_unlearn_instances_from_a_file_by_a_mask_file(trained, tmp_path):
    from salun_diffusers.classification.models import load_classifier

    (tmp_path / "indices.txt").write_text("5\n")
    classifier, _ = load_classifier(trained)
    SaliencyMask.full(classifier.parameters).save(tmp_path / "mask.safetensors")
    flags = words(
        model=trained,
        forget_indices=tmp_path / "indices.txt",
        method="l2ul",
        copies=2,
        attack_steps=2,
        epochs=2,
        mask=tmp_path / "mask.safetensors",
    )
    assert unlearn.main(flags) == 0
    [run] = (tmp_path / "runs").iterdir()
    assert run.name == "0000-1-instances-l2ul"
    assert json.loads((run / "report.json").read_text())["verdict"] in ("not measured", "over-erased")


def test_expanding_keeps_its_class_in_the_folder(trained, tmp_path):
    flags = words(model=trained, forget_class=1, method="be", keep_output="on", epochs=1, output_dir=tmp_path / "run")
    assert unlearn.main(flags) == 0
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["id2label"]["4"] == "forgotten"


def test_every_method_has_its_hyper_parameters():
    assert set(get_args(MethodName)) == set(METHODS) == set(HYPER_PARAMETERS)
    assert all(issubclass(METHODS[name], kind) for name, kind in HYPER_PARAMETERS.items())


def other(hint: object, value: object) -> tuple[str, object]:
    """A value that is not the default, as it is typed and as it arrives."""
    if hint is bool:
        return ("off", False) if value else ("on", True)
    if isinstance(value, tuple):
        return "7", ("7",)
    if get_args(hint):
        changed = next(choice for choice in get_args(hint) if choice != value)
    else:
        changed = value + 1 if hint is int else value / 2
    return str(changed), changed


@pytest.mark.parametrize("method", HYPER_PARAMETERS)
def test_every_flag_reaches_its_method(method):
    kind = HYPER_PARAMETERS[method]
    hints = get_type_hints(kind)
    for name in set(kind.__dataclass_fields__) - {"training"}:
        text, value = other(hints[name], getattr(kind(), name))
        made = run.make_method(parse(UnlearnConfig, ["--method", method, f"--{name}", text]))
        assert made == dataclasses.replace(METHODS[method](), **{name: value})
    if "training" in kind.__dataclass_fields__:
        for name, hint in get_type_hints(Training).items():
            text, value = other(hint, getattr(kind().training, name))
            made = run.make_method(parse(UnlearnConfig, ["--method", method, f"--{name}", text]))
            assert made.training == dataclasses.replace(kind().training, **{name: value})


def test_flags_keep_their_place_and_presets_are_complete():
    names = [field.name for field in dataclasses.fields(UnlearnConfig)]
    assert names[names.index("method") :][:3] == ["method", "retain_weight", "order"]
    assert names[names.index("temperature") :][:2] == ["temperature", "epochs"]
    assert set(METHOD_FLAGS).isdisjoint(TRAINING_FLAGS)
    open_ones = {name for name in TrainConfig.__dataclass_fields__ if getattr(TrainConfig(), name) is None}
    for preset in TRAINING.values():  # Each says all that is left open, but what the network decides.
        assert open_ones - {"image_size"} == set(preset)
        for name in TRAINING_FLAGS:
            assert getattr(Training(**{name: preset[name]}), name) == preset[name]


class TestRefused:
    def test_nothing_or_two_things_to_forget(self, refused):
        refused("--forget_class, --forget_ratio, --forget_indices; got none")
        refused("got --forget_class and --forget_ratio", forget_class=1, forget_ratio=0.1)

    def test_class_that_is_not_there(self, refused):
        refused("--forget_class 9 is not in the data; classes are 0, 1, 2, 3", forget_class=9)

    def test_empty_and_total_forget_set(self, refused):
        refused("forget set is empty", forget_ratio=0.001)
        refused("all 80 training pictures", forget_ratio=1.0)
        refused("above 0 and at most 1, got 10", forget_ratio=10)

    @pytest.mark.parametrize(("text", "word"), [("80", "out of range"), ("3 3", "2 times"), ("x", "whole numbers")])
    def test_indices(self, refused, tmp_path, text, word):
        (tmp_path / "indices.txt").write_text(text)
        refused(word, forget_indices=tmp_path / "indices.txt")

    def test_settings_of_another_method(self, refused):
        refused("--penalty is no setting of --method salun; it has --retain_weight", forget_class=1, penalty=0.1)
        refused("--epochs has no effect with --method iu", forget_class=1, method="iu", epochs=3)
        refused("Its batches are --importance_batch_size", forget_class=1, method="ssd", batch_size=3)

    def test_models(self, refused, tmp_path):
        refused("is no folder; make one by `salun train-classifier`", forget_class=1, model=tmp_path / "none")
        (tmp_path / "empty").mkdir()
        refused("has no config.json", forget_class=1, model=tmp_path / "empty")

    def test_other_data_than_the_model_was_trained_on(self, refused, tmp_path):
        refused("is not what", "was trained with", forget_class=1, dataset="digits")
        refused("--data_seed 5 is not what", forget_class=1, data_seed=5)

    def test_another_path_to_the_same_data_is_no_other_data(self, trained, tmp_path):
        record = json.loads((trained / "training.json").read_text())
        (tmp_path / "link.safetensors").symlink_to(Path(record["dataset"]).resolve())
        typed = words(model=trained, forget_class=1, epochs=1, dataset=tmp_path / "link.safetensors")
        assert unlearn.main([*typed, "--output_dir", str(tmp_path / "out")]) == 0

    @pytest.mark.parametrize(
        ("name", "value"),
        [("validation_share", "x"), ("validation_share", 1), ("validation_share", -0.1), ("data_seed", 0.5),
         ("epochs", 2**70), ("epochs", 10**9), ("shift", -1), ("flip", "yes"), ("dataset", 3), ("learning_rate", True)],
    )  # fmt: skip
    def test_a_record_of_the_training_that_is_none(self, refused, trained, tmp_path, name, value):
        folder = Path(shutil.copytree(trained, tmp_path / "copy"))
        record = json.loads((folder / "training.json").read_text())
        (folder / "training.json").write_text(json.dumps({**record, name: value}))
        refused("training.json is damaged", repr(name), forget_class=1, model=folder)

    def test_model_with_another_number_of_classes(self, refused, trained, tmp_path, data_file):
        tensors = load_file(data_file)
        tensors["train_labels"][0] = 6
        save_file(tensors, tmp_path / "seven.safetensors")
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        for path in trained.iterdir():
            if path.name != "training.json":
                (elsewhere / path.name).write_bytes(path.read_bytes())
        refused("has 4 classes, the data 7", forget_class=1, model=elsewhere, dataset=tmp_path / "seven.safetensors")

    def test_folder_that_is_not_empty(self, refused, tmp_path):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").touch()
        refused("must be an empty or new folder", forget_class=1, output_dir=tmp_path / "full")
        refused("must be an empty or new folder", program=train.main, output_dir=tmp_path / "full")

    def test_masks(self, refused, tmp_path):
        refused("--mask must be one of saliency, random", forget_class=1, mask="salency")
        SaliencyMask.full({"w": (3, 3)}).save(tmp_path / "mask.safetensors")
        refused("mask.safetensors", "The mask does not fit", forget_class=1, mask=tmp_path / "mask.safetensors")

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            (lambda t: t.pop("train_labels"), "train_labels is missing"),
            (lambda t: t["train_labels"].fill_(-1), "labels are missing"),
            (lambda t: t["train_labels"].fill_(2), "must have pictures of two classes or more"),
            # One picture is no "forget set": nobody asked to forget anything.
            (
                lambda t: t.update({name: t[name][:1] for name in ("train_pixels", "train_labels")}),
                "found 1 pictures of 1.",
            ),
            (lambda t: t["train_pixels"][3].fill_(torch.nan), "1 hold NaN or infinity, first number 3"),
        ],
    )
    def test_data(self, refused, tmp_path, data_file, change, word):
        tensors = load_file(data_file)
        change(tensors)
        save_file(tensors, tmp_path / "bad.safetensors")
        refused(word, program=train.main, dataset=tmp_path / "bad.safetensors", epochs=1)
        assert not (tmp_path / "runs").exists()

    def test_interrupted(self, trained, monkeypatch, capsys):
        def stop(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(run, "check_request", stop)
        assert unlearn.main(words(model=trained, forget_class=1)) == 130
        assert capsys.readouterr().err == "interrupted: no model was written.\n"


def test_fewer_retained_than_test_pictures(trained, tmp_path):
    """90 % of 80 are forgotten: 8 are retained, 40 tested; and the forget set of 1 is smaller than a batch."""
    assert unlearn.main(words(model=trained, forget_ratio=0.9, method="ft", epochs=1, output_dir=tmp_path / "a")) == 0
    assert unlearn.main(words(model=trained, forget_ratio=0.0125, epochs=1, output_dir=tmp_path / "b")) == 0


def test_help_and_plain_mistakes_wait_for_nothing_heavy():
    code = (
        "import sys\n"
        "from salun_diffusers.programs import train_classifier as train, unlearn_classifier as unlearn\n"
        "for program in (train, unlearn):\n"
        "    try: program.main(['--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "assert unlearn.main(['--forget_class', '1', '--model', 'nowhere']) == 2\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'numpy', 'sklearn', 'torchmetrics'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(unlearn.__file__).parents[2])},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("HEAVY []")
