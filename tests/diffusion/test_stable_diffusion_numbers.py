"""What a Stable Diffusion is erased with where the user says nothing: by model and recipe, each number meant."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest

from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.presets import shapes
from salun_diffusers.diffusion.presets.known import find_concept
from salun_diffusers.diffusion.presets.stable_diffusion import (
    SD_1,
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_V,
    STABLE_DIFFUSION_XL,
    STABLE_DIFFUSION_XL_V,
    Kind,
    drawn_at_once,
    kind_of,
)
from salun_diffusers.diffusion.request import accept, plan
from salun_diffusers.diffusion.settings import OWN_SCHEDULER, Length, Numbers, resolve
from salun_diffusers.diffusion.trainer import learning_rates
from salun_diffusers.files import pipeline_folder

SD, XL = "StableDiffusionPipeline", "StableDiffusionXLPipeline"
TABLES = [STABLE_DIFFUSION, STABLE_DIFFUSION_V, STABLE_DIFFUSION_XL, STABLE_DIFFUSION_XL_V]


def sum_of_rates(numbers: Numbers) -> float:
    settings = resolve(EraseConfig(concept="it"), numbers)
    steps = settings.length.steps(settings.num_forget_images + settings.num_anchor_images, settings.train_batch_size)
    rate = learning_rates(settings, steps)
    return sum(rate(step) for step in range(steps))


@pytest.mark.parametrize("table", TABLES)
def test_the_papers_recipe_is_the_papers(table: dict[str, Numbers]) -> None:
    paper = table["paper"]
    assert (paper.num_forget_images, paper.num_anchor_images, paper.num_retain_images) == (800, 0, 800)
    assert (paper.train_batch_size, paper.length, paper.learning_rate) == (8, Length(1, "epochs"), 1e-5)
    assert (paper.lr_scheduler, paper.retain_weight, paper.saliency_guidance) == ("constant", 0.1, 7.5)
    assert (paper.snr_power, paper.empty_prompt_share) == (0, 0)
    assert (paper.scheduler, paper.num_inference_steps) == (OWN_SCHEDULER, 50)


@pytest.mark.parametrize(
    ("numbers", "stated"),
    [
        (STABLE_DIFFUSION["paper"], 1.0e-3), (STABLE_DIFFUSION["frozen_teacher"], 2.0e-3),
        (STABLE_DIFFUSION_V["frozen_teacher"], 2.0e-3), (STABLE_DIFFUSION_XL["frozen_teacher"], 2.0e-3),
        (shapes.SHAPE["frozen_teacher"], 9.1e-3),
    ],
)  # fmt: skip
def test_the_rates_add_up_to_what_is_stated(numbers: Numbers, stated: float) -> None:
    assert sum_of_rates(numbers) == pytest.approx(stated, rel=0.01)


@pytest.mark.parametrize("table", TABLES)
def test_the_frozen_teacher_has_what_it_was_measured_to_need(table: dict[str, Numbers]) -> None:
    """On the embedded model: states of the anchor, a retain weight that is none of a noise target, ∅."""
    numbers, demo = table["frozen_teacher"], shapes.SHAPE["frozen_teacher"]
    assert numbers.num_anchor_images == numbers.num_forget_images > 0
    assert numbers.retain_weight == demo.retain_weight
    assert numbers.empty_prompt_share == demo.empty_prompt_share
    states = numbers.num_forget_images + numbers.num_anchor_images
    assert numbers.length.steps(0, 1) * numbers.train_batch_size == 4 * states


def test_noisy_states_weigh_more_where_the_loss_is_of_noise() -> None:
    powers = [table["frozen_teacher"].snr_power for table in TABLES]
    demo = shapes.SHAPE["frozen_teacher"].snr_power
    assert powers == [demo, 0, demo, 0]


@pytest.mark.parametrize(
    ("table", "name"), [(STABLE_DIFFUSION, SD), (STABLE_DIFFUSION_V, SD), (STABLE_DIFFUSION_XL, XL)]
)
def test_guidance_is_what_diffusers_draws_with(table: dict[str, Numbers], name: str) -> None:
    default = inspect.signature(getattr(diffusers, name).__call__).parameters["guidance_scale"].default
    assert table["frozen_teacher"].guidance_scale == default


@pytest.mark.parametrize("recipe", ["frozen_teacher", "paper"])
def test_one_forget_prompt_is_enough_for_a_verdict(recipe: str) -> None:
    assert STABLE_DIFFUSION[recipe].num_validation_images >= 16


def layout(folder: Path, *, side: object = 64, prediction: str | None = None) -> Path:
    files = {"unet/config.json": {"sample_size": side}, "scheduler/scheduler_config.json": {"trained_betas": None}}
    if prediction:
        files["scheduler/scheduler_config.json"]["prediction_type"] = prediction
    for name, content in files.items():
        (folder / name).parent.mkdir()
        (folder / name).write_text(json.dumps(content))
    return folder


class TestKinds:
    @pytest.mark.parametrize(
        ("files", "pipeline", "expected"),
        [
            ({}, SD, Kind("1.x or 2.x", 512)),
            ({"prediction": "epsilon"}, SD, SD_1),
            ({"side": 96, "prediction": "v_prediction"}, SD, Kind("v-prediction", 768)),
            ({"side": 128}, XL, Kind("XL", 1024)),
            ({"side": 128, "prediction": "v_prediction"}, XL, Kind("XL, v-prediction", 1024)),
            ({"side": [64, 96]}, SD, SD_1),
            ({"side": None}, XL, Kind("XL", 1024)),
        ],
    )
    def test_are_told_by_configurations(self, tmp_path: Path, files: dict, pipeline: str, expected: Kind) -> None:
        assert kind_of(layout(tmp_path, **files), pipeline) == expected

    def test_the_user_knows_better_than_a_wrong_configuration(self, tmp_path: Path) -> None:
        assert kind_of(layout(tmp_path, side=96), SD, "v_prediction") == Kind("v-prediction", 768)

    def test_nothing_known_is_1(self, tmp_path: Path) -> None:
        assert kind_of(tmp_path, SD) == SD_1

    @pytest.mark.parametrize(
        ("kind", "table", "at_once"),
        [(SD_1, STABLE_DIFFUSION, 8), (Kind("v-prediction", 768), STABLE_DIFFUSION_V, 3),
         (Kind("XL", 1024), STABLE_DIFFUSION_XL, 2),
         (Kind("XL, v-prediction", 1024), STABLE_DIFFUSION_XL_V, 2)],
    )  # fmt: skip
    @pytest.mark.parametrize("recipe", ["frozen_teacher", "paper"])
    def test_have_their_numbers(self, kind: Kind, table: dict, at_once: int, recipe: str) -> None:
        assert kind.numbers(recipe) == replace(table[recipe], generation_batch_size=at_once)
        free = EraseConfig(concept="x", forget_prompt=("an x",), anchor_prompt=("a y",), recipe=recipe)
        assert find_concept(free, kind).numbers == kind.numbers(recipe)
        nudity = find_concept(EraseConfig(concept="nudity", recipe=recipe), kind).numbers
        assert nudity == replace(kind.numbers(recipe), num_validation_images=8)

    def test_larger_pictures_come_fewer_at_once(self) -> None:
        sides = (64, 512, 640, 768, 1024, 4096)
        assert [drawn_at_once(side) for side in sides] == [8, 8, 5, 3, 2, 1]
        assert all(drawn_at_once(side) * side**2 <= 8 * 512**2 for side in sides[:-1])

    def test_free_text_on_the_embedded_model_has_a_toys_numbers(self, retain_file: Path) -> None:
        prompts = {"forget_prompt": ("a disc",), "anchor_prompt": ("a box",), "retain_prompts": str(retain_file)}
        config = EraseConfig(concept="disc", pretrained_model_name_or_path="demo", dry_run=True, **prompts)
        assert accept(config).concept.numbers == shapes.SHAPE["frozen_teacher"]

    def test_a_request_has_the_numbers_of_its_model(self, tmp_path: Path) -> None:
        from tiny_models import build_pipeline

        folder = build_pipeline(tmp_path / "v", prediction_type="v_prediction")
        config = EraseConfig(concept="nudity", pretrained_model_name_or_path=str(folder), detector="none", dry_run=True)
        request = accept(config)
        assert request.settings.snr_power == 0
        assert "numbers   Stable Diffusion, v-prediction, 32 pixels (not measured on its weights)" in plan(request)


def test_a_dry_run_of_a_hub_model_fetches_what_its_numbers_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    layout(tmp_path, side=96, prediction="v_prediction")
    index = {"_class_name": SD, "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))

    def fetch(name: str, file: str, **_: object) -> str:
        if not (tmp_path / "hub" / file).is_file():
            if not (tmp_path / file).is_file():
                raise EntryNotFoundError(file)
            (tmp_path / "hub" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).rename(tmp_path / "hub" / file)
        return str(tmp_path / "hub" / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    assert kind_of(pipeline_folder.locate("someone/something", download=False), SD) == Kind("v-prediction", 768)
    (tmp_path / "hub" / "scheduler" / "scheduler_config.json").unlink()
    assert kind_of(pipeline_folder.locate("someone/something", download=False), SD) == Kind("1.x or 2.x", 768)
