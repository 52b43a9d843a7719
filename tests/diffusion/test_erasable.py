"""What cannot be erased is told by its files: what it is, and what is required."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_models import build_sdxl

from salun_diffusers.diffusion.families.erasable import few_steps, predicted
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.diffusion.families.unet_family import UNetFamily
from salun_diffusers.programs.erase import main

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.fixture(params=[True, None], ids=["dry", "run"])
def told(request, refused, monkeypatch):
    """Refused, and no model was loaded for it."""

    def load(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(UNetFamily, "__init__", load)
    return lambda folder, *words: refused(*words, pretrained_model_name_or_path=folder, dry_run=request.param)


@pytest.fixture(scope="module")
def refiner(tmp_path_factory) -> Path:
    return build_sdxl(tmp_path_factory.mktemp("models") / "refiner", refiner=True)


def changed(file: Path, **values: object) -> Path:
    """The file's pipeline, with other values in a file of it."""
    text = json.dumps(json.loads(file.read_text()) | values)
    file.unlink()  # It may be a link to something shared.
    file.write_text(text)
    return file.parent if file.name == "model_index.json" else file.parent.parent


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("StableDiffusionInpaintPipeline", "an inpainting model, whose network also takes a mask"),
        ("StableDiffusionXLInpaintPipeline", "9 channels"),
        ("StableDiffusionInstructPix2PixPipeline", "also takes the picture to edit (8 channels)"),
        ("StableDiffusionImg2ImgPipeline", "goes on from a picture"),
        ("StableDiffusion3Pipeline", "a transformer under flow matching"),
        ("FluxPipeline", "a transformer under flow matching"),
        ("PixArtSigmaPipeline", "reads T5 states"),
        ("LatentConsistencyModelPipeline", "erase from the model that it was distilled from"),
        ("SomebodysPipeline", "is a SomebodysPipeline"),
    ],
)
def test_other_classes(told, copied, named, words):
    told(changed(copied / "model_index.json", _class_name=named), words, "StableDiffusionXLPipeline", named)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"in_channels": 9}, "an inpainting model"),
        ({"in_channels": 8}, "an instruction model"),
        ({"in_channels": 6}, "takes 6 channels"),
        ({"time_cond_proj_dim": 256}, "a consistency model"),
    ],
)
def test_networks_that_take_more_under_the_usual_class(told, copied, values, words):
    told(changed(copied / "unet" / "config.json", **values), words, "text-to-image")


@pytest.mark.parametrize("named", ["StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLPipeline"])
def test_the_refiner_of_xl(told, refiner, named):
    told(changed(refiner / "model_index.json", _class_name=named), "the refiner", "no first text encoder", "base model")


class TestFewSteps:
    """Turbo and lightning are erased like others: their network tells ε; what they cannot do is named."""

    TURBO = {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}  # noqa: RUF012

    def turbo(self, copied: Path, **values: object) -> Path:
        return changed(copied / "scheduler" / "scheduler_config.json", **self.TURBO | values)

    def test_is_noted_with_the_flags_that_fit(self, copied, small_run, capsys, tmp_path):
        folder = self.turbo(copied)
        assert all(flag in few_steps(folder) for flag in ("--scheduler own", "--saliency_guidance 0"))
        fitting = {
            "scheduler": "own",
            "num_inference_steps": 2,
            "guidance_scale": 0,
            "saliency_guidance": 0,
            "empty_prompt_share": 0,
        }
        words = small_run(pretrained_model_name_or_path=folder, output_dir=tmp_path / "run", **fitting)
        assert main([*words, "--dry_run"]) == 0
        assert "distilled to a few steps" in capsys.readouterr().out
        assert main(words) == 0
        assert "note: " in (said := capsys.readouterr().err) and "distilled to a few steps" in said

    def test_zero_terminal_noise_has_such_steps_too(self, copied, sdxl):
        assert few_steps(self.turbo(copied, prediction_type="v_prediction")) == ""
        assert few_steps(sdxl) == ""


class TestPredictionType:
    def test_in_the_plan(self, small_run, tiny_pipeline, capsys):
        assert main(small_run(dry_run=True, prediction_type="v_prediction")) == 0
        assert "predicts  v_prediction, by --prediction_type; the scheduler's configuration says epsilon" in (
            capsys.readouterr().out
        )
        assert predicted(tiny_pipeline, "scheduler") == "epsilon"

    def test_decides_what_is_drawn_and_trained(self, small_run, tmp_path, capsys):
        """Not even latents are shared with a run that believes the scheduler."""
        kept = tmp_path / "kept"
        for name, wanted in (("told", "v_prediction"), ("plain", "scheduler")):
            words = small_run(output_dir=tmp_path / name, prediction_type=wanted, generated_data_dir=kept)
            assert main(words) == 0
        files = [tmp_path / name / "work" / "forget.safetensors" for name in ("told", "plain")]
        assert files[0].read_bytes() != files[1].read_bytes()
        assert "note: the network predicts v_prediction" in capsys.readouterr().err
        assert len([*kept.iterdir()]) == 2

    def test_a_resumed_run_of_another_is_done_anew(self, small_run, tmp_path):
        unet = tmp_path / "run" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
        assert main(small_run(output_dir=tmp_path / "run")) == 0
        before = unet.read_bytes()
        words = small_run(output_dir=tmp_path / "run", resume_from_checkpoint="latest", prediction_type="v_prediction")
        assert main(words) == 0
        assert unet.read_bytes() != before


class TestWithoutAnEmptyPrompt:
    """A family whose guidance is distilled has no ∅ to ask."""

    @pytest.fixture
    def distilled(self, monkeypatch):
        encode = StableDiffusion.encode

        def without(self, prompts):
            assert "" not in prompts, "∅ was asked"
            return encode(self, prompts)

        monkeypatch.setattr(StableDiffusion, "has_empty_prompt", False)
        monkeypatch.setattr(StableDiffusion, "encode", without)
        monkeypatch.setattr(StableDiffusion, "generate", _drawn_without_guidance)

    def test_is_erased_at_guidance_0(self, distilled, small_run, tmp_path):
        words = small_run(output_dir=tmp_path / "run", saliency_guidance=0, empty_prompt_share=0)
        assert main(words) == 0

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            ({"empty_prompt_share": 0}, "--saliency_guidance 0 is required, got 7.5"),
            ({"saliency_guidance": 0}, "--empty_prompt_share 0 is required, got 0.2"),
            ({"objective": "esd"}, "--objective esd needs the prediction without a prompt"),
        ],
    )
    def test_what_asks_for_it_is_refused(self, distilled, refused, flags, words):
        refused(words, **flags)


def _drawn_without_guidance(self, prompts, seeds, *, num_inference_steps, guidance_scale):
    import torch

    return torch.stack([torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def test_a_link_to_the_configuration_is_read(tiny_pipeline, tmp_path, refused):
    """As the hub's cache has it."""
    folder = Path(shutil.copytree(tiny_pipeline, tmp_path / "linked"))
    config = folder / "unet" / "config.json"
    text = json.dumps(json.loads(config.read_text()) | {"in_channels": 9})
    config.unlink()
    (folder / "unet" / "real.json").write_text(text)
    config.symlink_to("real.json")
    refused("an inpainting model", pretrained_model_name_or_path=folder)
