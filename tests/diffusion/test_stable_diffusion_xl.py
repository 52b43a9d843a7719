"""Stable Diffusion XL: conditioned as its own pipeline does it; erased from the command line to `from_pretrained`."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from tiny_models import build_sdxl
from two_processes import run_two

from salun_diffusers.diffusion.families import stable_diffusion_xl
from salun_diffusers.diffusion.families.stable_diffusion_xl import StableDiffusionXL
from salun_diffusers.evaluation.drawing_pipeline import load_pipeline
from salun_diffusers.files.loading import dtype_argument
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.programs import generate, patch, verify
from salun_diffusers.programs.erase import main

CPU = torch.device("cpu")
FP32 = {dtype_argument(): torch.float32}
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def family(sdxl: Path) -> StableDiffusionXL:
    return StableDiffusionXL(sdxl, device=CPU)


@pytest.fixture(scope="module")
def erased(sdxl, small_run, tmp_path_factory) -> RunFolder:
    """A run on it."""
    folder = tmp_path_factory.mktemp("xl") / "run"
    assert main(small_run(pretrained_model_name_or_path=sdxl, output_dir=folder, save_patch=True)) == 0
    return RunFolder(folder)


def test_the_page_on_adding_a_family_shows_this_one(sdxl, family):
    """The code of docs/architecture.md, run: it conditions and asks as the module does."""
    page = (Path(__file__).parent.parent.parent / "docs" / "architecture.md").read_text()
    code = page.partition("class StableDiffusionXL(")[2].partition("```")[0]
    names = dict(vars(stable_diffusion_xl))
    exec(f"from __future__ import annotations\nclass StableDiffusionXL({code}", names)
    shown = names["StableDiffusionXL"](sdxl, device=CPU)
    assert type(shown) is not StableDiffusionXL
    conditions, wanted = shown.encode(["a star", ""]), family.encode(["a star", ""])
    assert all(torch.equal(conditions[name], tensor) for name, tensor in wanted.items())
    noised, timesteps = torch.ones(2, 4, 4, 4), torch.tensor([10, 900])
    answers = [one.predict(one.denoiser, noised, timesteps, wanted) for one in (shown, family)]
    assert torch.equal(*answers)
    lines = len(Path(stable_diffusion_xl.__file__).read_text().splitlines())
    assert f"is one of {lines} lines" in page


class TestConditions:
    def test_are_the_pipelines_own(self, family):
        """Both encoders' last hidden states but one side by side, the pooled embedding, and zeros without a prompt."""
        with torch.no_grad():
            states, empty, pooled, empty_pooled = family.pipe.encode_prompt(
                "a star", device=CPU, num_images_per_prompt=1
            )
        found = family.encode(["a star", ""])
        assert torch.equal(found["encoder_hidden_states"], torch.cat([states, empty]))
        assert torch.equal(found["text_embeds"], torch.cat([pooled, empty_pooled]))
        assert found["encoder_hidden_states"].shape == (2, 16, 16 + 24)
        assert not found["text_embeds"][1].any() and found["text_embeds"][0].any()
        assert found["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2

    def test_the_empty_prompt_is_read_where_the_pipeline_does_not_blank_it(self, sdxl, tmp_path):
        folder = shutil.copytree(sdxl, tmp_path / "xl")
        index = json.loads((folder / "model_index.json").read_text()) | {"force_zeros_for_empty_prompt": False}
        (folder / "model_index.json").unlink()
        (folder / "model_index.json").write_text(json.dumps(index))
        assert StableDiffusionXL(folder, device=CPU).encode([""])["text_embeds"].any()

    def test_words_beyond_the_limit_are_told(self, family):
        assert family.cut_words("a star") == ""
        assert family.cut_words("a star " * 8) == "a star"


class TestDrawing:
    def test_is_the_pipelines_own(self, family):
        ours = family.generate(["a star", "a heart"], [1, 2], num_inference_steps=3, guidance_scale=5.0)
        for item, prompt in enumerate(("a star", "a heart")):
            theirs = family.pipe(
                prompt, generator=torch.Generator().manual_seed(item + 1), num_inference_steps=3, guidance_scale=5.0,
                output_type="latent",
            ).images  # fmt: skip
            torch.testing.assert_close(ours[item], theirs[0], atol=1e-4, rtol=1e-4)

    def test_pictures_go_to_latents_and_back(self, family):
        pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
        mean, deviation = family.encode_images(pixels)
        assert mean.shape == deviation.shape == (2, 4, 4, 4)
        with torch.no_grad():
            torch.testing.assert_close(mean / 0.13025, family.pipe.vae.encode(pixels).latent_dist.mean)
        assert deviation.min() > 0
        assert [picture.size for picture in family.decode(mean)] == [(16, 16)] * 2

    def test_its_vae_stays_in_fp32_where_the_rest_is_fp16(self, sdxl):
        """`force_upcast`: activations of XL's VAE exceed what fp16 holds."""
        half = StableDiffusionXL(sdxl, device=CPU, dtype=torch.float16)
        types = {name: getattr(half.pipe, name).dtype for name in ("vae", "text_encoder", "text_encoder_2", "unet")}
        assert types == {
            "vae": torch.float32, "text_encoder": torch.float16, "text_encoder_2": torch.float16, "unet": torch.float32,
        }  # fmt: skip

    def test_pictures_get_no_watermark(self, sdxl, monkeypatch):
        """Where the package for it is there, diffusers' default is to add one."""
        made = importlib.import_module("diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl")
        monkeypatch.setattr(made, "is_invisible_watermark_available", lambda: True)
        monkeypatch.setattr(made, "StableDiffusionXLWatermarker", lambda: "a mark", raising=False)
        assert StableDiffusionXLPipeline.from_pretrained(sdxl, local_files_only=True, **FP32).watermark == "a mark"
        assert StableDiffusionXL(sdxl, device=CPU).pipe.watermark is None
        drawing = load_pipeline(sdxl, device=CPU, dtype=torch.float32, variant=None, scheduler=None)
        assert drawing.watermark is None

    def test_encoders_can_be_released(self, sdxl):
        family = StableDiffusionXL(sdxl, device=CPU)
        family.release_encoders()
        assert family.pipe.vae is family.pipe.text_encoder is family.pipe.text_encoder_2 is None


class TestErased:
    def test_is_loaded_by_diffusers_and_differs_in_the_denoiser_alone(self, erased, sdxl):
        new, old = (
            StableDiffusionXLPipeline.from_pretrained(place, local_files_only=True, **FP32)
            for place in (erased.pipeline, sdxl)
        )
        moved = [not torch.equal(a, b) for a, b in zip(new.unet.parameters(), old.unet.parameters(), strict=True)]
        assert any(moved)
        for name in ("text_encoder", "text_encoder_2", "vae"):
            for a, b in zip(getattr(new, name).parameters(), getattr(old, name).parameters(), strict=True):
                assert torch.equal(a, b)
        new.set_progress_bar_config(disable=True)
        assert new("a star", num_inference_steps=2).images[0].size == (16, 16)
        assert {path.name for path in (erased.pipeline / "unet").iterdir()} == {"config.json", Path(UNET).name}

    def test_the_pooled_embedding_counts_in_the_mask(self, erased):
        """The layers that it enters by are among the weights that carry the concept."""
        mask = SaliencyMask.load(erased.mask)
        assert mask["add_embedding.linear_1.weight"].any()

    def test_can_be_verified_patched_and_drawn_with(self, erased, sdxl, tmp_path):
        assert verify.main([str(sdxl), str(erased.pipeline), "--mask", str(erased.mask)]) == 0
        assert patch.main(["apply", str(sdxl), str(erased.patch), str(tmp_path / "applied")]) == 0
        assert patch.main(["revert", str(erased.pipeline), str(erased.patch), str(tmp_path / "reverted")]) == 0
        assert (tmp_path / "applied" / UNET).read_bytes() == (erased.pipeline / UNET).read_bytes()
        assert (tmp_path / "reverted" / UNET).stat().st_size == (sdxl / UNET).stat().st_size
        assert verify.main([str(sdxl), str(tmp_path / "applied"), "--mask", str(erased.mask)]) == 0
        (tmp_path / "prompts.txt").write_text("a star\n")
        prompts = str(tmp_path / "prompts.txt")
        words = ["--pretrained_model_name_or_path", str(erased.pipeline), "--prompts", prompts, "--output_dir"]
        assert generate.main([*words, str(tmp_path / "drawn"), "--num_inference_steps", "2"]) == 0
        assert [*(tmp_path / "drawn").glob("*.png")]

    def test_a_finished_run_is_taken_up(self, erased, sdxl, small_run, capsys):
        before = (erased.pipeline / UNET).read_bytes()
        words = small_run(pretrained_model_name_or_path=sdxl, output_dir=erased.root, resume_from_checkpoint="latest",
                          num_validation_images=1)  # fmt: skip
        assert main(words) == 0
        assert "fine-tuning" not in capsys.readouterr().err
        assert (erased.pipeline / UNET).read_bytes() == before

    @pytest.mark.parametrize(
        "flags",
        [
            {"variant": "fp16"},
            {"recipe": "paper"},
            {"objective": "esd"},
            {"train_method": "xattn"},
            {"mixed_precision": "bf16"},
        ],
    )
    def test_other_ways(self, sdxl, small_run, tmp_path, flags):
        assert (
            main(small_run(pretrained_model_name_or_path=sdxl, output_dir=tmp_path / "run", max_train_steps=2, **flags))
            == 0
        )
        assert StableDiffusionXLPipeline.from_pretrained(
            tmp_path / "run" / "pipeline",
            local_files_only=True,
            variant=flags.get("variant"),
            **FP32,
        )

    def test_an_interrupted_run_goes_on_to_the_same_weights(self, sdxl, small_run, tmp_path, capsys):
        words = {"pretrained_model_name_or_path": sdxl, "output_dir": tmp_path / "run", "checkpointing_steps": 2}
        assert main(small_run(**words)) == 0
        unet = RunFolder(tmp_path / "run").pipeline / UNET
        before = unet.read_bytes()
        shutil.rmtree(tmp_path / "run" / "pipeline")
        (tmp_path / "run" / "work" / "pipeline.json").unlink()
        shutil.rmtree(tmp_path / "run" / "checkpoint-4")
        capsys.readouterr()
        assert main(small_run(**words, resume_from_checkpoint="latest")) == 0
        assert "2/4" in capsys.readouterr().err
        assert unet.read_bytes() == before

    def test_predicting_v(self, small_run, tmp_path):
        folder = build_sdxl(tmp_path / "v", prediction_type="v_prediction")
        words = small_run(pretrained_model_name_or_path=folder, output_dir=tmp_path / "run", snr_power=0.5)
        assert main(words) == 0

    def test_the_plan(self, sdxl, small_run, capsys, empty_folder, tmp_path):
        assert main(small_run(pretrained_model_name_or_path=sdxl, dry_run=True)) == 0
        assert "predicts  epsilon" in capsys.readouterr().out
        assert not [*tmp_path.iterdir()]


@pytest.mark.slow  # Two more imports of torch and diffusers at once.
def test_two_processes_give_what_one_gives(sdxl, small_run, tmp_path):
    """Half the batch for each of them, the same sets; what is drawn and scored is the same to the bit or nearly so."""
    alone, both = tmp_path / "one", tmp_path / "two"
    words = {"pretrained_model_name_or_path": sdxl, "max_train_steps": 2}
    assert main(small_run(output_dir=alone, **words, saliency_batch_size=3)) == 0
    program = Path(__file__).parent.parent.parent / "erase.py"
    run_two(program, *small_run(output_dir=both, **words, saliency_batch_size=3))
    masks = [SaliencyMask.load(RunFolder(folder).mask) for folder in (alone, both)]
    same = sum(int((masks[0][name] == masks[1][name]).sum()) for name in masks[0])
    assert same >= 0.999 * sum(masks[0][name].numel() for name in masks[0])
    for name in ("forget", "retain"):
        files = [folder / "work" / f"{name}.safetensors" for folder in (alone, both)]
        assert files[0].read_bytes() == files[1].read_bytes()
