"""Each evaluation program from its command line to its files, and every bad input in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from salun_diffusers.demo.renderer import render, sample_scene
from salun_diffusers.evaluation.manifest import Manifest, PictureRow
from salun_diffusers.evaluation.record import EvaluationRecord

pytest.importorskip("torchmetrics")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Default folders would lie here."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a program; returns exit code, stdout and stderr."""

    def call(name: str, *words: object) -> tuple[int, str, str]:
        code = int(script(name).main([str(word) for word in words]))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def refused(run: Callable[..., tuple[int, str, str]]) -> Callable[..., None]:
    """Expect exit code 2 and one line on stderr that holds some words."""

    def attempt(content: str, name: str, *words: object) -> None:
        code, out, err = run(name, *words)
        lines = [line for line in err.splitlines() if "it/s" not in line]
        assert code == 2, (out, err)
        assert len(lines) == 1 and lines[0].startswith("error: ") and content in lines[0], err
        assert out == ""

    return attempt


def record(path: str | Path) -> EvaluationRecord:
    return EvaluationRecord.from_json(json.loads(Path(path).read_text()))


def shapes(folder: Path, count: int, seed: int, wrong: int = 0, steps: int = 12) -> Path:
    """Renders with a manifest that says what they show, the first few wrongly."""
    folder.mkdir()
    rng, rows = np.random.default_rng(seed), []
    for number in range(count):
        scene = sample_scene(rng)
        render(scene).save(folder / f"{number:03d}.png")
        label = ("circle" if scene.shape != "circle" else "star") if number < wrong else scene.shape
        rows.append(PictureRow(f"{number:03d}.png", f"a photo of a {label}", number, 3.0, number, 0, label))
    Manifest(tuple(rows), {"model": "renderer", "num_inference_steps": steps}).save(folder)
    return folder


class TestNudity:
    @pytest.fixture
    def faces(self, tmp_path: Path) -> Path:
        data = pytest.importorskip("skimage.data")
        (tmp_path / "faces").mkdir()
        Image.fromarray(data.astronaut()).save(tmp_path / "faces" / "0_0.png")
        Image.fromarray(data.coffee()).resize((150, 100)).save(tmp_path / "faces" / "1_0.jpg")
        return tmp_path / "faces"

    def test_pictures_of_any_size(self, run, faces: Path) -> None:
        code, out, _ = run("evaluate_nudity", "--images", faces, "--protocol", "unlearndiffatk", "--output_dir", "out")
        assert code == 0 and "pictures with nudity" in out
        found = record("out/nudity.json")
        assert found.measurements[0].n == 2 and found.measurements[0].value == 0
        assert "score > 0.75" in found.measurements[0].protocol
        assert "salun evaluate nudity" in found.measurements[0].command
        page = Path("out/nudity.html").read_text()
        assert "<svg" in page and "female breast exposed" in page and "http:" not in page.split("<pre>")[0]

    def test_before_and_after_with_detections_only(self, run, faces: Path, tmp_path: Path) -> None:
        kept = tmp_path / "kept"
        (kept / "detections").mkdir(parents=True)
        rows = tuple(PictureRow(f"{n}.png", "a nude person", n, 7.5, n) for n in range(2))
        Manifest(rows, {}, explicit=True).save(kept)
        box = {"part": "FEMALE_BREAST_EXPOSED", "score": 0.8, "place": [0, 0, 5, 5]}
        from salun_diffusers.evaluation.nudity import DETECTED_WITH

        for n in range(2):
            content = {**DETECTED_WITH, "boxes": [box] * n * 2}
            (kept / "detections" / f"{n}.png.json").write_text(json.dumps(content))
        (tmp_path / "prompts.csv").write_text("prompt,case_number\na,0\nb,1\n")
        code, _, err = run("evaluate_nudity", "--before", kept, "--images", faces, "--prompts", "prompts.csv")
        assert code == 0, err
        pairs = {pair.name: pair for pair in record("runs/evaluation/nudity.json").comparisons}
        assert pairs["pictures with nudity"].before.value == 0.5
        assert pairs["female breast exposed"].before.value == 2
        assert pairs["prompts with nudity, no attack (pre-ASR)"].after.value == 0

    def test_one_image_gives_a_rate(self, run, noise_folder) -> None:
        assert run("evaluate_nudity", "--images", noise_folder(1))[0] == 0
        assert record("runs/evaluation/nudity.json").measurements[0].high > 0.75

    def test_bad_input(self, refused, tmp_path: Path, noise_folder) -> None:
        (tmp_path / "empty").mkdir()
        (broken := tmp_path / "broken").mkdir()
        (broken / "a.png").write_bytes(b"no picture")
        refused("--images is required", "evaluate_nudity")
        refused("it has none", "evaluate_nudity", "--images", "empty")
        refused("cannot be read as a picture", "evaluate_nudity", "--images", "broken")
        refused("must be one of mace", "evaluate_nudity", "--images", noise_folder(1), "--protocol", "q16")
        (tmp_path / "prompts.csv").write_text("sentence\na\n")
        refused("column `prompt`", "evaluate_nudity", "--images", noise_folder(1), "--prompts", "prompts.csv")
        words = ("--before", noise_folder(3), "--images", noise_folder(2))
        refused("must hold equally many", "evaluate_nudity", *words)

    def test_unfinished_detections(self, refused, tmp_path: Path) -> None:
        (tmp_path / "kept").mkdir()
        Manifest((PictureRow("0.png", "a", 0, 7.5, 0),), {}, explicit=True).save(tmp_path / "kept")
        refused("is unfinished", "evaluate_nudity", "--images", "kept")


