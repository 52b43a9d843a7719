"""Pictures depend on prompt and seed only, folders go on where they stopped, explicit pictures are not kept."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from two_processes import run_two

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation import generation
from salun_diffusers.evaluation.generation import Sampling, picture_rows
from salun_diffusers.evaluation.manifest import read_manifest
from salun_diffusers.evaluation.nudity import Box, NudeNet
from salun_diffusers.evaluation.prompt_files import PromptRow
from salun_diffusers.masks.patch import patch_between, patch_folder
from salun_diffusers.seeds import stream_seed


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.csv"
    path.write_text(
        "case_number,prompt,evaluation_seed,evaluation_guidance,class\n"
        "3,a photo of a circle,11,7,circle\n5,a star,12,2,star\n6,a photo of a square,13,7,square\n"
    )
    return path


@pytest.fixture
def generate(script: Callable[[str], ModuleType], tiny_pipeline: Path, prompts: Path) -> Callable[..., int]:
    def run(output: Path, **flags: object) -> int:
        values = {
            "pretrained_model_name_or_path": tiny_pipeline, "prompts": prompts, "num_inference_steps": 2,
            "num_images": 2, "batch_size": 2, "output_dir": output, **flags,
        }  # fmt: skip
        words = [
            word
            for name, value in values.items()
            for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
        ]
        return int(script("generate_images").main(words))

    return run


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("*.png"))}


def test_rows_of_a_prompt() -> None:
    """The first picture has the file's seed, the next one a seed derived from it."""
    first, second = picture_rows([PromptRow("a", 3, 11)], 2, None)
    assert (first.file, first.seed, first.guidance) == ("000003_0.png", 11, 7.5)
    assert (second.file, second.seed) == ("000003_1.png", stream_seed(11, "picture", 1))
    (given,) = picture_rows([PromptRow("a", 3, 11, 4.0)], 1, None)
    (overridden,) = picture_rows([PromptRow("a", 3, 11, 4.0)], 1, 2.0)
    assert (given.guidance, overridden.guidance) == (4.0, 2.0)


def test_pictures_do_not_depend_on_the_batch(generate: Callable[..., int], tmp_path: Path) -> None:
    """Up to one grey level, by which a batch's rounding may move a pixel."""
    for size in (1, 2, 5):
        assert generate(tmp_path / str(size), batch_size=size) == 0
    single = pixels(tmp_path / "1")
    assert list(single) == [f"00000{case}_{sample}.png" for case in (3, 5, 6) for sample in (0, 1)]
    for size in (2, 5):
        for name, found in pixels(tmp_path / str(size)).items():
            assert np.abs(found - single[name]).max() <= 1
    assert np.abs(single["000003_0.png"] - single["000003_1.png"]).max() > 1


def test_manifest(generate: Callable[..., int], tmp_path: Path, tiny_pipeline: Path) -> None:
    assert generate(tmp_path / "out") == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert [(row.prompt, row.guidance, row.label) for row in manifest.pictures[2:4]] == [("a star", 2, "star")] * 2
    assert manifest.pictures[2].seed == 12
    made = manifest.made_with
    assert made["scheduler"]["class"] == "DDIMScheduler" and made["num_inference_steps"] == 2
    assert len(made["model_sha256"]) == 64 and made["model"] == str(tiny_pipeline)
    assert manifest.command.startswith("salun generate --pretrained_model_name_or_path")


