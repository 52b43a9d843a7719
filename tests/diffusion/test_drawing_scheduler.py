"""Another scheduler draws; the noise of training, and what the network predicts, stay the model's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from tiny_models import build_pipeline

from salun_diffusers.accelerator import engine
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.diffusion.latent_sets import LatentSet
from salun_diffusers.diffusion.presets.everyday import captions
from salun_diffusers.diffusion.request import accept
from salun_diffusers.diffusion.start import load_family
from salun_diffusers.evaluation.comparison import compare_runs, read_runs
from salun_diffusers.evaluation.drawing_pipeline import load_pipeline
from salun_diffusers.files.pipeline_folder import EMBEDDED
from salun_diffusers.programs.erase import main

DPM = "DPMSolverMultistepScheduler"
CPU = torch.device("cpu")


def loaded(folder: Path, scheduler: str, steps: int = 4) -> Family:
    """The family as a run loads it."""
    config = EraseConfig(
        concept="nudity", pretrained_model_name_or_path=str(folder), scheduler=scheduler, num_inference_steps=steps,
        detector="none", dry_run=True,
    )  # fmt: skip
    with engine(mixed_precision=None, gradient_accumulation_steps=1, report_to=None) as accelerator:
        return load_family(accelerator, accept(config), folder)


def rescaled(folder: Path, prediction_type: str) -> Path:
    """A model; where it predicts v, one whose last state is pure noise."""
    build_pipeline(folder, prediction_type=prediction_type)
    file = folder / "scheduler" / "scheduler_config.json"
    zero = prediction_type == "v_prediction"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rescale_betas_zero_snr": zero}))
    return folder


class TestSwap:
    @pytest.mark.parametrize("name", [DPM, "DDIMScheduler", "EulerDiscreteScheduler"])
    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
    def test_the_noise_of_training_is_the_models(self, tmp_path: Path, name: str, prediction_type: str) -> None:
        folder = rescaled(tmp_path / "model", prediction_type)
        own, other = StableDiffusion(folder, device=CPU), loaded(folder, name)
        assert type(other.pipe.scheduler) is getattr(diffusers, name)
        timesteps = torch.tensor([0, 500, 998, 999])
        latents, noise = torch.randn(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        for ask in ("noised", "target"):
            answers = [getattr(one.schedule, ask)(latents, noise, timesteps) for one in (own, other)]
            assert torch.equal(*answers)
        assert torch.equal(*(one.schedule.signal_to_noise(timesteps) for one in (own, other)))
        last = other.schedule.signal_to_noise(timesteps)[-1]
        assert prediction_type == "epsilon" or last == 0, "another scheduler may not go as far as pure noise"

    @pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
    def test_the_scheduler_that_draws_knows_the_model(self, tmp_path: Path, prediction_type: str) -> None:
        folder = rescaled(tmp_path / "model", prediction_type)
        own, drawn_by = StableDiffusion(folder, device=CPU).pipe.scheduler, loaded(folder, DPM).pipe.scheduler
        assert drawn_by.config.prediction_type == prediction_type
        assert drawn_by.config.algorithm_type == "dpmsolver++"
        for name in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "rescale_betas_zero_snr"):
            assert drawn_by.config[name] == own.config[name]

    def test_few_steps_of_it_end_where_many_of_another_do(self) -> None:
        """On a trained model, whose sampling is one ODE, to a tenth; two steps do not."""
        prompts, seeds = ["a photo of a circle", "a red star on a white background"], [1, 2]

        def drawn(scheduler: str, steps: int) -> torch.Tensor:
            family = loaded(EMBEDDED["demo"], scheduler, steps)
            return family.generate(prompts, seeds, num_inference_steps=steps, guidance_scale=3.0)

        exact = drawn("EulerDiscreteScheduler", 200)
        far = {steps: float((drawn(DPM, steps) - exact).norm() / exact.norm()) for steps in (2, 20)}
        assert far[20] < 0.1 < far[2]

    def test_own_is_the_models(self, sd14: Path) -> None:
        assert type(loaded(sd14, "own").pipe.scheduler) is diffusers.PNDMScheduler

    def test_generate_swaps_by_the_same_function(self, sd14: Path) -> None:
        pipe = load_pipeline(sd14, device=CPU, dtype=torch.float32, variant=None, scheduler=DPM)
        assert dict(pipe.scheduler.config) == dict(loaded(sd14, DPM).pipe.scheduler.config)


@pytest.fixture(scope="module")
def run(small_run: Callable[..., list[str]], sd14: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "run"
    words = small_run(
        output_dir=folder, pretrained_model_name_or_path=sd14, scheduler=None, num_anchor_images=3,
        generated_data_dir=folder.parent / "kept", detector="none",
    )  # fmt: skip
    assert main(words) == 0
    return folder


def test_sets_never_ask_the_vae(sd14: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = loaded(sd14, DPM)
    for name in ("encode", "decode"):
        monkeypatch.setattr(family.pipe.vae, name, lambda *_, **__: pytest.fail("the VAE ran"))
    how = {"num_inference_steps": 3, "guidance_scale": 2.0}
    assert family.generate(["a star"], [1], **how).shape == (1, 4, 4, 4)


def test_free_text_without_retain_prompts_runs_to_its_end(
    sd14: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The README's command, with sizes for a moment; scheduler, retained captions and rates are the defaults."""
    words = [
        "--concept", "Van Gogh", "--forget_prompt", "a painting by Van Gogh", "--anchor_prompt", "a painting",
        "--pretrained_model_name_or_path", str(sd14), "--output_dir", str(tmp_path / "run"), "--detector", "none",
        "--num_forget_images", "4", "--num_anchor_images", "3", "--num_retain_images", "5",
        "--num_inference_steps", "3", "--max_train_steps", "2", "--num_validation_images", "1",
    ]  # fmt: skip
    assert main(words) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(told) == 1 and "'a painting by Van Gogh'" in told[0], "nobody can change the words of our captions"
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (record["scheduler"], record["retain_weight"], record["snr_power"]) == (DPM, 3.0, 0.5)
    kept = LatentSet.load(tmp_path / "run" / "work" / "retain.safetensors")
    assert set(kept.prompts) <= set(captions()) and len(kept) == 5
    assert {path.name[:9] for path in (tmp_path / "run" / "samples").iterdir()} >= {"forget-00", "retain-07"}


