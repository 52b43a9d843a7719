"""How Stable Diffusion is conditioned, noised, predicted and sampled."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import build_pipeline
from torch import Tensor, nn

from salun_diffusers.diffusion.baselines import FineTune, GradientAscent, NegativeGuidance
from salun_diffusers.diffusion.families.erasable import FAMILIES
from salun_diffusers.diffusion.families.family import rows, spread
from salun_diffusers.diffusion.families.known import family_of
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.diffusion.families.unet_family import UNetFamily
from salun_diffusers.diffusion.objectives import EraseBatch, PromptSwap, guided_noise_loss
from salun_diffusers.errors import UserError

CPU = torch.device("cpu")
PROMPTS = ["a photo of a circle", "a star", "a photo of a square"]
SEEDS = [11, 12, 13]


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> StableDiffusion:
    return StableDiffusion(tiny_pipeline, device=CPU)


@pytest.fixture(scope="module")
def v_family(tmp_path_factory) -> StableDiffusion:
    folder = build_pipeline(tmp_path_factory.mktemp("models") / "v", prediction_type="v_prediction")
    return StableDiffusion(folder, device=CPU)


@pytest.fixture(scope="module")
def x_family(tmp_path_factory) -> StableDiffusion:
    folder = build_pipeline(tmp_path_factory.mktemp("models") / "x", prediction_type="sample")
    return StableDiffusion(folder, device=CPU)


@pytest.fixture(scope="module")
def zero_family(tmp_path_factory) -> StableDiffusion:
    folder = build_pipeline(tmp_path_factory.mktemp("models") / "zero", prediction_type="v_prediction")
    return StableDiffusion(without_terminal_signal(folder), device=CPU)


def without_terminal_signal(folder: Path) -> Path:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rescale_betas_zero_snr": True}))
    return folder


def alphas_by_hand() -> Tensor:
    """Linear β from 1e-4 to 0.02 in 1000 steps."""
    return (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


def gradient_norm(loss: Tensor, network: nn.Module) -> float:
    found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    return float(torch.stack([one.norm() for one in found if one is not None]).norm())


class TestPrediction:
    def test_noised_by_hand(self, family):
        """Linear β from 1e-4 to 0.02 in 1000 steps: ᾱ_0 = 0.9999, ᾱ_1 = 0.9999 · (1 - 1e-4 - 0.0199/999).

        x_0 = 2, ε = 3: x_t at t = 0 is √0.9999 · 2 + √0.0001 · 3 = 1.9999 + 0.03.
        """
        first = 0.9999 * (1 - 1e-4 - 0.0199 / 999)
        expected = [math.sqrt(0.9999) * 2 + 0.03, math.sqrt(first) * 2 + math.sqrt(1 - first) * 3]
        noised = family.schedule.noised(2 * torch.ones(2, 1, 1, 1), 3 * torch.ones(2, 1, 1, 1), torch.tensor([0, 1]))
        assert noised.flatten().tolist() == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("wrong_by", [0.0, 0.3])
    def test_errors_of_one_network_in_three_spaces(self, family, v_family, x_family, wrong_by):
        """A network that believes in ε̂ = ε + d believes in x̂_0 = (x_t - √(1-ᾱ) ε̂) / √ᾱ and v̂ = √ᾱ ε̂ - √(1-ᾱ) x̂_0.

        Then ‖Δε‖² = ᾱ ‖Δv‖² = ᾱ / (1-ᾱ) ‖Δx_0‖², each error being taken in what the network answers.
        """
        generator = torch.Generator().manual_seed(0)
        latents, noise, error = torch.randn(3, 2, 4, 4, 4, generator=generator)
        timesteps = torch.tensor([100, 600])
        noised = family.schedule.noised(latents, noise, timesteps)
        alpha = alphas_by_hand()[timesteps].view(-1, 1, 1, 1).float()
        believed = noise + wrong_by * error
        believed_latents = (noised - (1 - alpha).sqrt() * believed) / alpha.sqrt()
        v = alpha.sqrt() * believed - (1 - alpha).sqrt() * believed_latents

        def network_of(answer: Tensor):
            return lambda noised, timesteps: SimpleNamespace(sample=answer)

        for kind, answer, factor in (
            (family, believed, torch.ones_like(alpha)),
            (v_family, v, alpha),
            (x_family, believed_latents, alpha / (1 - alpha)),
        ):
            prediction = kind.predict(network_of(answer), noised, timesteps, {})
            errors = (prediction - kind.schedule.target(latents, noise, timesteps)).square()
            wanted = wrong_by**2 * error.square()
            torch.testing.assert_close(factor * errors, wanted, atol=1e-5, rtol=1e-3)

    @pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
    def test_weights_lead_from_plain_errors_to_those_of_latents(self, family, v_family, x_family, power):
        """Plain ones at p = 0; at p = 1, w ‖Δε‖² = w ‖Δv‖² = ‖Δx_0‖² wherever no weight is above 10."""
        timesteps = torch.tensor([0, 100, 400])
        alpha = alphas_by_hand()[timesteps]
        ratio = alpha / (1 - alpha)
        for kind, wanted in ((family, ratio**-power), (v_family, (ratio + 1) ** -power), (x_family, ratio**0)):
            found = kind.schedule.error_weight(timesteps, power)
            torch.testing.assert_close(found, wanted.float(), atol=0, rtol=2e-3)
        assert float(family.schedule.error_weight(torch.tensor([999]), 1.0)) == 10
        assert float(v_family.schedule.error_weight(torch.tensor([999]), 1.0)) == pytest.approx(1, abs=1e-4)

    def test_timesteps_are_the_schedules(self, family):
        drawn = family.schedule.sample(20_000, torch.Generator().manual_seed(0))
        assert drawn.shape == (20_000,) and drawn.unique().numel() > 990
        assert torch.equal(drawn, torch.randint(1000, (20_000,), generator=torch.Generator().manual_seed(0)))

    def test_rows_are_spread_over_whatever_dimensions_there_are(self, family):
        """Packed latents have three dimensions; the numbers are those of an image's."""
        latents, noise = torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        timesteps, schedule = torch.tensor([3, 700]), family.schedule
        flat = schedule.noised(latents.flatten(2), noise.flatten(2), timesteps)
        assert torch.equal(flat, schedule.noised(latents, noise, timesteps).flatten(2))
        assert spread(timesteps, flat).shape == (2, 1, 1)

    @pytest.mark.parametrize("wanted", ["epsilon", "v_prediction"])
    def test_prediction_type_replaces_what_the_scheduler_says(self, tiny_pipeline, wanted):
        """For the losses, and for drawing."""
        family = StableDiffusion(tiny_pipeline, device=CPU, prediction_type=wanted)
        assert family.schedule.prediction == family.pipe.scheduler.config.prediction_type == wanted

    def test_refuses_other_predictions(self, tmp_path):
        folder = build_pipeline(tmp_path / "flow", prediction_type="flow_prediction")
        with pytest.raises(UserError, match=r"epsilon, v_prediction, sample.*'flow_prediction'"):
            StableDiffusion(folder, device=CPU)

    def test_refuses_noise_that_says_nothing(self, tmp_path):
        """At SNR 0, ε = x_T, of which x_0 does not follow."""
        folder = without_terminal_signal(build_pipeline(tmp_path / "zero"))
        with pytest.raises(UserError, match=r"no signal at its last timestep.*--prediction_type v_prediction"):
            StableDiffusion(folder, device=CPU)
        assert StableDiffusion(folder, device=CPU, prediction_type="v_prediction").schedule.alphas[-1] == 0