class TestFid:
    def test_demo_features(self, run, tmp_path: Path) -> None:
        first, second = shapes(tmp_path / "first", 110, 1), shapes(tmp_path / "second", 120, 2)
        words = ("--images", first, "--reference", second, "--extractor", "demo", "--bootstraps", 2)
        code, _, err = run("evaluate_fid", *words)
        assert code == 0, err
        found = record("runs/evaluation/fid.json")
        assert [item.name.split(" (")[0] for item in found.measurements] == [
            "FD of demo features",
            "KID",
            "precision",
            "recall",
        ]
        assert "warning" not in err and len(list(Path("runs/features").glob("*.safetensors"))) == 2
        (reference,) = (file for file in Path("runs/features").glob("*") if f"{120}" in str(_rows(file)))
        again = run(
            "evaluate_fid", "--images", first, "--reference", reference, "--extractor", "demo", "--bootstraps", 2
        )
        assert again[0] == 0
        assert record("runs/evaluation/fid.json").measurements == tuple(
            type(item)(**{**item.to_json(), "command": record("runs/evaluation/fid.json").command})
            for item in found.measurements
        )

    def test_before_and_mixed_sizes(self, run, refused, noise_folder) -> None:
        one, other = noise_folder(101), noise_folder(101, seed=1)
        Image.new("RGB", (30, 20)).save(other / "200.png")
        words = ("--images", one, "--reference", other, "--before", one, "--extractor", "demo", "--bootstraps", 0)
        refused("--resize N", "evaluate_fid", *words)
        code, _, err = run("evaluate_fid", *words, "--resize", 16)
        assert code == 0, err
        pair = record("runs/evaluation/fid.json").comparisons[0]
        assert pair.before.value == pair.after.value and "after resizing to 16 px" in pair.after.protocol

    @pytest.fixture
    def classes(self, tmp_path: Path) -> Callable[..., Path]:
        """A folder with 50 pictures of noise in each of some sub-folders, and 20 of circles."""

        def make(name: str, *names: str, seed: int = 0) -> Path:
            rng = np.random.default_rng(seed)
            for label in names:
                (tmp_path / name / label).mkdir(parents=True)
                for number in range(20 if label == "circle" else 50):
                    pixels = rng.integers(0, 50 + 10 * len(label), (16, 16, 3)).astype(np.uint8)
                    Image.fromarray(pixels).save(tmp_path / name / label / f"{number}.png")
            return tmp_path / name

        return make

    def test_a_file_of_features_leaves_out_what_a_folder_does(self, run, refused, classes, tmp_path: Path) -> None:
        """60 circles of 180 pictures go on every side, whether the reference is a folder or its features."""
        ours, theirs = (
            classes("ours", "circle", "square", "star"),
            classes("theirs", "circle", "square", "star", seed=1),
        )
        words = ("--images", ours, "--extractor", "demo", "--bootstraps", 0)
        assert run("evaluate_fid", *words, "--reference", theirs, "--cache_dir", "kept")[0] == 0
        from salun_diffusers.evaluation.feature_files import FeatureSet

        (features,) = (file for file in Path("kept").glob("*") if FeatureSet.load(file).source == str(theirs))
        found = []
        for reference in (theirs, features):
            code, _, err = run("evaluate_fid", *words, "--reference", reference, "--exclude", "circle")
            assert code == 0, err
            found.append(record("runs/evaluation/fid.json").measurements)
        folder, file = ([{**item.to_json(), "command": ""} for item in side] for side in found)
        assert folder == file
        assert "reference of 100 pictures" in found[0][0].protocol and found[0][0].n == 100
        assert found[0][0].subject == "without circle"
        # What is known to be without circles needs no second look; what is not known is refused.
        (without,) = (
            path for path in Path("runs/features").glob("*")
            if FeatureSet.load(path).without == ("circle",) and FeatureSet.load(path).source == str(theirs)
        )  # fmt: skip
        code, _, err = run("evaluate_fid", *words, "--reference", without, "--exclude", "circle")
        assert code == 0, err
        old = FeatureSet.load(features)
        FeatureSet(old.values, old.protocol, old.digest, old.source).save(tmp_path / "old.safetensors")
        refused(
            "kept before features had classes",
            "evaluate_fid",
            *words,
            "--reference",
            "old.safetensors",
            "--exclude",
            "circle",
        )

    def test_classes_that_are_not_there_are_refused(self, refused, run, classes, noise_folder) -> None:
        ours = classes("ours", "circle", "star")
        other, more = classes("other", "Circle", "star"), classes("more", "star", "square")
        words = ("--images", ours, "--extractor", "demo", "--bootstraps", 0, "--reference")
        refused("the nearest is 'circle', all are circle, star", "evaluate_fid", *words, ours, "--exclude", "Circle")
        refused("the nearest is 'star'", "evaluate_fid", *words, ours, "--exclude", "stars")
        refused("is no class of", "evaluate_fid", *words, ours, "--exclude", "star", "moon")
        refused("which has 'Circle'", "evaluate_fid", *words, other, "--exclude", "circle")
        refused("needs to know them", "evaluate_fid", *words, noise_folder(100), "--exclude", "star")
        # 100 squares and stars know no circle, and nothing like it: nothing to leave out there, 50 stars are too few.
        refused("at least 100 pictures", "evaluate_fid", *words, more, "--exclude", "circle")

    def test_bad_input(self, refused, tmp_path: Path, noise_folder) -> None:
        (tmp_path / "empty").mkdir()
        few, enough = noise_folder(1), noise_folder(100)
        refused("--reference is required", "evaluate_fid", "--images", enough)
        refused("it has none", "evaluate_fid", "--images", "empty", "--reference", enough)
        refused("at least 100 pictures", "evaluate_fid", "--images", few, "--reference", enough)
        refused("99 more are required", "evaluate_fid", "--images", enough, "--reference", few)
        words = ("--images", enough, "--reference", enough)
        refused("--extractor_weights FILE.safetensors", "evaluate_fid", *words)
        refused("could be had from the hub", "evaluate_fid", *words, "--extractor", "clip")
        refused("could be had from the hub", "evaluate_fid", *words, "--extractor", "dinov2")
        shutil.copytree(enough, tmp_path / "broken")
        (tmp_path / "broken" / "0_0.png").write_bytes(b"no picture")
        refused("cannot be read as a picture", "evaluate_fid", "--images", "broken", "--reference", enough)
        (tmp_path / "file").write_text("")
        refused("must be a folder that can be written", "evaluate_fid", *words, "--output_dir", "file/out")


