"""How Stable Diffusion is conditioned, noised, predicted and sampled."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import build_pipeline
from torch import Tensor

from salun_diffusers.diffusion.families.known import family_of
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.errors import UserError

PROMPTS = ["a photo of a circle", "a star", "a photo of a square"]
SEEDS = [11, 12, 13]


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> StableDiffusion:
    return StableDiffusion(tiny_pipeline, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def v_family(tmp_path_factory) -> StableDiffusion:
    folder = build_pipeline(tmp_path_factory.mktemp("models") / "v", prediction_type="v_prediction")
    return StableDiffusion(folder, device=torch.device("cpu"))


class TestPrediction:
    def test_noised_by_hand(self, family):
        """Linear β from 1e-4 to 0.02 in 1000 steps: ᾱ_0 = 0.9999, ᾱ_1 = 0.9999 · (1 - 1e-4 - 0.0199/999).

        x_0 = 2, ε = 3: x_t at t = 0 is √0.9999 · 2 + √0.0001 · 3 = 1.9999 + 0.03.
        """
        first = 0.9999 * (1 - 1e-4 - 0.0199 / 999)
        expected = [math.sqrt(0.9999) * 2 + 0.03, math.sqrt(first) * 2 + math.sqrt(1 - first) * 3]
        noised = family.noised(2 * torch.ones(2, 1, 1, 1), 3 * torch.ones(2, 1, 1, 1), torch.tensor([0, 1]))
        assert noised.flatten().tolist() == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("wrong_by", [0.0, 0.3])
    def test_epsilon_and_v_give_the_same_loss(self, family, v_family, wrong_by):
        """v = √ᾱ ε - √(1-ᾱ) x_0. A network that believes in ε̂ = ε + d believes in x̂_0 = (x_t - √(1-ᾱ) ε̂) / √ᾱ."""
        generator = torch.Generator().manual_seed(0)
        latents, noise, error = torch.randn(3, 2, 4, 4, 4, generator=generator)
        timesteps = torch.tensor([100, 600])
        noised = family.noised(latents, noise, timesteps)
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        alpha = (1 - betas).cumprod(0)[timesteps].view(-1, 1, 1, 1).float()
        believed = noise + wrong_by * error
        believed_latents = (noised - (1 - alpha).sqrt() * believed) / alpha.sqrt()
        v = alpha.sqrt() * believed - (1 - alpha).sqrt() * believed_latents

        def network_of(answer: Tensor):
            return lambda noised, timesteps: SimpleNamespace(sample=answer)

        for kind, answer in ((family, believed), (v_family, v)):
            prediction = kind.predict(network_of(answer), noised, timesteps, {})
            loss = float((prediction - noise).square().mean())
            assert loss == pytest.approx(wrong_by**2 * float(error.square().mean()), abs=1e-5)

    def test_refuses_other_predictions(self, tmp_path):
        folder = build_pipeline(tmp_path / "sample", prediction_type="sample")
        with pytest.raises(UserError, match=r"epsilon or v_prediction.*'sample'"):
            StableDiffusion(folder, device=torch.device("cpu"))

    def test_family_of_names_what_it_knows(self):
        assert family_of("StableDiffusionPipeline") is StableDiffusion
        with pytest.raises(UserError, match="ClassConditionalDDPMPipeline is required, the model is a FluxPipeline"):
            family_of("FluxPipeline")


class TestConditions:
    def test_a_prompt_is_encoded_as_if_alone(self, family):
        together = family.encode(PROMPTS)["encoder_hidden_states"]
        alone = [family.encode([prompt])["encoder_hidden_states"] for prompt in PROMPTS]
        assert together.shape == (3, 16, 16)
        assert torch.equal(together, torch.cat(alone))

    @pytest.mark.parametrize(("words", "cut"), [(14, ""), (15, "heart"), (16, "heart star")])
    def test_words_beyond_the_limit_are_told(self, family, words, cut):
        """16 tokens less start and end leave 14 words, each one token here."""
        sentence = "a photo of a circle a photo of a square a star a photo heart star"
        assert family.cut_words(" ".join(sentence.split()[:words])) == cut


class TestGenerate:
    def draw(self, family, items, guidance_scale=2.0) -> Tensor:
        return family.generate(
            [PROMPTS[i] for i in items], [SEEDS[i] for i in items],
            num_inference_steps=3, guidance_scale=guidance_scale,
        )  # fmt: skip

    def test_same_call_same_bits(self, family):
        assert torch.equal(self.draw(family, [0, 1, 2]), self.draw(family, [0, 1, 2]))

    def test_an_item_depends_on_its_prompt_and_seed_only(self, family):
        """Not on its neighbours, up to rounding.

        Bits may differ between batch sizes: matrix and convolution kernels choose their blocking, hence the order of
        their additions, by the size of the batch. Where bits count (resuming, several processes) batches are the same.
        """
        together = self.draw(family, [0, 1, 2])
        torch.testing.assert_close(self.draw(family, [2, 1, 0]).flip(0), together, atol=1e-4, rtol=1e-4)
        for item in range(3):
            torch.testing.assert_close(self.draw(family, [item])[0], together[item], atol=1e-4, rtol=1e-4)
        assert (together[0] - together[1]).abs().max() > 0.1

    def test_guidance_counts(self, family):
        assert not torch.equal(self.draw(family, [0], 1.0), self.draw(family, [0], 5.0))

    @pytest.mark.parametrize(("side", "rows"), [(4, [9]), (32, [4, 4, 1]), (64, [1] * 9)])
    def test_decodes_as_much_at_once_as_one_picture_of_512_pixels(self, family, monkeypatch, side, rows):
        """The pictures are those of one call, but for rounding."""
        decode, seen = family.pipe.vae.decode, []

        def spied(latents):
            seen.append(len(latents))
            return decode(latents)

        latents = torch.randn(9, 4, side, side, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = decode(latents / family.pipe.vae.config.scaling_factor).sample
        monkeypatch.setattr(family.pipe.vae, "decode", spied)
        pictures = family.decode(latents)
        assert seen == rows
        whole = family.pipe.image_processor.postprocess(expected, output_type="pt")
        for picture, pixels in zip(pictures, whole, strict=True):
            found = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
            # Convolutions round otherwise for other numbers of pictures.
            assert int((found - pixels.mul(255).round()).abs().max()) <= 1

    def test_decodes_to_pictures(self, family):
        assert [picture.size for picture in family.decode(self.draw(family, [0, 1]))] == [(16, 16)] * 2

    def test_encoders_can_be_released(self, tiny_pipeline):
        family = StableDiffusion(tiny_pipeline, device=torch.device("cpu"))
        family.release_encoders()
        assert family.pipe.vae is None
        assert family.pipe.text_encoder is None
