"""What a run takes over from its model, what the published settings are, and that a diverged model is never written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from classification_experiments import Laboratory, grid, grids

from salun_diffusers.arguments import parse
from salun_diffusers.classification import run
from salun_diffusers.classification.batches import Augmentation, even_sizes, in_order_of_content
from salun_diffusers.classification.config import TrainConfig, UnlearnConfig
from salun_diffusers.classification.datasets import load_pools
from salun_diffusers.classification.forget_split import forget_instances, read_indices
from salun_diffusers.classification.hyper_parameters import Training
from salun_diffusers.classification.membership import svc_efficacy, true_class_confidence
from salun_diffusers.classification.methods import METHODS
from salun_diffusers.classification.methods.dampening import SelectiveDampening
from salun_diffusers.classification.metrics import measure, measurements
from salun_diffusers.classification.models import load_classifier, load_record
from salun_diffusers.classification.presets import TRAINING, UNLEARNING, filled, unlearning_preset
from salun_diffusers.classification.training import learning_rates
from salun_diffusers.errors import UserError
from salun_diffusers.pictures.labelled_pictures import LabelledPictures
from salun_diffusers.programs import train_classifier as train
from salun_diffusers.programs import unlearn_classifier as unlearn


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class TestDivergence:
    @pytest.mark.parametrize(
        "words",
        [
            "--method ga --learning_rate 1e30 --batch_size 1000 --epochs 1",
            "--method iu --step 1e30 --inverse diag",
            "--method be --learning_rate 1e38 --batch_size 1000 --epochs 1",
            "--method salun --learning_rate 1e30 --batch_size 1000 --epochs 1",
        ],
    )
    def test_one_line_and_no_model(self, trained, tmp_path, capsys, words):
        typed = f"--model {trained} --forget_class 1 {words} --output_dir {tmp_path / 'run'}"
        assert unlearn.main(typed.split()) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and "lower --learning_rate" in error
        assert not (tmp_path / "run").exists() and not (tmp_path / "runs").exists()

    def test_of_a_starting_model(self, data_file, tmp_path, capsys):
        typed = (
            f"--dataset {data_file} --epochs 1 --batch_size 80 --learning_rate 1e38 --output_dir {tmp_path / 'model'}"
        )
        assert train.main(typed.split()) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and "NaN or infinity" in error
        assert not (tmp_path / "model").exists()

    def test_a_cell_that_breaks_its_model_has_failed(self, data_file, tmp_path):
        from classification_experiments import Cell

        lab = Laboratory(tmp_path, str(data_file), epochs=1)
        assert (
            "NaN or infinity"
            in lab.run(Cell("class", "iu", 0, settings=(("step", 1e30), ("inverse", "diag"))))["failed"]
        )


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ("", (0.0, 0.0)),
        ("--goal misclassify --weighting batch_size --step_size 0.1 --attack_steps 100 --holding 1", (0.5, 1.0)),
    ],
)
def test_l2ul_forgets_by_default_and_not_as_published(trained, tmp_path, words, left):
    """Four pictures, all of which the model knows before."""
    (tmp_path / "indices").write_text("0 5 10 19")
    typed = f"--model {trained} --forget_indices {tmp_path / 'indices'} --method l2ul {words} --copies 10 --output_dir"
    assert unlearn.main([*typed.split(), str(tmp_path / "run")]) == 0
    pairs = json.loads((tmp_path / "run" / "report.json").read_text())["comparisons"]
    [found] = [pair for pair in pairs if pair["name"].startswith("forget accuracy")]
    assert found["before"]["value"] == 1
    assert left[0] <= found["after"]["value"] <= left[1]


class TestOneRecipe:
    def test_retrain_as_a_method_is_the_reference(self, trained, tmp_path):
        """The same settings, augmentation and seed: the same weights, so that the gap between them is 0."""
        folder = tmp_path / "run"
        typed = f"--model {trained} --forget_class 1 --method retrain --retrain --output_dir {folder}"
        assert unlearn.main(typed.split()) == 0
        rows = {item["name"]: item for item in json.loads((folder / "report.json").read_text())["measurements"]}
        assert rows["average gap to Retrain"]["value"] == 0

    def test_it_is_the_models_and_flags_come_first(self):
        record = {"epochs": 7, "learning_rate": 0.3, "schedule": "multistep", "milestones": ["2", "5"]}
        made = run.make_method(UnlearnConfig(method="retrain", epochs=9), record)
        assert made.training == Training(epochs=9, learning_rate=0.3, schedule="multistep", milestones=("2", "5"))
        assert run.recipe_of(record) == dataclasses.replace(made.training, epochs=7)
        # Other methods have their own.
        assert run.make_method(UnlearnConfig(method="ft"), record).training == Training()

    def test_augmentation_is_the_models_unless_said(self):
        record = {"shift": 4, "flip": True}
        for words, expected in (
            ("", Augmentation(4, True)),
            ("--shift 0", Augmentation(0, True)),
            ("--flip off", Augmentation(4, False)),
            ("--shift 2 --flip off", Augmentation(2, False)),
        ):
            assert run.augmentation_of(parse(UnlearnConfig, words.split()), record) == expected
        assert run.augmentation_of(parse(UnlearnConfig, ["--flip", "on"]), {}) == Augmentation(0, True)

    def test_unlearning_uses_it(self, data_file, tmp_path, monkeypatch):
        typed = f"--dataset {data_file} --epochs 1 --image_size 8 --shift 1 --flip on --output_dir {tmp_path / 'model'}"
        assert train.main(typed.split()) == 0
        assert {"shift": 1, "flip": True}.items() <= load_record(tmp_path / "model").items()
        seen = []
        real = METHODS["ft"].__call__
        monkeypatch.setattr(METHODS["ft"], "__call__", lambda self, task: seen.append(task) or real(self, task))
        typed = f"--model {tmp_path / 'model'} --forget_class 1 --method ft --epochs 1 --output_dir {tmp_path / 'run'}"
        assert unlearn.main(typed.split()) == 0
        assert seen[0].augmentation == Augmentation(1, True)


class TestDampeningOrder:
    def shuffled(self, data: LabelledPictures) -> LabelledPictures:
        return data[torch.randperm(len(data), generator=torch.Generator().manual_seed(5))]

    def test_contents_decide_the_order(self, pools):
        once, again, other = (
            in_order_of_content(data, seed)
            for data, seed in ((pools.train, 0), (self.shuffled(pools.train), 0), (pools.train, 1))
        )
        assert torch.equal(once.pixels, again.pixels) and torch.equal(once.labels, again.labels)
        assert not torch.equal(once.pixels, other.pixels)
        assert torch.equal(once.labels.sort().values, pools.train.labels.sort().values)

    def test_the_result_does_not_depend_on_the_order_of_the_files(self, make_task, pools):
        """Bit by bit; ``stored``, as in the official code, does depend on it."""
        classifier = make_task().classifier
        by_class = pools.train[pools.train.labels.argsort(stable=True)]
        for order, same in (("drawn", True), ("stored", False)):
            method = SelectiveDampening(importance_batch_size=8, importance_order=order)
            found = [
                method.importance(classifier, data) for data in (pools.train, self.shuffled(pools.train), by_class)
            ]
            assert all(torch.equal(found[0][name], one[name]) for one in found[1:] for name in one) == same

    def test_batches_are_the_published_ones(self):
        assert SelectiveDampening().importance_batch_size == 64


def test_even_sizes():
    """Every picture once; sizes differ by one at most; those that are not 0 lie apart."""
    for count in range(30):
        for parts in range(1, 12):
            sizes = even_sizes(count, parts)
            assert sum(sizes) == count and len(sizes) == parts and max(sizes) - min(sizes) <= 1


class TestOfficialAttack:
    def test_measure_asks_as_it_is_told(self, make_task):
        """12 forgotten, 36 retained, 18 tested: official learns from the first 18 retained pictures, in order."""
        from salun_diffusers.classification.classifier import predict

        task = make_task()
        scores = [
            true_class_confidence(predict(task.classifier, data.pixels), data.labels)
            for data in (task.split.retain, task.split.test, task.split.forget)
        ]
        found = measure(task.classifier, task.split, mia="official")
        assert found.mia == svc_efficacy(*scores, official=True)
        assert measure(task.classifier, task.split).mia == svc_efficacy(*scores)
        rules = [
            next(row.protocol for row in measurements(one, whole_class=True) if row.name == "MIA efficacy")
            for one in (found, dataclasses.replace(found, mia_rule="drawn"))
        ]
        assert rules[0] != rules[1]

    def test_the_flag_reaches_it(self, trained, tmp_path, monkeypatch):
        asked = []

        def watched(*scores, official, **others):
            asked.append(official)
            return 0.5

        monkeypatch.setattr("salun_diffusers.classification.metrics.svc_efficacy", watched)
        for number, words in enumerate(("", "--mia official", "--preset salun-table1")):
            typed = (
                f"--model {trained} --forget_class 1 --method ft {words} --epochs 1 --output_dir {tmp_path}/{number}"
            )
            assert unlearn.main(typed.split()) == 0
        assert asked == [False, False, True, True, True, True]


class TestSchedule:
    def test_multistep(self):
        """×0.1 at 91 and at 136 of 182 epochs, which are counted from 0."""
        rates = learning_rates(Training(epochs=182, learning_rate=0.1, schedule="multistep"))
        assert rates[:91] == pytest.approx([0.1] * 91)
        assert rates[91:136] == pytest.approx([0.01] * 45)
        assert rates[136:] == pytest.approx([0.001] * 46)

    def test_as_torch_has_it(self):
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], 0.3)
        course = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3], gamma=0.1)
        expected = []
        for _ in range(5):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            course.step()
        own = Training(epochs=5, learning_rate=0.3, schedule="multistep", milestones=("2", "3"))
        assert learning_rates(own) == pytest.approx(expected)

    def test_cosine_and_constant(self):
        assert learning_rates(Training(epochs=4, learning_rate=2.0, schedule="cosine")) == pytest.approx(
            [2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5]
        )
        assert learning_rates(Training(epochs=2, learning_rate=2.0)) == [2.0, 2.0]

    def test_milestones_are_numbers(self, capsys, trained):
        assert unlearn.main(["--model", str(trained), "--forget_class", "1", "--milestones", "5", "x"]) == 2
        assert "--milestones must be whole numbers of epochs, got 'x'" in capsys.readouterr().err


def binary_cifar10(folder: Path, count: int) -> Path:
    """CIFAR-10's binary version with `count` pictures a file; a picture's first pixel is its number."""
    folder.mkdir()
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    rng = np.random.default_rng(0)
    for place, name in enumerate(names):
        records = rng.integers(0, 256, (count, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(count) % 10
        records[:, 1] = np.arange(count) + place * count
        (folder / name).write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(f"kind{number}" for number in range(10)) + "\n\n")
    return folder


class TestTable1:
    def test_the_settings_are_the_published_ones(self):
        """SGD 0.1, momentum 0.9, decay 5e-4, 182 epochs of 256, ×0.1 at 91 and 136; crop and flip; a tenth out."""
        known = filled(TrainConfig(preset="salun-table1"), TRAINING["salun-table1"])
        assert (known.model, known.dataset, known.validation_share) == ("resnet18", "cifar10", 0.1)
        assert (known.learning_rate, known.momentum, known.weight_decay) == (0.1, 0.9, 5e-4)
        assert (known.epochs, known.batch_size, known.schedule, known.milestones) == (
            182,
            256,
            "multistep",
            ("91", "136"),
        )
        assert (known.shift, known.flip, known.normalisation) == (4, "on", "cifar10")

    def test_flags_come_before_it(self):
        known = filled(TrainConfig(preset="salun-table1", epochs=3, flip="off", shift=0), TRAINING["salun-table1"])
        assert (known.epochs, known.flip, known.shift, known.batch_size) == (3, "off", 0, 256)

    @pytest.mark.parametrize("method", UNLEARNING["salun-table1"])
    def test_every_method_can_be_made(self, method):
        asked = UnlearnConfig(preset="salun-table1", method=method)
        made = run.make_method(filled(asked, unlearning_preset("salun-table1", method)), {"epochs": 182})
        assert type(made) is METHODS[method]
        if method not in ("iu", "retrain"):
            assert (made.training.epochs, made.training.batch_size) == (5 if method == "ga" else 10, 256)
            assert (
                made.training.schedule == "multistep"
                and learning_rates(made.training)[-1] == made.training.learning_rate
            )
        if method in ("rl", "salun"):
            assert (made.order, made.labels, made.training.learning_rate) == ("sequential", "any", 0.013)

    def test_methods_that_are_not_in_the_table(self, trained, capsys):
        typed = f"--model {trained} --forget_class 1 --preset salun-table1 --method scrub"
        assert unlearn.main(typed.split()) == 2
        assert "--preset salun-table1 has the methods salun, rl, " in capsys.readouterr().err

    def test_binary_version(self, tmp_path):
        pools = load_pools(str(binary_cifar10(tmp_path / "cifar", 20)), validation=0.1)
        assert (len(pools.train), len(pools.validation), len(pools.test)) == (90, 10, 20)
        assert pools.train.pixels.shape[1:] == (3, 32, 32) and pools.train.class_names[3] == "kind3"
        assert pools.test.pixels[:, 0, 0, 0].tolist() == list(range(100, 120))
        assert pools.test.labels.tolist() == [number % 10 for number in range(20)]

    @pytest.mark.parametrize("name", ["batches.meta.txt", "test_batch.bin"])
    def test_what_is_missing_or_damaged(self, tmp_path, name):
        folder = binary_cifar10(tmp_path / "cifar", 10)
        (folder / name).unlink()
        with pytest.raises(UserError, match=name):
            load_pools(str(folder))
        (folder / "data_batch_2.bin").write_bytes(b"123")
        (folder / "batches.meta.txt").write_text("a b c d e f g h i j")
        with pytest.raises(UserError, match=r"data_batch_2\.bin is damaged"):
            load_pools(str(folder))

    def test_from_the_program_on_a_stand_in(self, tmp_path, capsys):
        """Training and unlearning with the preset; only epochs and network are smaller. 90 of 100 are trained on."""
        folder, data = tmp_path / "model", binary_cifar10(tmp_path / "cifar", 20)
        typed = f"--preset salun-table1 --dataset {data} --model resnet_small --epochs 2 --output_dir {folder}"
        assert train.main(typed.split()) == 0
        record = load_record(folder)
        assert (record["batch_size"], record["schedule"], record["flip"]) == (256, "multistep", True)
        classifier, _ = load_classifier(folder)
        assert ([*classifier.mean], [*classifier.std]) == ([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616])
        for method in ("salun", "retrain"):
            typed = (
                f"--model {folder} --preset salun-table1 --forget_ratio 0.1 --method {method} --retrain --output_dir"
            )
            assert unlearn.main([*typed.split(), str(tmp_path / method)]) == 0
        report = json.loads((tmp_path / "salun" / "report.json").read_text())
        assert report["config"]["labels"] == "any" and report["config"]["mia"] == "official"
        assert [row["step"] for row in report["series"]][-1] == 10 * 2  # ten epochs of a forget and a retain batch

    def test_grey_pictures_have_no_such_normalisation(self, data_file, capsys):
        assert train.main(["--dataset", str(data_file), "--normalisation", "cifar10"]) == 2
        assert "is for pictures of 3 channels, these have 1" in capsys.readouterr().err

    def test_benchmark_has_grids_for_it(self, tmp_path):
        assert set(grids("salun-table1")) == set(UNLEARNING["salun-table1"]) - {"retrain"}
        for method in grids("salun-table1"):
            settings = grid(method, "salun-table1")
            assert len(settings) == 8 and all(dict(one).get("epochs", 10) in (5, 10) for one in settings)

    def test_benchmark_runs_with_it(self, tmp_path, monkeypatch):
        from classification_experiments import Cell

        data = binary_cifar10(tmp_path / "cifar", 20)
        lab = Laboratory(tmp_path / "lab", str(data), "resnet_small", 1, preset="salun-table1")
        for method in ("be", "salun"):
            made = lab.run(Cell("random-0.1", method, 0, settings=grid(method, "salun-table1")[0]))
            assert made["mia_rule"] == "official" and made["sizes"] == [9, 81, 20]
        assert lab.gap(Cell("random-0.1", "ft", 0, settings=grid("ft", "salun-table1")[0])) < 1


class TestIndices:
    def test_numbers_beyond_64_bits_are_out_of_range(self, pools):
        with pytest.raises(UserError, match="Forget index 99999999999999999999 is out of range; the training set has"):
            forget_instances(pools, [3, 99999999999999999999])

    def test_a_byte_order_mark_is_no_number(self, tmp_path):
        (tmp_path / "indices").write_bytes(b"\xef\xbb\xbf3 4\n")
        assert read_indices(tmp_path / "indices") == [3, 4]