class TestRun:
    def test_draws_both_sides_with_it_and_says_so(self, run: Path) -> None:
        config = json.loads((run / "report.json").read_text())["config"]
        assert config["scheduler"] == DPM
        assert config["drawn_by"]["class"] == DPM
        assert config["drawn_by"]["algorithm_type"] == "dpmsolver++"
        page = " ".join((run / "report.html").read_text().split())
        assert f"Both are drawn by {DPM}, 2 steps, guidance 2." in page

    def test_leaves_the_models_own_in_the_pipeline(self, run: Path, sd14: Path) -> None:
        file = "scheduler/scheduler_config.json"
        assert (run / "pipeline" / file).read_bytes() == (sd14 / file).read_bytes()

    def test_latents_of_another_scheduler_are_others(
        self, run: Path, small_run: Callable[..., list[str]], sd14: Path, tmp_path: Path, capsys: pytest.CaptureFixture
    ) -> None:
        words = {"pretrained_model_name_or_path": sd14, "num_anchor_images": 3, "detector": "none",
                 "generated_data_dir": run.parent / "kept"}  # fmt: skip

        def drawn(**flags: object) -> set[str]:
            capsys.readouterr()
            assert main(small_run(**words, **flags)) == 0
            err = capsys.readouterr().err
            return {name for name in ("forget", "anchor", "retain") if f"latents, {name}" in err}

        kept = {path.parent.name for path in (run.parent / "kept").rglob("*.safetensors")}
        assert len(kept) == 1
        resumed = {"output_dir": run, "resume_from_checkpoint": "latest"}
        assert drawn(scheduler=DPM, **resumed) == set()
        copied = {**resumed, "output_dir": shutil.copytree(run, tmp_path / "copied")}
        assert drawn(scheduler="own", **copied) == {"forget", "anchor", "retain"}
        assert len({path.parent.name for path in (run.parent / "kept").rglob("*.safetensors")}) == 2

    def test_a_comparison_of_runs_that_were_drawn_differently_is_refused(self, run: Path, tmp_path: Path) -> None:
        report = json.loads((run / "report.json").read_text())
        report["config"]["drawn_by"]["class"] = "PNDMScheduler"
        (tmp_path / "report.json").write_text(json.dumps(report))
        with pytest.raises(Exception, match="scheduler class DPMSolverMultistepScheduler and PNDMScheduler"):
            compare_runs(read_runs([f"one={run / 'report.json'}", f"other={tmp_path / 'report.json'}"]))