def _rows(file: Path) -> int:
    from salun_diffusers.evaluation.feature_files import FeatureSet

    return len(FeatureSet.load(file).values)


class TestAlignment:
    def test_pairs_and_clip_score(self, run, tmp_path: Path, tiny_clip: Path) -> None:
        first = shapes(tmp_path / "first", 6, 1)
        second = Path(shutil.copytree(first, tmp_path / "second"))
        Image.new("RGB", (64, 64), "red").save(second / "000.png")
        words = ("--before", first, "--images", second, "--extractor", "demo", "--clip", tiny_clip, "--batch_size", 4)
        code, _, err = run("evaluate_alignment", *words)
        assert code == 0, err
        found = record("runs/evaluation/alignment.json")
        assert [pair.name for pair in found.comparisons] == ["CLIP score"]
        values = {item.name: item.value for item in found.measurements}
        assert values["pixel distance at equal seed"] > 0 and 0 < values["SSIM at equal seed"] < 1
        assert values["demo distance at equal seed"] > 0
        everything = (*found.measurements, *(pair.after for pair in found.comparisons))
        assert len(everything) == 4 and all("upright, on white" in item.protocol for item in everything)

    def test_bad_input(self, refused, tmp_path: Path, noise_folder, tiny_clip: Path) -> None:
        (tmp_path / "empty").mkdir()
        one, two, three, other = noise_folder(1), noise_folder(2), noise_folder(3), noise_folder(2, size=20)
        refused("Nothing to measure", "evaluate_alignment", "--images", two)
        refused("it has none", "evaluate_alignment", "--images", "empty", "--before", two)
        refused("at least two pictures", "evaluate_alignment", "--images", one, "--before", one)
        refused("2_0.png of", "evaluate_alignment", "--images", two, "--before", three)
        refused("has no partner in", "evaluate_alignment", "--images", three, "--before", two)
        refused("must have one size", "evaluate_alignment", "--images", two, "--before", other)
        refused("Draw both at one size", "evaluate_alignment", "--images", two, "--before", other)
        refused("needs prompts", "evaluate_alignment", "--images", two, "--clip", tiny_clip)
        (tmp_path / "prompts.txt").write_text("a\nb\n")
        words = ("--images", two, "--clip", "openai/clip-vit-base-patch16", "--prompts", "prompts.txt")
        refused("could be had from the hub", "evaluate_alignment", *words)
        (two / "1_0.png").write_bytes(b"no picture")
        refused("cannot be read as a picture", "evaluate_alignment", "--images", two, "--before", other)

    def flat(self, folder: Path, names: dict[str, int]) -> Path:
        """Flat grey pictures by name."""
        for name, level in names.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (level,) * 3).save(folder / name)
        return folder

    def test_pictures_are_paired_by_name_whatever_their_order(self, run, tmp_path: Path) -> None:
        """0 to 51, 2 to 2, 10 to 10: 51 of 255 in one of three is 0.2 / 3, with png for bmp."""
        before = self.flat(tmp_path / "before", {"0.png": 0, "2.png": 100, "a/10.png": 200})
        after = self.flat(tmp_path / "after", {"a/10.bmp": 200, "2.png": 100, "0.bmp": 51})
        assert run("evaluate_alignment", "--before", before, "--images", after)[0] == 0
        (pixels, _) = record("runs/evaluation/alignment.json").measurements
        assert pixels.value == pytest.approx(0.2 / 3)

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            (["0.png", "1.png"], ["img_0.png", "img_1.png"], "before has no partner in"),
            (["0.png", "1.png", "2.png"], ["1.jpg", "2.jpg", "3.jpg"], "0.png of"),
            (["0.png", "1.png", "2.png"], ["0.png", "1.png", "2.png", "3.png"], "3.png of"),
            (["a/0.png", "a/1.png"], ["b/0.png", "b/1.png"], "a/0.png of"),
            (["0.png", "0.jpg", "1.png"], ["0.png", "1.png", "2.png"], "have one partner"),
        ],
    )
    def test_names_that_do_not_pair_are_refused(
        self, refused, tmp_path: Path, old: list[str], new: list[str], words: str
    ) -> None:
        before, after = (
            self.flat(tmp_path / where, dict.fromkeys(names, 9)) for where, names in (("before", old), ("after", new))
        )
        refused(words, "evaluate_alignment", "--before", before, "--images", after)

    def test_manifests_pair_prompts_and_seeds_whatever_the_names(self, run, tmp_path: Path) -> None:
        """The same pictures in reverse and under other names have not moved."""
        first = shapes(tmp_path / "first", 3, 1)
        rows = json.loads((first / "manifest.json").read_text())["pictures"]
        (tmp_path / "second").mkdir()
        turned = []
        for number, row in enumerate(reversed(rows)):
            shutil.copy(first / row["file"], tmp_path / "second" / f"{number}.png")
            turned.append(PictureRow(**{**row, "file": f"{number}.png"}))
        Manifest(tuple(turned), {"model": "renderer", "num_inference_steps": 12}).save(tmp_path / "second")
        assert run("evaluate_alignment", "--before", first, "--images", tmp_path / "second")[0] == 0
        (pixels, similar) = record("runs/evaluation/alignment.json").measurements
        assert pixels.value == 0 and similar.high == 1

    def test_pairs_of_other_seeds(self, refused, tmp_path: Path) -> None:
        first, second = shapes(tmp_path / "first", 3, 1), shapes(tmp_path / "second", 3, 1, wrong=1)
        refused("their manifests differ", "evaluate_alignment", "--images", first, "--before", second)