def test_an_interrupted_folder_goes_on(
    generate: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(tmp_path / "whole") == 0
    draw, drawn = generation.draw, []

    def stop(pipe, rows, sampling):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append([row.file for row in rows])
        return draw(pipe, rows, sampling)

    with monkeypatch.context() as patch:
        patch.setattr(generation, "draw", stop)
        assert generate(tmp_path / "out") == 130
    assert "goes on from what was kept" in capsys.readouterr().err
    kept = set(pixels(tmp_path / "out"))
    assert len(kept) == 4
    monkeypatch.setattr(
        generation,
        "draw",
        lambda pipe, rows, sampling: drawn.append([r.file for r in rows]) or draw(pipe, rows, sampling),
    )
    assert generate(tmp_path / "out") == 0
    assert not kept & {name for batch in drawn[2:] for name in batch}
    whole = pixels(tmp_path / "whole")
    assert all(np.abs(found - whole[name]).max() <= 1 for name, found in pixels(tmp_path / "out").items())


def test_base_and_patch_draw_what_the_erased_model_draws(
    generate: Callable[..., int], tmp_path: Path, tiny_pipeline: Path
) -> None:
    erased, patch = tmp_path / "erased", tmp_path / "patch.safetensors"
    patch_folder(tiny_pipeline, erased, lambda weights: weights | {"conv_in.bias": weights["conv_in.bias"] + 1})
    patch_between(tiny_pipeline, erased).save(patch)
    assert generate(tmp_path / "a", pretrained_model_name_or_path=erased) == 0
    assert generate(tmp_path / "b", patch=patch) == 0
    drawn = pixels(tmp_path / "a"), pixels(tmp_path / "b")
    assert all((drawn[0][name] == drawn[1][name]).all() for name in drawn[0])
    made = [read_manifest(tmp_path / name).made_with for name in "ab"]
    assert made[0]["model_sha256"] == made[1]["model_sha256"]
    assert made[1]["model"] == f"{tiny_pipeline} + {patch}"
    assert generate(tmp_path / "c") == 0
    assert (pixels(tmp_path / "c")["000003_0.png"] != drawn[0]["000003_0.png"]).any()


def test_another_command_is_refused(generate: Callable[..., int], tmp_path: Path, capsys) -> None:
    assert generate(tmp_path / "out") == 0
    capsys.readouterr()
    assert generate(tmp_path / "out", num_inference_steps=3) == 2
    assert "pictures of another command (num_inference_steps differ)" in capsys.readouterr().err
    assert generate(tmp_path / "out", guidance_scale=1) == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert generate(tmp_path / "full") == 2
    assert "holds something else" in capsys.readouterr().err


def test_another_variant_is_another_model(
    generate: Callable[..., int], tmp_path: Path, tiny_pipeline: Path, capsys
) -> None:
    """Both lie in one folder; pictures of the second are not put beside those of the first."""
    both = Path(shutil.copytree(tiny_pipeline, tmp_path / "both"))
    for file in [*both.rglob("*.safetensors")]:
        shutil.copy(file, file.with_suffix(".non_ema.safetensors"))
    flags = {"pretrained_model_name_or_path": both, "num_images": 1}
    assert generate(tmp_path / "out", **flags, variant="non_ema") == 0
    capsys.readouterr()
    assert generate(tmp_path / "out", **flags) == 2
    assert "pictures of another command (variant differ)" in capsys.readouterr().err


def test_explicit_pictures_are_not_kept(generate: Callable[..., int], tmp_path: Path) -> None:
    assert generate(tmp_path / "out", explicit="yes", num_images=1) == 0
    assert not pixels(tmp_path / "out")
    detections = sorted((tmp_path / "out" / "detections").glob("*.json"))
    assert [path.name for path in detections] == [f"00000{case}_0.png.json" for case in (3, 5, 6)]
    assert json.loads(detections[0].read_text())["nudenet"] == "3.4"
    assert generate(tmp_path / "kept", explicit="yes", save_explicit=True, num_images=1) == 0
    kept, previews = pixels(tmp_path / "kept"), pixels(tmp_path / "out" / "previews")
    for name, preview in previews.items():
        # A preview has no edges: neighbours differ far less than in the picture.
        assert np.abs(np.diff(preview, axis=0)).mean() < np.abs(np.diff(kept[name], axis=0)).mean()


def test_prompts_that_say_explicit_are_found(generate: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a photo of a nude person\n")
    assert generate(tmp_path / "out", prompts=tmp_path / "prompts.txt", num_images=1) == 0
    assert not pixels(tmp_path / "out")
    assert generate(tmp_path / "harmless", prompts=tmp_path / "prompts.txt", num_images=1, explicit="no") == 0
    assert len(pixels(tmp_path / "harmless")) == 1


def test_scheduler_by_name(generate: Callable[..., int], tmp_path: Path, capsys) -> None:
    assert generate(tmp_path / "out", scheduler="EulerDiscreteScheduler", num_images=1) == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None and manifest.made_with["scheduler"]["class"] == "EulerDiscreteScheduler"
    capsys.readouterr()
    assert generate(tmp_path / "other", scheduler="AutoencoderKL") == 2
    assert "--scheduler must be the name of a diffusers class" in capsys.readouterr().err


def test_bad_input(generate: Callable[..., int], tmp_path: Path, capsys) -> None:
    (tmp_path / "columns.csv").write_text("sentence\na\n")
    for words, flags in {
        "there is no folder absent": {"pretrained_model_name_or_path": "absent"},
        "must have a column `prompt`": {"prompts": tmp_path / "columns.csv"},
        "--prompts is required": {"prompts": ""},
        "must be a folder that can be written": {"output_dir": tmp_path / "columns.csv"},
    }.items():
        assert generate(flags.pop("output_dir", tmp_path / "out"), **flags) == 2
        captured = capsys.readouterr()
        assert words in captured.err and captured.err.count("\n") == 1, captured.err
    assert not (tmp_path / "out").exists()


class TestSizes:
    """The tiny pipeline draws 16 × 16; its pictures must be multiples of 8."""

    @pytest.mark.parametrize(
        ("flags", "size"), [({"height": 24}, (16, 24)), ({"width": 8}, (8, 16)), ({}, (16, 16)),
                            ({"height": 8, "width": 32}, (32, 8))],
    )  # fmt: skip
    def test_what_is_drawn_is_recorded(
        self, generate: Callable[..., int], tmp_path: Path, flags: dict[str, int], size: tuple[int, int]
    ) -> None:
        assert generate(tmp_path / "out", num_images=1, explicit="no", **flags) == 0
        made = read_manifest(tmp_path / "out").made_with
        assert (made["width"], made["height"]) == size
        with Image.open(tmp_path / "out" / "000003_0.png") as picture:
            assert picture.size == size

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (
                {"height": 36},
                "--height must be a multiple of 8 for StableDiffusionPipeline, got 36; the next ones are 32 and 40",
            ),
            ({"width": 9}, "--width must be a multiple of 8"),
            ({"height": 4}, "--height must be at least 8"),
            ({"height": 10**6}, "--height must be at least 8 and at most 16384"),
            ({"num_inference_steps": 1001}, "--num_inference_steps 1001 cannot be done by DDIMScheduler"),
        ],
    )
    def test_what_cannot_be_drawn(
        self, generate: Callable[..., int], tmp_path: Path, capsys, flags: dict[str, int], words: str
    ) -> None:
        assert generate(tmp_path / "out", **flags) == 2
        told = capsys.readouterr().err
        assert words in told and told.count("\n") == 1, told
        assert not (tmp_path / "out").exists()

    def test_another_size_than_asked_for_is_told(self) -> None:
        """Flux, for one, rounds sizes and says so in its log only."""
        rows = picture_rows([PromptRow("a", 0, 0)], 1, None)
        pipe = SimpleNamespace(images=[Image.new("RGB", (16, 16))])
        with pytest.raises(UserError, match="draws 16×16 when asked for 24×16"):
            generation.draw(lambda **given: pipe, rows, Sampling(2, 16, 24))

    def test_what_a_pipeline_says_is_one_line(self) -> None:
        def fail(**given: object) -> None:
            raise RuntimeError("out of\nmemory")

        with pytest.raises(UserError, match=r"cannot draw 000000_0\.png \(RuntimeError: out of memory\).*--batch_size"):
            generation.draw(fail, picture_rows([PromptRow("a", 0, 0)], 1, None), Sampling(2))