class TestWithoutTerminalSignal:
    """A v-model with zero terminal SNR decides the layout at its last timestep, where ε is x_T itself."""

    def batch(self, family: StableDiffusion) -> EraseBatch:
        latents, noise = torch.randn(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(3))
        last = torch.full((4,), 999)
        prompts, empty = family.encode(["a star", "a photo of a circle"]), family.encode([""])
        two = torch.tensor([0, 0, 1, 1])
        return EraseBatch(
            family.schedule.noised(latents, noise, last), last, family.schedule.target(latents, noise, last),
            rows(prompts, two), rows(prompts, two.flip(0)), rows(empty, torch.zeros(4, dtype=torch.long)),
        )  # fmt: skip

    @pytest.mark.parametrize(
        "objective",
        [
            PromptSwap(1.0, teacher="base", retain_target="base"),
            PromptSwap(1.0, teacher="current", retain_target="noise"),
            NegativeGuidance(),
            GradientAscent(),
            FineTune(),
        ],
    )
    def test_training_has_a_gradient_there(self, zero_family, objective):
        network, batch = zero_family.denoiser, self.batch(zero_family)
        target = objective.target(zero_family, network, batch)
        prediction = zero_family.predict(network, batch.noised, batch.timesteps, batch.conditions)
        assert gradient_norm(objective(prediction, target).total, network) > 1e-4

    def test_saliency_has_a_gradient_there(self, zero_family):
        loss = guided_noise_loss(zero_family, zero_family.denoiser, self.batch(zero_family), 7.5)
        assert gradient_norm(loss, zero_family.denoiser) > 1e-3

    def test_a_loss_of_noise_would_have_none(self, zero_family):
        """What was compared before: ε̂ = √ᾱ v + √(1-ᾱ) x_t, which at ᾱ = 0 is x_t whatever the network says."""
        network, batch = zero_family.denoiser, self.batch(zero_family)
        alpha = zero_family.schedule.alphas[batch.timesteps].view(-1, 1, 1, 1)
        v = zero_family.predict(network, batch.noised, batch.timesteps, batch.conditions)
        epsilon = alpha.sqrt() * v + (1 - alpha).sqrt() * batch.noised
        assert gradient_norm((epsilon - 1).square().mean(), network) == 0


