"""--resolution: what is drawn, trained on and shown has that size; by default it is the model's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from salun_diffusers.diffusion.families.known import family_of
from salun_diffusers.programs.erase import main


def sides(run: Path) -> set[tuple[int, int]]:
    found = set()
    for path in (run / "samples").glob("*.png"):
        with Image.open(path) as picture:
            found.add(picture.size)
    return found


def test_sets_and_pictures_have_it(small_run, tmp_path, capsys):
    """The tiny model's own is 16 pixels of 4 x 4 latents."""
    own, other = tmp_path / "own", tmp_path / "other"
    kept = tmp_path / "kept"
    assert main(small_run(output_dir=own, generated_data_dir=kept)) == 0
    assert main(small_run(output_dir=other, generated_data_dir=kept, resolution=24)) == 0
    assert (sides(own), sides(other)) == ({(16, 16)}, {(24, 24)})
    shapes = [load_file(run / "work" / "forget.safetensors")["latents"].shape[-2:] for run in (own, other)]
    assert shapes == [(4, 4), (6, 6)]
    capsys.readouterr()
    # Another size is another set, and with it another mask and training.
    words = small_run(output_dir=other, generated_data_dir=kept, resume_from_checkpoint="latest")
    assert main(words) == 0
    assert all(stage in capsys.readouterr().err for stage in ("saliency",))
    assert sides(other) == {(16, 16)}


def test_the_models_own_said_aloud_is_the_same(small_run, tmp_path):
    for name, resolution in (("silent", None), ("said", 16)):
        assert main(small_run(output_dir=tmp_path / name, resolution=resolution)) == 0
    unet = "pipeline/unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "silent" / unet).read_bytes() == (tmp_path / "said" / unet).read_bytes()


def test_the_sizes_that_stable_diffusion_xl_is_told(sdxl):
    own, other = (
        family_of("StableDiffusionXLPipeline")(sdxl, device=torch.device("cpu"), resolution=resolution)
        for resolution in (0, 40)
    )
    side = own.pipe.default_sample_size * own.pipe.vae_scale_factor
    assert own.encode(["a star"])["time_ids"].tolist() == [[side, side, 0, 0, side, side]]
    assert other.encode(["a star"])["time_ids"].tolist() == [[40, 40, 0, 0, 40, 40]]
    latents = other.generate(["a star"], [0], num_inference_steps=1, guidance_scale=1.0)
    assert latents.shape[-1] * own.pipe.vae_scale_factor == 40


@pytest.mark.parametrize(
    ("resolution", "words"), [(20, "a multiple of 8"), (0, "at least 8"), (10_000, "at most 8192")]
)
def test_what_it_cannot_be(refused, resolution, words):
    refused(words, str(resolution), resolution=resolution)


def test_a_model_of_pixels_has_one(refused, tiny_ddpm):
    flags = dict.fromkeys(("forget_prompt", "anchor_prompt", "retain_prompts"))
    refused("models of latents", pretrained_model_name_or_path=tiny_ddpm, concept="0", resolution=16, **flags)
