"""The equations: the objective and the saliency loss, against values worked out by hand and the official formula."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from salun_diffusers.diffusion.families.family import rows
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.diffusion.objectives import EraseBatch, PromptSwap, guided_noise_loss
from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.saliency import gradient_saliency

BASE = PromptSwap(retain_weight=0.5, teacher="base", retain_target="base")
PAPER = PromptSwap(retain_weight=0.5, teacher="current", retain_target="noise")


@pytest.fixture
def family(tiny_pipeline: Path) -> StableDiffusion:
    family = StableDiffusion(tiny_pipeline, device=torch.device("cpu"))
    family.denoiser.eval()
    return family


def batch_of(family: StableDiffusion, forget: str, anchor: str, retain: str = "a star") -> EraseBatch:
    """Two forget and two retain rows."""
    generator = torch.Generator().manual_seed(3)
    latents, noise = torch.randn(2, 4, 4, 4, 4, generator=generator)
    timesteps = torch.tensor([10, 400, 700, 999])
    states = family.encode([forget, anchor, retain])

    def pick(first: int) -> dict[str, Tensor]:
        return rows(states, torch.tensor([first, first, 2, 2]))

    return EraseBatch(family.schedule.noised(latents, noise, timesteps), timesteps, noise, pick(0), pick(1))


class TestPromptSwap:
    def test_by_hand(self):
        """Forget: mean of (1-0)², (2-0)² = 2.5. Retain: mean of (3-3)², (5-1)² = 8. Total: 2.5 + 0.5 · 8 = 6.5."""
        losses = BASE(torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[0.0, 0.0], [3.0, 1.0]]))
        assert [float(value) for value in losses] == [6.5, 2.5, 8.0]

    def test_base_teacher_has_nothing_to_teach_where_forget_is_anchor(self, family):
        batch = batch_of(family, "a star", "a star")
        target = BASE.target(family, family.denoiser, batch)
        losses = BASE(family.predict(family.denoiser, batch.noised, batch.timesteps, batch.conditions), target)
        # One network, one batch, one order of additions: exact zeros. The base holds its own retained half as well.
        assert [value.item() for value in losses] == [0.0, 0.0, 0.0]
        losses.total.backward()
        assert not any(p.grad.count_nonzero() for p in family.denoiser.parameters())

    def test_present_teacher_has_nothing_to_teach_anywhere(self, family):
        """ε_θ(x, c) - sg ε_θ(x, c) is zero for any θ; the half batch of the teacher may round in its own way."""
        with torch.no_grad():
            for parameter in family.denoiser.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        batch = batch_of(family, "a star", "a star")
        target = PAPER.target(family, family.denoiser, batch)
        losses = PAPER(family.predict(family.denoiser, batch.noised, batch.timesteps, batch.conditions), target)
        assert losses.forget.item() < 1e-10 < 0.1 < losses.retain.item()
        losses.forget.backward()
        assert max(float(p.grad.abs().max()) for p in family.denoiser.parameters()) < 1e-5

    @pytest.mark.parametrize("objective", [BASE, PAPER])
    def test_forget_target_is_the_anchors_prediction_without_gradient(self, family, objective):
        batch = batch_of(family, "a photo of a circle", "a photo of a square")
        target = objective.target(family, family.denoiser, batch)
        assert not target.requires_grad
        expected = family.denoiser(
            batch.noised[:2], batch.timesteps[:2],
            encoder_hidden_states=family.encode(["a photo of a square"])["encoder_hidden_states"].expand(2, -1, -1),
        ).sample  # fmt: skip
        torch.testing.assert_close(target[:2], expected.detach(), atol=1e-6, rtol=1e-5)

    def test_retain_target_is_the_noise_or_the_base(self, family):
        batch = batch_of(family, "a photo of a circle", "a photo of a square")
        assert torch.equal(PAPER.target(family, family.denoiser, batch)[2:], batch.truth[2:])
        with torch.no_grad():
            prediction = family.predict(family.denoiser, batch.noised, batch.timesteps, batch.conditions)
        torch.testing.assert_close(BASE.target(family, family.denoiser, batch)[2:], prediction[2:])

    def test_an_overshoot_goes_past_the_anchor(self, family):
        """ε₀(c′) + 3 (ε₀(c′) - ε₀(c)) = 4 ε₀(c′) - 3 ε₀(c); the retained half is what it was."""
        batch = batch_of(family, "a photo of a circle", "a photo of a square")
        far = PromptSwap(0.5, "base", "base", overshoot=3.0).target(family, family.denoiser, batch)
        with torch.no_grad():
            known = family.predict(family.denoiser, batch.noised, batch.timesteps, batch.conditions)
            anchor = family.predict(family.denoiser, batch.noised, batch.timesteps, batch.anchor_conditions)
        assert float((known - anchor)[:2].abs().max()) > 1e-3 and not far.requires_grad
        torch.testing.assert_close(far, torch.cat([(4 * anchor - 3 * known)[:2], anchor[2:]]), atol=1e-5, rtol=1e-5)
        with pytest.raises(UserError, match="overshoot needs teacher"):
            PromptSwap(0.5, "current", "noise", overshoot=1.0)

    def test_refuses_a_present_teacher_of_retained_pictures(self):
        with pytest.raises(UserError, match="cannot give both targets"):
            PromptSwap(retain_weight=1.0, teacher="current", retain_target="base")


class TestGuidedNoiseLoss:
    def test_by_hand_with_gradient_through_both_branches(self):
        """A network ε = w · c at w = 1, with c = 2, ∅ = 1, noise 1 and guidance 7.5.

        ε̂ = 8.5 · 2w - 7.5 · w = 9.5 w, so ℓ = (9.5 - 1)² = 72.25 and dℓ/dw = 2 · 8.5 · 9.5 = 161.5. Were the
        unconditional branch detached, dℓ/dw would be 2 · 8.5 · 17 = 289.
        """
        weight = nn.Parameter(torch.ones(()))
        linear = SimpleNamespace(predict=lambda network, noised, timesteps, conditions: network * conditions["c"])
        one = torch.ones(1, 1, 1, 1)
        batch = EraseBatch(one, torch.zeros(1, dtype=torch.long), one, {"c": 2 * one}, empty_conditions={"c": one})
        loss = guided_noise_loss(linear, weight, batch, 7.5)
        loss.backward()
        assert (float(loss.detach()), float(weight.grad)) == (72.25, 161.5)

    @pytest.mark.parametrize("form", ["(1+w) cond - w uncond", "uncond + 8.5 (cond - uncond)"])
    def test_equals_the_official_loss(self, family, form):
        """OPTML-Group/Unlearn-Saliency@a6e89fd, SD/train-scripts/generate_mask.py, and diffusers' form of it.

        Official: loss = -MSE(noise, (1 + 7.5) · forward(c) - 7.5 · forward("")), two forwards, both with gradient;
        the mask takes |gradient|. Guidance 7.5 there is guidance_scale 8.5 in diffusers.
        """
        batch = batch_of(family, "a photo of a circle", "a photo of a square")
        states = family.encode(["a photo of a circle", ""])["encoder_hidden_states"]
        condition, empty = (state.expand(4, -1, -1) for state in states.split(1))
        network, parameters = family.denoiser, list(family.denoiser.parameters())
        cond = network(batch.noised, batch.timesteps, encoder_hidden_states=condition).sample
        uncond = network(batch.noised, batch.timesteps, encoder_hidden_states=empty).sample
        guided = (1 + 7.5) * cond - 7.5 * uncond if form.startswith("(1+w)") else uncond + 8.5 * (cond - uncond)
        official = -F.mse_loss(batch.truth, guided)
        expected = torch.autograd.grad(official, parameters)
        of_forget = batch._replace(
            conditions={"encoder_hidden_states": condition}, empty_conditions={"encoder_hidden_states": empty}
        )
        ours = guided_noise_loss(family, network, of_forget, 7.5)
        torch.testing.assert_close(ours, -official)
        for gradient, other in zip(torch.autograd.grad(ours, parameters), expected, strict=True):
            torch.testing.assert_close(gradient, -other, atol=1e-5, rtol=1e-3)

    def test_mask_ignores_sign_and_scale_of_the_loss(self, family):
        """Scales are powers of two, so not even rounding differs."""
        parameters = dict(family.denoiser.named_parameters())
        batch = batch_of(family, "a photo of a circle", "a photo of a square")
        empty = rows(family.encode([""]), torch.zeros(4, dtype=torch.long))
        of_forget = batch._replace(empty_conditions=empty)

        def mask(scale: float) -> SaliencyMask:
            def loss(guidance: float) -> Tensor:
                return scale * guided_noise_loss(family, family.denoiser, of_forget, guidance)

            return SaliencyMask.from_saliency(gradient_saliency(parameters, [7.5, 1.0], loss), 0.5)

        assert mask(1.0) == mask(-1.0) == mask(4.0)