def test_saliency_of_one_network_in_two_spaces(family, v_family):
    """The gradient of a squared error in v is that in ε over ᾱ, where both say the same of the same x_t.

    At one timestep, of the bias of the last convolution: of what a network answers, d ε̂ / d v = √ᾱ.
    """
    latents, noise = torch.randn(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    timesteps = torch.full((4,), 400)
    states, empty = family.encode(["a star"] * 4), family.encode([""] * 4)
    noised = v_family.schedule.noised(latents, noise, timesteps)
    alpha = float(alphas_by_hand()[400])
    batch = EraseBatch(noised, timesteps, v_family.schedule.target(latents, noise, timesteps), states,
                       empty_conditions=empty)  # fmt: skip
    guided = guided_noise_loss(v_family, v_family.denoiser, batch, 2.0)
    network = v_family.denoiser
    of_v = torch.autograd.grad(guided, list(network.parameters()))

    def as_noise(network, noised, timesteps, conditions):
        return alpha**0.5 * v_family.predict(network, noised, timesteps, conditions) + (1 - alpha) ** 0.5 * noised

    told = SimpleNamespace(predict=as_noise)
    of_noise = torch.autograd.grad(
        guided_noise_loss(told, network, batch._replace(truth=noise), 2.0), list(network.parameters())
    )
    for one, other in zip(of_noise, of_v, strict=True):
        torch.testing.assert_close(one, alpha * other, atol=1e-5, rtol=1e-2)


def test_a_family_without_an_empty_prompt_is_scored_by_its_prompts_alone(family):
    """Guidance 0 asks c alone: the same loss as with ∅ at that guidance."""
    latents, noise = torch.randn(2, 4, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    timesteps = torch.full((4,), 400)
    noised = family.schedule.noised(latents, noise, timesteps)
    both = EraseBatch(noised, timesteps, noise, family.encode(["a star"] * 4), empty_conditions=family.encode([""] * 4))
    found = [guided_noise_loss(family, family.denoiser, one, 0.0) for one in (both, both._replace(empty_conditions={}))]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("pipeline_class", FAMILIES)
def test_every_class_that_is_named_has_its_family(pipeline_class):
    assert issubclass(family_of(pipeline_class), UNetFamily)


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

    def test_pictures_go_to_latents(self, family):
        """The VAE's posterior, scaled as the denoiser sees latents (0.18215)."""
        pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with torch.no_grad():
            posterior = family.pipe.vae.encode(pixels).latent_dist
        mean, deviation = family.encode_images(pixels)
        torch.testing.assert_close(mean, 0.18215 * posterior.mean)
        torch.testing.assert_close(deviation, 0.18215 * posterior.std)

    def test_encoders_can_be_released(self, tiny_pipeline):
        family = StableDiffusion(tiny_pipeline, device=CPU)
        family.release_encoders()
        assert family.pipe.vae is None
        assert family.pipe.text_encoder is None
