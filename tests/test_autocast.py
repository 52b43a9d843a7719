"""A network that is its own teacher in one autocast block keeps its gradients (torch before 2.11 drops them)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from salun_diffusers.accelerator import engine
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion


def gradients(network: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient.clone() for name, gradient in found.items() if gradient is not None}


class TestOneBlockForTeacherAndStudent:
    def test_by_hand(self) -> None:
        """y = w x, ℓ = (y - t)² with t = y - 1 of the teacher: dℓ/dw = 2 x, whatever w is."""
        layer = nn.Linear(1, 1, bias=False)
        x = torch.tensor([[3.0]])
        with engine(mixed_precision="bf16", gradient_accumulation_steps=1, report_to=None) as accelerator:
            network = accelerator.prepare_model(layer)
            with accelerator.autocast():
                with torch.no_grad():
                    target = network(x) - 1
                loss = (network(x).float() - target.float()).square().sum()
            accelerator.backward(loss)
        torch.testing.assert_close(layer.weight.grad, torch.tensor([[6.0]]), rtol=2**-6, atol=0)

    @pytest.mark.parametrize("precision", ["bf16", "no"])
    def test_the_denoiser(self, tiny_pipeline: Path, precision: str) -> None:
        """Every weight has the gradient that it has with a target that came from elsewhere, and about fp32's."""
        family = StableDiffusion(tiny_pipeline, device=torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        noised = torch.randn(2, 4, 4, 4, generator=generator)
        timesteps = torch.tensor([100, 600])
        prompts, anchors = family.encode(["a star"] * 2), family.encode(["a photo of a circle"] * 2)

        def taught(accelerator: Accelerator, network: nn.Module) -> Tensor:
            with torch.no_grad(), accelerator.autocast():
                return family.predict(network, noised, timesteps, anchors)

        def student(accelerator: Accelerator, network: nn.Module, target: Tensor | None) -> dict[str, Tensor]:
            network.zero_grad()
            with accelerator.autocast():
                wanted = taught(accelerator, network) if target is None else target
                loss = (family.predict(network, noised, timesteps, prompts) - wanted).square().mean()
                accelerator.backward(loss)
            return gradients(network)

        def run(mixed_precision: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            with engine(mixed_precision=mixed_precision, gradient_accumulation_steps=1, report_to=None) as accelerator:
                network = accelerator.prepare_model(family.denoiser)
                target = taught(accelerator, network)
                return student(accelerator, network, None), student(accelerator, network, target)

        together, apart = run(precision)
        exact, _ = run("no")
        for name, gradient in together.items():
            assert torch.equal(gradient, apart[name]), name
        whole, wanted = (torch.cat([g.flatten().double() for g in some.values()]) for some in (together, exact))
        assert float(whole.norm()) > 0
        assert float(torch.cosine_similarity(whole, wanted, dim=0)) > 0.99