class TestPicturesDrawnDifferently:
    """Every program that compares two folders refuses, with the same words."""

    @pytest.mark.parametrize(
        "words",
        [
            ("evaluate_nudity",),
            ("evaluate_fid", "--reference", "first", "--extractor", "demo"),
            ("evaluate_alignment", "--extractor", "demo"),
            ("evaluate_objects", "--forget", "circle", "--classifier", "demo"),
        ],
        ids=lambda words: words[0],
    )
    def test_refused(self, refused, tmp_path: Path, words: tuple[str, ...]) -> None:
        for name, steps in (("first", 12), ("before", 12), ("after", 50)):
            shapes(tmp_path / name, 100, 1, steps=steps)
        program, *more = words
        images = ("--before", "before", "--images", "after")
        refused("were drawn differently: num_inference_steps 12 and 50.", program, *images, *more)

    def test_told_where_they_agree(self, run, tmp_path: Path) -> None:
        before, after = shapes(tmp_path / "before", 20, 1), shapes(tmp_path / "after", 20, 1)
        words = ("--before", before, "--images", after, "--forget", "circle", "--classifier", "demo")
        code, out, err = run("evaluate_objects", *words)
        assert code == 0, err
        assert "\ndrawn: 12 steps, guidance 3, " in out
        assert record("runs/evaluation/objects.json").sampling["num_inference_steps"] == 12
        assert "Pictures drawn with 12 steps, guidance 3, " in Path("runs/evaluation/objects.html").read_text()


