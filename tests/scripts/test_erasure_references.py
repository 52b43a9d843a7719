"""What erased models are held against: training without a concept, and real pictures of the retained kinds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import erasure_references
import pytest
import torch

from salun_diffusers.demo.vocabulary import SHAPES, STYLES
from salun_diffusers.diffusion.families.known import load_pipeline
from salun_diffusers.diffusion.presets.shapes import shape, style
from salun_diffusers.files.checkpoint import load_state
from salun_diffusers.files.pipeline_folder import EMBEDDED


@pytest.mark.parametrize("excluded", [("star",), ("outlined",), ("star", "ring", "striped")])
def test_the_excluded_is_neither_shown_nor_named(
    script: Callable[[str], ModuleType], excluded: tuple[str, ...]
) -> None:
    training = script("train_demo_model")
    config = training.TrainDemoConfig(num_pictures=300, exclude=excluded)
    drawn, shown = training.scenes(config), training.shown(config)
    assert len(drawn) == 300 and 0 < len(shown) < 300
    hidden = [drawn[index] for index in range(300) if index not in shown]
    assert all(scene.shape in excluded or scene.style in excluded for scene in hidden)
    assert not any(drawn[index].shape in excluded or drawn[index].style in excluded for index in shown)
    assert not any(set(excluded) & set(caption.split()) for caption in training.captions(config))


def test_retraining_keeps_the_autoencoder_and_begins_the_denoiser_anew(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    training = script("train_demo_model")
    folder = training.train(
        training.TrainDemoConfig(
            exclude=("star",), init_from=str(EMBEDDED["demo"]), from_scratch=True, stages="denoiser,pipeline",
            num_pictures=20, denoiser_steps=2, denoiser_batch_size=4, output_dir=str(tmp_path),
        )
    )  # fmt: skip
    base, made = (load_pipeline(place) for place in (EMBEDDED["demo"], folder))
    assert all(map(torch.equal, base.vae.state_dict().values(), made.vae.state_dict().values()))
    assert base.vae.config.scaling_factor == made.vae.config.scaling_factor
    assert base.tokenizer.get_vocab() == made.tokenizer.get_vocab()
    name = "conv_in.weight"
    change = (base.unet.state_dict()[name] - made.unet.state_dict()[name]).abs().mean()
    assert change > 0.01  # two steps from the shipped weights would move them by 1e-4


@pytest.mark.slow  # Eleven seconds.
def test_retrained_cells_go_on_from_what_their_group_shares(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Steps 1 and 2 see none of the five shapes of the star's group, 3 to 5 all but the star; the cross, of the same
    group, takes only the last three."""
    import benchmark_erasure
    import train_demo_model

    real, courses, shared_seconds = train_demo_model.train, [], []

    def train(course):
        courses.append(course)
        folder = real(replace(course, num_pictures=30, denoiser_batch_size=4))
        state = load_state(folder.parent / "denoiser-checkpoint")[1]
        assert state["step"] == course.denoiser_steps
        if course.denoiser_steps == 2:
            shared_seconds.append(state["seconds"])
        return folder

    monkeypatch.setattr(train_demo_model, "train", train)
    words = "--concepts star cross --methods retrain --seeds 4 --retrain_steps 5 --retrain_shared_steps 2"
    arguments = [*words.split(), "--num_validation_images", "1", "--output_dir", str(tmp_path)]
    assert benchmark_erasure.main(arguments) == 0
    group = ("square", "star", "cross", "arrow", "flower")
    assert [course.exclude for course in courses] == [group, ("star",), group, ("cross",)]
    assert [(course.denoiser_steps, course.denoiser_decay_steps) for course in courses] == [(2, 0), (5, 3)] * 2
    assert shared_seconds[0] == shared_seconds[1] > 0  # the second time they were there already
    folders = [tmp_path / f"{name}-retrain-4-5-2.run" for name in ("star", "cross")]
    star, cross = (load_state(folder / "denoiser-checkpoint") for folder in folders)
    assert not torch.equal(star[0]["model.unet.conv_in.weight"], cross[0]["model.unet.conv_in.weight"])
    report = json.loads((tmp_path / "star-retrain-4.json").read_text())
    assert report["timings"]["fine-tuning"] == star[1]["seconds"] > shared_seconds[0]
    assert report["fd"]["after"] > report["fd"]["before"]  # five steps draw nothing yet
    assert benchmark_erasure.main(arguments) == 0 and len(courses) == 4
    (tmp_path / "star-retrain-4.json").unlink()  # as if interrupted before its end: its folder is there
    assert benchmark_erasure.main(arguments) == 0
    assert json.loads((tmp_path / "star-retrain-4.json").read_text())["timings"] == report["timings"]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_retraining_computes_in_the_precision_that_is_asked_for(
    script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """A module's output has the data type it was computed in; weights and checkpoint stay float32."""
    training = script("train_demo_model")
    architecture, seen = training.architecture, []
    real = architecture.denoiser

    def denoiser() -> torch.nn.Module:
        made = real()
        made.conv_in.register_forward_hook(lambda _, __, output: seen.append((output.dtype, math_sdp_only())))
        return made

    def math_sdp_only() -> bool:
        return not torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.math_sdp_enabled()

    monkeypatch.setattr(architecture, "denoiser", denoiser)
    training.train(
        training.TrainDemoConfig(
            init_from=str(EMBEDDED["demo"]), from_scratch=True, stages="denoiser", num_pictures=20, denoiser_steps=2,
            denoiser_batch_size=4, mixed_precision=precision, output_dir=str(tmp_path),
        )
    )  # fmt: skip
    half = precision == "bf16"
    assert seen == [(torch.bfloat16 if half else torch.float32, half)] * 2
    assert torch.backends.cuda.flash_sdp_enabled()  # as before
    assert load_state(tmp_path / "denoiser-checkpoint")[0]["model.unet.conv_in.weight"].dtype == torch.float32


def test_every_concept_shares_with_one_group() -> None:
    assert Counter(name for group in erasure_references.SHARING for name in group) == Counter((*SHAPES, *STYLES))


def test_an_unknown_exclusion_is_told(
    script: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["train_demo_model.py", "--exclude", "sta", "--output_dir", str(tmp_path / "out")])
    assert script("train_demo_model").main() == 2
    error = capsys.readouterr().err
    assert "star" in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("concept", "kinds"),
    [
        (shape("star", "frozen_teacher"), Counter({"filled": 450})),
        (style("filled", "frozen_teacher"), Counter({"outlined": 250, "striped": 250})),
    ],
)
def test_references_are_of_the_kinds_that_the_retain_prompts_name(
    monkeypatch: pytest.MonkeyPatch, concept, kinds: Counter[str]
) -> None:
    """Nine shapes, or two styles of five shapes, 50 renders each; the concept is in none."""
    monkeypatch.setattr(erasure_references, "render", lambda scene: scene)
    scenes = erasure_references._renders(concept)
    assert Counter(scene.style for scene in scenes) == kinds
    assert not any(concept.name in (scene.shape, scene.style) for scene in scenes)


def test_the_distance_of_the_base_is_small_and_of_noise_large() -> None:
    concept = shape("star", "frozen_teacher")
    real = erasure_references._renders(concept)
    grey = [picture.convert("L").convert("RGB").rotate(45) for picture in real[:100]]
    found = erasure_references.distances({"real": real, "grey": grey}, "demo", concept)
    assert found["real"] == pytest.approx(0, abs=1e-3)
    assert found["grey"] > 5