class TestSchedulers:
    @pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "ScoreSdeVeScheduler", "VQDiffusionScheduler"])
    def test_those_that_do_not_fit(self, generate: Callable[..., int], tmp_path: Path, capsys, name: str) -> None:
        assert generate(tmp_path / "out", scheduler=name) == 2
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(told) == 1 and (f"--scheduler {name} does not go with" in told[0] or name in told[0])
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "LCMScheduler", "EulerAncestralDiscreteScheduler"])
    def test_those_that_do(self, generate: Callable[..., int], tmp_path: Path, name: str) -> None:
        assert generate(tmp_path / "out", scheduler=name, num_images=1, explicit="no") == 0


class TestClasses:
    """Prompts of a class-conditional pipeline are the names of its classes."""

    @pytest.fixture
    def draw(self, generate: Callable[..., int], tiny_ddpm: Path, tmp_path: Path) -> Callable[..., int]:
        def run(text: str, **flags: object) -> int:
            (tmp_path / "classes.txt").write_text(text)
            flags = {"prompts": tmp_path / "classes.txt", "pretrained_model_name_or_path": tiny_ddpm, **flags}
            return generate(tmp_path / "out", **flags)

        return run

    def test_pictures(self, draw: Callable[..., int], tmp_path: Path) -> None:
        assert draw("dog\n7\n", num_images=2) == 0
        drawn = pixels(tmp_path / "out")
        assert list(drawn) == [f"00000{case}_{sample}.png" for case in (0, 1) for sample in (0, 1)]
        assert {picture.shape for picture in drawn.values()} == {(8, 8)}
        made = read_manifest(tmp_path / "out").made_with
        assert (made["height"], made["width"]) == (8, 8)
        assert np.abs(drawn["000000_0.png"] - drawn["000001_0.png"]).max() > 1

    def test_each_should_show_the_class_that_it_is_drawn_of(self, draw: Callable[..., int], tmp_path: Path) -> None:
        """`salun evaluate objects` and `fid --exclude` ask for it."""
        assert draw("dog\n7\n", num_images=1) == 0
        assert [row.label for row in read_manifest(tmp_path / "out").pictures] == ["dog", "7"]

    def test_explicit_ones(self, draw: Callable[..., int], tmp_path: Path) -> None:
        assert draw("dog\n", explicit="yes", num_images=1) == 0
        assert (tmp_path / "out" / "previews" / "000000_0.png").is_file()

    @pytest.mark.parametrize(
        ("text", "flags", "words"),
        [
            ("dog\na photo of a dog\n", {}, "names of the model's classes (cat, dog, 7), got 'a photo of a dog'"),
            ("Dog\n", {}, "got 'Dog'"),
            ("dog\n", {"height": 16}, "--height must be 8, since ClassConditionalDDPMPipeline draws one size only"),
        ],
    )
    def test_refused(
        self, draw: Callable[..., int], tmp_path: Path, capsys, text: str, flags: dict[str, int], words: str
    ) -> None:
        assert draw(text, **flags) == 2
        told = capsys.readouterr().err
        assert words in told and told.count("\n") == 1, told
        assert not (tmp_path / "out").exists()


