"""What a plan says of the work is what the denoiser is asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch

from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.presets.known import find_concept
from salun_diffusers.diffusion.presets.stable_diffusion import SD_1, Kind
from salun_diffusers.diffusion.row_forwards import in_words, row_forwards, sampling_calls
from salun_diffusers.diffusion.settings import resolve
from salun_diffusers.diffusion.strength_prompts import with_curve
from salun_diffusers.programs.erase import main


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # diffusers' KDPM2 with numpy 2
@pytest.mark.parametrize("steps", [2, 12, 20, 50])
@pytest.mark.parametrize(
    "name",
    ["PNDMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "LMSDiscreteScheduler",
     "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "UniPCMultistepScheduler",
     "EulerAncestralDiscreteScheduler", "DDPMScheduler"],
)  # fmt: skip
def test_schedulers_ask_as_often_as_they_have_timesteps(name: str, steps: int) -> None:
    words = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    scheduler = getattr(diffusers, name)(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, **words)
    scheduler.set_timesteps(steps)
    assert sampling_calls(name, steps) == len(scheduler.timesteps)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"num_anchor_images": 3, "scheduler": None},
        {"recipe": "paper", "gradient_accumulation_steps": 2, "guidance_scale": 1},
        {"objective": "esd", "mask": "random"},
        {"mask": "saliency_ratio", "saliency_weighting": "difference"},
        {"objective": "esd", "retain_weight": 1},
        {"objective": "ascent", "retain_weight": None},
        {"objective": "finetune"},
        {"robust": "both"},
    ],
    ids=str,
)
def test_a_run_asks_for_what_its_plan_says(
    small_run: Callable[..., list[str]], sd14: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture, flags: dict[str, object],
) -> None:  # fmt: skip
    flags = {"retain_weight": None if "objective" in flags else 1, "pretrained_model_name_or_path": sd14, **flags}
    assert main(small_run(**flags, dry_run=True)) == 0
    (told,) = re.findall(r"^work      (.*)$", capsys.readouterr().out, flags=re.MULTILINE)
    asked: Counter[bool] = Counter()
    forward = diffusers.UNet2DConditionModel.forward

    def counted(self: object, sample: torch.Tensor, *args: object, **words: object) -> object:
        asked[torch.is_grad_enabled()] += len(sample)
        return forward(self, sample, *args, **words)

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "forward", counted)
    assert main(small_run(**flags, output_dir=tmp_path / "run")) == 0
    numbers = {name: int(number.replace(",", "")) for name, number in re.findall(r"([a-z][a-z -]*) ([\d,]+)[,;]", told)}
    learnt = numbers["saliency"] + numbers["fine-tuning"]
    assert asked[True] * 3 == learnt
    assert asked[False] == sum(numbers.values()) - learnt


def work(recipe: str, kind: Kind = SD_1) -> dict[str, int]:
    config = EraseConfig(concept="nudity", recipe=recipe)
    concept = find_concept(config, kind)
    own = "PNDMScheduler" if recipe == "paper" else "DPMSolverMultistepScheduler"
    settings = with_curve(resolve(config, concept.numbers), concept, config)
    return {stage.stage: stage.work for stage in row_forwards(concept, settings, own)}


class TestReproduce:
    """The figures of docs/reproduce.md."""

    PAGE = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text(encoding="utf-8")

    @pytest.mark.parametrize(("recipe", "sets"), [("paper", 1600 * 51 * 2), ("frozen_teacher", 1600 * 20 * 2)])
    def test_what_few_steps_save(self, recipe: str, sets: int) -> None:
        stages = work(recipe)
        assert stages["latent sets"] == sets
        drawing = sum(stages[name] for name in ("pictures before", "latent sets", "pictures after", "strength"))
        total = sum(stages.values())
        assert f"| {sets:,} | {total:,} | {drawing / total:.0%} |".replace("%", " %") in self.PAGE

    @pytest.mark.parametrize(
        ("kind", "name"), [(SD_1, "1.x, 512"), (Kind("v-prediction", 768), "2.x, 768"), (Kind("XL", 1024), "XL, 1024")]
    )
    def test_hours(self, kind: Kind, name: str) -> None:
        """work · operations / (30 TFLOP/s); the operations as torch counts them on the real shapes."""
        operations = {"1.x, 512": 0.803, "2.x, 768": 2.149, "XL, 1024": 6.761}[name]
        ours, paper = (
            sum(work(recipe, kind).values()) * operations / 30 / 3600 for recipe in ("frozen_teacher", "paper")
        )
        assert f"| {name} pixels | {operations:.2f} | {ours:.1f} h | {paper:.1f} h |" in self.PAGE


def test_real_pictures_are_not_drawn() -> None:
    config = EraseConfig(concept="nudity")
    concept = find_concept(config)
    settings = resolve(config, concept.numbers)
    drawn = {stage.stage: stage.rows for stage in row_forwards(concept, settings, "DDIMScheduler", real_pictures=True)}
    assert drawn["latent sets"] == 0 and drawn["pictures before"] > 0
    assert "latent sets 0, " in in_words(row_forwards(concept, settings, "DDIMScheduler", real_pictures=True))
