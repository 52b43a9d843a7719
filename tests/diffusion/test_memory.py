"""What a run keeps in memory, and when: parts of batches, gradients of what can move, and nothing of it in the end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_runs import run_in, tiny_settings

from salun_diffusers.accelerator import engine
from salun_diffusers.diffusion import saliency_pass, trainer
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.diffusion.latent_sets import EraseData, LatentSet
from salun_diffusers.diffusion.masks import trained_parameters
from salun_diffusers.diffusion.saliency_pass import forget_saliency
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.saliency import Saliency
from salun_diffusers.masks.selected_weights import SelectedWeights
from salun_diffusers.seeds import stream

SETTINGS = dataclasses.replace(tiny_settings(), saliency_batch_size=4, saliency_guidance=7.5)
FORGET, ANCHOR, RETAIN = ["a photo of a circle", "a circle"], ["a photo of a square", "a square"], ["a star"]


@pytest.fixture
def family(tiny_pipeline: Path) -> StableDiffusion:
    return StableDiffusion(tiny_pipeline, device=torch.device("cpu"))


@pytest.fixture
def data(family) -> EraseData:
    drawn = torch.randn(7, 4, 4, 4, generator=stream(0, "forget"))
    sets = LatentSet(drawn, torch.arange(7) % 2, tuple(FORGET)), LatentSet(drawn, torch.zeros(7).long(), tuple(RETAIN))
    return EraseData(*sets, LatentSet.empty(ANCHOR), *map(family.encode, (FORGET, ANCHOR, RETAIN, [""])))


def saliency(family, data, folder, precision="no", method="full", **changes) -> Saliency:
    parameters = trained_parameters(dict(family.denoiser.named_parameters()), method, family.attention)
    with engine(mixed_precision=precision, gradient_accumulation_steps=1, report_to=None) as accelerator:
        settings = dataclasses.replace(SETTINGS, **changes)
        return forget_saliency(run_in(folder, accelerator), family, parameters, data, settings)


@pytest.fixture
def seen(monkeypatch) -> list[tuple[int, bool, set[str]]]:
    """Of every loss of the saliency: rows, whether checkpointing is on, and the tensors that get gradients."""
    rows, loss = [], saliency_pass.guided_noise_loss

    def spied(family, denoiser, batch, guidance):
        trained = {name for name, parameter in denoiser.named_parameters() if parameter.requires_grad}
        rows.append((len(batch.noised), denoiser.is_gradient_checkpointing, trained))
        return loss(family, denoiser, batch, guidance)

    monkeypatch.setattr(saliency_pass, "guided_noise_loss", spied)
    return rows


class TestSaliency:
    @pytest.mark.parametrize("norm", [float("inf"), 0.01], ids=["free", "clipped"])
    @pytest.mark.parametrize(("micro", "rows"), [(1, [1] * 7), (3, [3, 1, 3]), (9, [4, 3])])
    @pytest.mark.parametrize("offload", [False, True])
    def test_micro_batches_give_the_sums_of_whole_batches(
        self, family, data, tmp_path, seen, micro, rows, norm, offload
    ):
        """Two batches, of 4 and 3 latents; the draws are the same, so that sums differ by rounding only."""
        whole = saliency(family, data, tmp_path, saliency_max_grad_norm=norm)
        seen.clear()
        parts = saliency(
            family, data, tmp_path, saliency_max_grad_norm=norm, saliency_micro_batch_size=micro,
            offload_saliency=offload,
        )  # fmt: skip
        assert [count for count, _, _ in seen] == rows
        for name, scores in whole.items():
            torch.testing.assert_close(parts[name], scores, atol=2e-5 * float(scores.max()), rtol=1e-4)
        masks_of = [SaliencyMask.from_saliency(scores, 0.5) for scores in (whole, parts)]
        assert masks_of[0].overlap(masks_of[1]) > 0.999

    def test_checkpointing_is_on_from_here_and_changes_nothing(self, family, data, tmp_path, seen):
        plain = saliency(family, data, tmp_path)
        kept = saliency(family, data, tmp_path, gradient_checkpointing=True)
        assert [on for _, on, _ in seen] == [False, False, True, True]
        for name, scores in plain.items():
            torch.testing.assert_close(kept[name], scores, atol=1e-5 * float(scores.max()), rtol=1e-4)

    @pytest.mark.parametrize("norm", [float("inf"), 1.0], ids=["free", "clipped"])
    def test_only_scored_tensors_get_gradients_and_none_is_left(self, family, data, tmp_path, seen, norm):
        """The others are most of a U-Net where cross-attention alone is scored."""
        scores = saliency(family, data, tmp_path, method="xattn", saliency_max_grad_norm=norm)
        parameters = dict(family.denoiser.named_parameters())
        assert 0 < len(scores) < len(parameters) / 2
        assert all(trained == set(scores) for _, _, trained in seen)
        assert all(parameter.requires_grad and parameter.grad is None for parameter in parameters.values())

    def test_scores_of_some_tensors_are_those_among_all(self, family, data, tmp_path):
        scores, everything = saliency(family, data, tmp_path, method="xattn"), saliency(family, data, tmp_path)
        assert all(torch.equal(scores[name], everything[name]) for name in scores)

    def test_is_the_same_in_bf16_up_to_its_rounding(self, family, data, tmp_path):
        plain, half = (saliency(family, data, tmp_path, precision) for precision in ("no", "bf16"))
        chosen = [SaliencyMask.from_saliency(scores, 0.5) for scores in (plain, half)]
        assert any(not torch.equal(half[name], plain[name]) for name in plain)
        assert chosen[0].overlap(chosen[1]) > 0.9

    def test_under_fp16_is_that_of_fp32_and_says_so(self, family, data, tmp_path, monkeypatch, capsys):
        plain = saliency(family, data, tmp_path)
        assert "note" not in capsys.readouterr().err
        monkeypatch.setattr("accelerate.Accelerator.mixed_precision", "fp16")  # A CPU has none.
        half = saliency(family, data, tmp_path)
        assert all(torch.equal(half[name], plain[name]) for name in plain)
        assert "note: the saliency is computed in fp32" in capsys.readouterr().err


class TestFineTuning:
    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_of_cross_attention_has_no_other_gradients(self, family, data, tmp_path, monkeypatch, accumulation):
        """Neither while backward runs nor after it; and gradients of the weights themselves are gone as they come."""
        parameters = dict(family.denoiser.named_parameters())
        trained = trained_parameters(parameters, "xattn", family.attention)
        selected = SelectedWeights(parameters, SaliencyMask.full(trained).extended_to(parameters))
        step, got = trainer._step, set()

        def spied(accelerator, network, *others, **named):
            names = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
            hooks = [
                parameters[name].register_post_accumulate_grad_hook(
                    lambda parameter, name=name: got.add((name, parameter.grad is None))
                )
                for name in names
            ]
            row = step(accelerator, network, *others, **named)
            assert all(parameter.grad is None for parameter in network.parameters())
            for hook in hooks:
                hook.remove()
            return row

        monkeypatch.setattr(trainer, "_step", spied)
        settings = tiny_settings(gradient_accumulation_steps=accumulation, learning_rate=1e-4)
        with engine(mixed_precision="no", gradient_accumulation_steps=accumulation, report_to=None) as accelerator:
            trainer.fine_tune(run_in(tmp_path, accelerator), family, selected, data, settings, None)
        assert got == {(name, True) for name in trained}
        assert all(parameter.requires_grad for parameter in parameters.values())