class TestWhatDecidesThatPicturesAreExplicit:
    """Flag, columns, words, then NudeNet on the first pictures; the printed line says which."""

    @pytest.fixture
    def found(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """NudeNet is given: every picture shows a part if the list says so; it gets the number of pictures."""
        looked: list[int] = []

        def boxes(self: NudeNet, pictures: list[Image.Image]) -> list[tuple[Box, ...]]:
            looked.append(len(pictures))
            part = Box("BUTTOCKS_EXPOSED", 0.7, (0, 0, 1, 1))
            return [(part,) if self.channels == "rgb" and looked[0] == -1 else () for _ in pictures]

        monkeypatch.setattr(NudeNet, "boxes", boxes)
        return looked

    def test_columns(self, generate: Callable[..., int], tmp_path: Path, capsys) -> None:
        (tmp_path / "mma.csv").write_text("target_prompt,adv_prompt\na,a photo of a star\n")
        assert generate(tmp_path / "out", prompts=tmp_path / "mma.csv", num_images=1) == 0
        told = capsys.readouterr()
        assert "1 detections and blurred previews in" in told.out and "(explicit: its column 'adv_prompt')" in told.out
        assert "note: explicit (its column 'adv_prompt'): detections and a blur are kept" in told.err
        assert not pixels(tmp_path / "out") and read_manifest(tmp_path / "out").explicit

    def test_nudenet_that_finds_nothing(
        self, generate: Callable[..., int], tmp_path: Path, capsys, found: list[int]
    ) -> None:
        assert generate(tmp_path / "out") == 0
        said = "neither columns nor words of the prompts say so, and NudeNet found exposed parts in none of the first 3"
        assert f"(not explicit: {said} pictures)" in capsys.readouterr().out
        assert len(pixels(tmp_path / "out")) == 6 and not read_manifest(tmp_path / "out").explicit
        assert sum(found) == 2 * 3  # Each first picture of three prompts, in both orders of its channels.

    def test_nudenet_that_finds_something(
        self, generate: Callable[..., int], tmp_path: Path, capsys, found: list[int]
    ) -> None:
        found.append(-1)
        assert generate(tmp_path / "out") == 0
        told = capsys.readouterr()
        assert "(explicit: NudeNet found exposed parts in 3 of the first 3 pictures)" in told.out
        assert not pixels(tmp_path / "out") and read_manifest(tmp_path / "out").explicit
        # What goes on goes on as it was begun, without another look.
        found.clear()
        assert generate(tmp_path / "out") == 0
        assert "(explicit: as it was decided when the folder was begun)" in capsys.readouterr().out
        assert found == []

    def test_the_flag(self, generate: Callable[..., int], tmp_path: Path, capsys, found: list[int]) -> None:
        found.append(-1)
        assert generate(tmp_path / "out", explicit="no") == 0
        assert "(not explicit: --explicit no)" in capsys.readouterr().out and found == [-1]

    def test_without_nudenet(self, generate: Callable[..., int], tmp_path: Path, capsys, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "nudenet", None)
        assert generate(tmp_path / "out", num_images=1) == 0
        assert "and NudeNet did not look (The nudity detector needs NudeNet))" in capsys.readouterr().out
        (tmp_path / "mma.csv").write_text("adv_prompt\na photo of a star\n")
        assert generate(tmp_path / "other", prompts=tmp_path / "mma.csv") == 2
        assert "needs NudeNet: pip install" in capsys.readouterr().err
        assert not (tmp_path / "other").exists()

    def test_few_words(self, generate: Callable[..., int], tmp_path: Path, capsys, found: list[int]) -> None:
        (tmp_path / "p.txt").write_text("a naked star\n" + "a star\n" * 10)
        assert generate(tmp_path / "out", prompts=tmp_path / "p.txt", num_images=1) == 0
        assert "note: 1 of 11 prompts have words such as 'nude'; their pictures are written" in capsys.readouterr().err

    def test_sixteen_pictures_are_enough(
        self, generate: Callable[..., int], tmp_path: Path, capsys, found: list[int]
    ) -> None:
        (tmp_path / "p.txt").write_text("a star\n" * 20)
        assert generate(tmp_path / "out", prompts=tmp_path / "p.txt", num_images=1, batch_size=5) == 0
        assert "none of the first 16 pictures" in capsys.readouterr().out and sum(found) == 2 * 16

    def test_detections_are_of_both_orders(self, generate: Callable[..., int], tmp_path: Path) -> None:
        assert generate(tmp_path / "out", explicit="yes", num_images=1) == 0
        kept = json.loads((tmp_path / "out" / "detections" / "000003_0.png.json").read_text())
        assert set(kept) >= {"boxes", "boxes_rgb"}


def test_prompt_column(generate: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("Spanish,Index\na star,0\n")
    assert generate(tmp_path / "no", prompts=tmp_path / "p.csv") == 2
    assert generate(tmp_path / "out", prompts=tmp_path / "p.csv", prompt_column="Spanish", num_images=1) == 0
    assert read_manifest(tmp_path / "out").pictures[0].prompt == "a star"


@pytest.mark.slow
def test_two_processes_draw_the_same(
    generate: Callable[..., int], tiny_pipeline: Path, prompts: Path, tmp_path: Path
) -> None:
    assert generate(tmp_path / "one") == 0
    program = tmp_path / "spy.py"  # The program, and a line in a file of its rank for each time that it hashes a model.
    program.write_text(
        "import os, sys\nfrom pathlib import Path\nfrom salun_diffusers.files import run_folder\n"
        "from salun_diffusers.programs.generate import main\nreal = run_folder.identity_of\n"
        "def identity_of(folder):\n"
        '    with (Path(__file__).parent / f"hashed-{os.environ[\'RANK\']}").open("a") as file:\n'
        '        file.write("once\\n")\n'
        "    return real(folder)\n"
        "run_folder.identity_of = identity_of\nsys.exit(main(sys.argv[1:]))\n"
    )
    words = ["--pretrained_model_name_or_path", str(tiny_pipeline), "--prompts", str(prompts), "--num_images", "2"]
    run_two(program, *words, "--num_inference_steps", "2", "--batch_size", "2", "--output_dir", str(tmp_path / "two"))
    one, two = pixels(tmp_path / "one"), pixels(tmp_path / "two")
    assert list(one) == list(two)
    assert all(np.abs(one[name] - two[name]).max() <= 1 for name in one)
    assert (tmp_path / "hashed-0").read_text() == "once\n" and not (tmp_path / "hashed-1").exists()