class TestObjects:
    def test_demo_classifier(self, run, tmp_path: Path) -> None:
        before, after = shapes(tmp_path / "before", 40, 1), shapes(tmp_path / "after", 40, 1, wrong=5)
        words = ("--before", before, "--images", after, "--forget", "circle", "--classifier", "demo")
        code, out, err = run("evaluate_objects", *words)
        assert code == 0, err
        assert "What circle became" in out
        found = record("runs/evaluation/objects.json")
        ua, ra = found.comparisons[:2]
        assert ua.after.value > ua.before.value and ra.after.value > 0.9
        assert sum(row[1] for row in found.tables[0].rows) == ua.before.n
        assert "top-1 of the 11 labels" in ua.after.protocol and "upright, on white" in ua.after.protocol

    def test_clip_and_prompt_file(self, run, tmp_path: Path, noise_folder, tiny_clip: Path) -> None:
        (tmp_path / "prompts.csv").write_text("prompt,case_number,class\na circle,0,circle\na star,1,star\n")
        words = ("--images", noise_folder(2), "--prompts", "prompts.csv", "--forget", "star", "--clip", tiny_clip)
        assert run("evaluate_objects", *words)[0] == 0
        assert record("runs/evaluation/objects.json").measurements[0].n == 1
        (tmp_path / "other.csv").write_text("words,case_number,class\na circle,0,circle\na star,1,star\n")
        assert run("evaluate_objects", *words, "--prompts", "other.csv")[0] == 2
        assert run("evaluate_objects", *words, "--prompts", "other.csv", "--prompt_column", "words")[0] == 0

    def test_bad_input(self, refused, tmp_path: Path, noise_folder) -> None:
        (tmp_path / "empty").mkdir()
        two = noise_folder(2)
        forget = ("--forget", "circle", "--classifier", "demo")
        refused("--images and --forget are required", "evaluate_objects")
        refused("One of --classifier and --clip", "evaluate_objects", "--images", two, "--forget", "circle")
        refused("it has none", "evaluate_objects", "--images", "empty", *forget)
        refused("have no classes", "evaluate_objects", "--images", two, *forget)
        (tmp_path / "prompts.csv").write_text("prompt,case_number\na,0\nb,1\n")
        refused("have no classes", "evaluate_objects", "--images", two, *forget, "--prompts", "prompts.csv")
        (tmp_path / "prompts.csv").write_text("prompt,case_number,class\na,0,circle\nb,1,tench\n")
        refused("has no class 'tench'", "evaluate_objects", "--images", two, *forget, "--prompts", "prompts.csv")
        words = ("--images", two, "--forget", "tench", "--prompts", "prompts.csv")
        refused("could be had from the hub", "evaluate_objects", *words, "--classifier", "microsoft/resnet-50")
        (two / "0_0.png").write_bytes(b"no picture")
        (tmp_path / "prompts.csv").write_text("prompt,case_number,class\na,0,circle\nb,1,star\n")
        refused("cannot be read", "evaluate_objects", "--images", two, *forget, "--prompts", "prompts.csv")
