"""Masks by a ratio to what the retain set needs, and states weighted by how far a concept and its anchor are apart."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tiny_runs import run_in, tiny_settings

from salun_diffusers.accelerator import engine
from salun_diffusers.diffusion import saliency_pass
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.diffusion.latent_sets import EraseData, LatentSet
from salun_diffusers.diffusion.masks import saliency_mask
from salun_diffusers.diffusion.objectives import EraseBatch, guided_noise_loss, weighted_noise_loss
from salun_diffusers.diffusion.saliency_pass import forget_saliency, retain_saliency
from salun_diffusers.diffusion.soft_masks import MaskChoice
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.saliency import Saliency
from salun_diffusers.programs.erase import main
from salun_diffusers.seeds import stream

FORGET, ANCHOR, RETAIN = ["a photo of a circle", "a circle"], ["a photo of a square", "a square"], ["a star", "a heart"]
RATIO = dataclasses.replace(tiny_settings(mask="saliency_ratio"), saliency_batch_size=4, saliency_guidance=7.5)


@pytest.fixture
def family(tiny_pipeline: Path) -> StableDiffusion:
    return StableDiffusion(tiny_pipeline, device=torch.device("cpu"))


@pytest.fixture
def data(family: StableDiffusion) -> EraseData:
    drawn = torch.randn(14, 4, 4, 4, generator=stream(0, "latents"))
    sets = (
        LatentSet(drawn[:7], torch.arange(7) % 2, tuple(FORGET)),
        LatentSet(drawn[7:], torch.arange(7) % 2, tuple(RETAIN)),
    )
    return EraseData(*sets, LatentSet.empty(ANCHOR), *map(family.encode, (FORGET, ANCHOR, RETAIN, [""])))


def scored(by, family, data, folder, **changes) -> Saliency | SaliencyMask:
    parameters = dict(family.denoiser.named_parameters())
    with engine(mixed_precision="no", gradient_accumulation_steps=1, report_to=None) as accelerator:
        run, settings = run_in(folder, accelerator), dataclasses.replace(RATIO, **changes)
        if by is saliency_mask:
            return saliency_mask(run, family, parameters, data, MaskChoice(settings), {})
        return by(run, family, parameters, data, settings)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[EraseBatch]:
    """Every batch whose loss is taken."""
    batches: list[EraseBatch] = []
    for name in ("guided_noise_loss", "weighted_noise_loss"):
        loss = getattr(saliency_pass, name)
        monkeypatch.setattr(saliency_pass, name, lambda *words, loss=loss: batches.append(words[2]) or loss(*words))
    return batches


def squares(family: StableDiffusion, batches: list[EraseBatch]) -> dict[str, torch.Tensor]:
    """Σ_b (∇ℓ_b)², straight from the formula."""
    names, weights = zip(*family.denoiser.named_parameters(), strict=True)
    sums = [torch.zeros_like(weight) for weight in weights]
    for batch in batches:
        loss = guided_noise_loss(family, family.denoiser, batch, 7.5)
        for total, gradient in zip(sums, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            if gradient is not None:
                total += gradient**2
    return dict(zip(names, sums, strict=True))


def test_scores_are_taken_in_evaluation_mode(family, data, seen, tmp_path):
    """Without dropout, whatever mode the network came in."""
    family.denoiser.train()
    scored(forget_saliency, family, data, tmp_path)
    assert len(seen) == 2 and not family.denoiser.training


class TestRatio:
    def test_is_that_of_squared_gradients_of_both_sets(self, family, data, seen, tmp_path):
        mask = scored(saliency_mask, family, data, tmp_path, mask_ratio=0.1)
        assert [len(batch.noised) for batch in seen] == [4, 3, 4, 3]
        for batches, latents in ((seen[:2], data.forget.latents), (seen[2:], data.retain.latents)):
            # x_t = √ᾱ x₀ + √(1-ᾱ) ε, and ε is the truth of this network.
            noised, noise, timesteps = (torch.cat([batch[place] for batch in batches]) for place in (0, 2, 1))
            alphas = family.pipe.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
            guessed = (noised - (1 - alphas).sqrt() * noise) / alphas.sqrt()
            torch.testing.assert_close(guessed, latents, atol=1e-4, rtol=0)
        for conditions, prompts in ((seen[0].conditions, FORGET), (seen[2].conditions, RETAIN)):
            told = family.encode([prompts[row % 2] for row in range(4)])
            assert all(torch.equal(conditions[name], told[name]) for name in told)
        forget, retain = squares(family, seen[:2]), squares(family, seen[2:])
        mean = torch.cat([tensor.flatten() for tensor in retain.values()]).mean()
        expected = SaliencyMask.from_saliency(
            Saliency({name: forget[name] / (retain[name] + mean) for name in forget}), 0.1
        )
        assert mask.overlap(expected) > 0.999 and mask.density == expected.density
        plain = scored(saliency_mask, family, data, tmp_path, mask_ratio=0.1, mask="saliency")
        assert mask.overlap(plain) < 0.9

    @pytest.mark.parametrize("micro", [1, 3])
    def test_squares_are_of_whole_batches_however_they_are_cut(self, family, data, tmp_path, micro):
        for by in (forget_saliency, retain_saliency):
            whole, parts = (scored(by, family, data, tmp_path, saliency_micro_batch_size=size) for size in (9, micro))
            for name, scores in whole.items():
                torch.testing.assert_close(parts[name], scores, atol=2e-5 * float(scores.max()), rtol=1e-3)

    def test_of_several_concepts_each_has_its_own_and_the_retained_is_gone_through_once(
        self, family, data, seen, tmp_path
    ):
        both = dataclasses.replace(data, groups=2)
        mask = scored(saliency_mask, family, both, tmp_path, mask_ratio=0.1)
        assert [len(batch.noised) for batch in seen] == [4, 4, 3, 3]
        alone = [scored(saliency_mask, family, both.forget_of(group), tmp_path, mask_ratio=0.1) for group in range(2)]
        assert mask == alone[0] | alone[1]
        assert alone[0] != alone[1]


class TestWeighting:
    def test_a_state_counts_by_the_distance_of_both_predictions(self, family, data, seen, tmp_path):
        scores = scored(forget_saliency, family, data, tmp_path, saliency_weighting="difference", mask="saliency")
        names, weights = zip(*family.denoiser.named_parameters(), strict=True)
        sums = [torch.zeros_like(weight) for weight in weights]
        for start, batch in zip((0, 4), seen, strict=True):
            told = family.encode([ANCHOR[(start + row) % 2] for row in range(len(batch.noised))])
            assert all(torch.equal(batch.anchor_conditions[name], told[name]) for name in told)
            for row in range(len(batch.noised)):
                one = EraseBatch(
                    *(tensor[row : row + 1] for tensor in batch[:3]),
                    *({name: tensor[row : row + 1] for name, tensor in told.items()} for told in batch[3:6]),
                )
                with torch.no_grad():
                    answers = [
                        family.predict(family.denoiser, one.noised, one.timesteps, told)
                        for told in (one.conditions, one.anchor_conditions)
                    ]
                apart = float((answers[0] - answers[1]).square().mean())
                assert apart > 0
                loss = apart * guided_noise_loss(family, family.denoiser, one, 7.5) / len(batch.noised)
                for total, gradient in zip(sums, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
                    if gradient is not None:
                        total += gradient
        for name, total in zip(names, sums, strict=True):
            atol = 1e-4 * float(total.abs().max()) + 1e-12
            torch.testing.assert_close(scores[name], total.abs(), atol=atol, rtol=1e-3)

    def test_of_prompts_that_mean_the_same_nothing_is_left(self, family, data, seen, tmp_path):
        scored(forget_saliency, family, data, tmp_path, saliency_weighting="difference")
        same = seen[0]._replace(anchor_conditions=seen[0].conditions)
        assert weighted_noise_loss(family, family.denoiser, same, 7.5).item() == 0.0

    def test_the_retain_set_has_none(self, family, data, tmp_path):
        plain, weighted = (
            scored(retain_saliency, family, data, tmp_path, saliency_weighting=how) for how in ("none", "difference")
        )
        assert all(torch.equal(plain[name], weighted[name]) for name in plain)


class TestRun:
    def test_of_a_folder_as_of_stable_diffusion_1_4(self, small_run, sd14, tmp_path):
        flags = {"mask": "saliency_ratio", "saliency_weighting": "difference", "mask_ratio": 0.05}
        assert main(small_run(pretrained_model_name_or_path=sd14, output_dir=tmp_path / "run", **flags)) == 0
        mask = SaliencyMask.load(tmp_path / "run" / "mask.safetensors")
        assert mask.density == pytest.approx(0.05, abs=1e-4)
        assert (mask.recipe["scores"], mask.recipe["weighting"]) == ("saliency_ratio", "difference")
        report = json.loads((tmp_path / "run" / "report.json").read_text())
        assert report["receipt"]["outside_mask_identical"]

    def test_a_weighting_without_a_saliency_is_refused(self, small_run, tmp_path, capsys):
        assert main(small_run(output_dir=tmp_path / "run", mask="random", saliency_weighting="difference")) == 2
        assert "--saliency_weighting difference weighs the saliency loss, which --mask random has none of" in (
            capsys.readouterr().err
        )
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("flags", "stages"),
        [({"num_retain_images": 4}, {"saliency", "of retained"}), ({"mask": "saliency"}, {"saliency"})],
        ids=["other retained", "plain"],
    )
    def test_what_decides_the_mask(self, small_run, tmp_path, capsys, flags, stages):
        """The retain set does, which a plain saliency mask does not look at."""
        words = {"output_dir": tmp_path / "run", "mask": "saliency_ratio", "checkpointing_steps": 2}
        assert main(small_run(**words)) == 0
        capsys.readouterr()
        assert main(small_run(**words | flags, resume_from_checkpoint="latest")) == 0
        err = capsys.readouterr().err
        assert {name for name in ("saliency", "of retained") if name in err} == stages
