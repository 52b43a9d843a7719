"""The objectives SalUn is compared with: their equations by hand, and each through the whole program."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tiny_settings

from salun_diffusers.diffusion.baselines import FineTune, GradientAscent, NegativeGuidance, make_objective
from salun_diffusers.diffusion.families.attention import ATTENTION
from salun_diffusers.diffusion.masks import trained_parameters
from salun_diffusers.diffusion.objectives import EraseBatch, PromptSwap
from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.programs.erase import main

PREDICTION, TARGET = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([[0.0, 0.0], [3.0, 1.0]])
# A network whose answer is its condition, so that targets can be read off.
ECHO = SimpleNamespace(predict=lambda denoiser, noised, timesteps, conditions: conditions["c"])


def batch(forget: float, retain: float | None, empty: float) -> EraseBatch:
    rows = [forget] if retain is None else [forget, retain]
    tensor = torch.tensor(rows).view(-1, 1, 1, 1)
    return EraseBatch(tensor, torch.zeros(len(rows)), 10 * tensor, {"c": tensor}, {"c": tensor},
                      {"c": torch.full_like(tensor, empty)})  # fmt: skip


class TestByHand:
    def test_ascent(self):
        """Forget error 2.5, retain error 8: -2.5 alone is on the whole batch, with α = 0.5 it is -2.5 + 4."""
        assert float(GradientAscent()(PREDICTION[:1], TARGET[:1]).total) == -2.5
        losses = GradientAscent(0.5)(PREDICTION, TARGET)
        assert [float(value) for value in losses] == [1.5, 2.5, 8.0]

    def test_ascent_climbs_the_noise_loss(self):
        one = batch(1.0, None, 0.0)
        assert torch.equal(GradientAscent().target(ECHO, None, one), one.truth)

    def test_fine_tune(self):
        losses = FineTune()(PREDICTION[1:], TARGET[1:])
        assert [float(value) for value in losses] == [8.0, 0.0, 8.0]
        assert FineTune().penalty([torch.ones(3)], 0.0) == 0.0

    def test_l1_decays_linearly(self):
        """γ = 0.1 of |1| + |-2| + |3| = 6, at a quarter of the way: 0.1 · 0.75 · 6 = 0.45; its gradient is the sign."""
        weights = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
        penalty = FineTune(0.1).penalty([weights], 0.25)
        assert penalty.item() == pytest.approx(0.45)
        penalty.backward()
        torch.testing.assert_close(weights.grad, 0.075 * torch.tensor([1.0, -1.0, 1.0]))

    def test_esd(self):
        """With ε₀(c) = 5 and ε₀(∅) = 2: 2 - 1 · (5 - 2) = -1; at η = 0.5 it is 0.5. Retained rows keep ε₀(c_r) = 7."""
        assert NegativeGuidance().target(ECHO, None, batch(5.0, None, 2.0)).flatten().tolist() == [-1.0]
        both = NegativeGuidance(0.5, retain_weight=1.0)
        assert both.target(ECHO, None, batch(5.0, 7.0, 2.0)).flatten().tolist() == [0.5, 7.0]
        assert [float(value) for value in both(PREDICTION, TARGET)] == [10.5, 2.5, 8.0]

    def test_choice(self):
        def made(**settings):
            return make_objective(tiny_settings(retain_weight=2.0, **{"recipe": "frozen_teacher"} | settings))

        assert made() == PromptSwap(2.0, teacher="base", retain_target="base")
        assert made(robust="embedding") == made() and made(robust="relearning").overshoot == 1.0
        assert made(recipe="paper", robust="both") == made(recipe="paper")
        assert made(recipe="paper") == PromptSwap(2.0, teacher="current", retain_target="noise")
        assert made(objective="ascent") == GradientAscent(2.0)
        assert made(objective="finetune") == FineTune(0.0)
        assert made(objective="l1_sparse", l1_weight=0.3) == FineTune(0.3)
        assert made(objective="esd", negative_guidance=0.7) == NegativeGuidance(0.7, 2.0)


class TestTrainMethod:
    NAMES = (
        "time_embedding.linear_1.weight", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", "mid_block.resnets.0.conv1.weight",
        "conv_out.weight",
    )  # fmt: skip

    @pytest.mark.parametrize(
        ("method", "kept"),
        [
            ("full", [0, 1, 2, 3, 4]),
            ("xattn", [2]),
            ("selfattn", [1]),
            ("noxattn", [1, 3]),
            (r"mid_block|to_q", [1, 3]),
        ],
    )
    def test_names(self, method, kept):
        parameters = {name: torch.nn.Parameter(torch.zeros(1)) for name in self.NAMES}
        assert list(trained_parameters(parameters, method, ATTENTION["UNet2DConditionModel"])) == [
            self.NAMES[i] for i in kept
        ]

    def test_attention_of_a_network_without_text(self):
        parameters = {name: torch.nn.Parameter(torch.zeros(1)) for name in ("mid_block.attentions.0.to_q.weight", "a")}
        assert list(trained_parameters(parameters, "selfattn", ATTENTION["UNet2DModel"])) == [
            "mid_block.attentions.0.to_q.weight"
        ]
        with pytest.raises(UserError, match="leaves no tensor to train"):
            trained_parameters(parameters, "xattn", ATTENTION["UNet2DModel"])

    def test_a_broken_expression(self):
        with pytest.raises(UserError, match="or a regular expression"):
            trained_parameters({}, "(", {})


@pytest.mark.parametrize("objective", ["ascent", "finetune", "l1_sparse", "esd"])
@pytest.mark.parametrize("mask", ["magnitude", "full"])
def test_every_objective_under_any_mask(small_run, tmp_path, objective, mask):
    words = small_run(output_dir=tmp_path / "run", objective=objective, mask=mask, retain_weight=None)
    assert main(words) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["retain_weight"] == (0.0 if objective in ("ascent", "esd") else 3.0)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    used = {"ascent": "forget_loss", "esd": "forget_loss"}.get(objective, "retain_loss")
    unused = ({"forget_loss", "retain_loss"} - {used}).pop()
    assert all(row[used] > 0 and row[unused] == 0 for row in rows)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["recipe"] == f"{objective}, frozen_teacher settings"


def test_ascent_raises_the_forget_loss(small_run, tmp_path):
    words = small_run(
        output_dir=tmp_path / "run", objective="ascent", max_train_steps=20, retain_weight=None, learning_rate=1e-2,
        lr_scheduler="constant", num_forget_images=2,
    )  # fmt: skip
    assert main(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["forget_loss"] for row in rows]
    assert sum(losses[10:]) > 2 * sum(losses[:10])


def test_train_method_restricts_every_mask(small_run, tmp_path, tiny_pipeline):
    name = "unet/diffusion_pytorch_model.safetensors"
    before = load_file(tiny_pipeline / name)
    for mask in ("saliency", "random"):
        folder = tmp_path / mask
        assert main(small_run(output_dir=folder, mask=mask, train_method="xattn")) == 0
        chosen = SaliencyMask.load(folder / "mask.safetensors")
        cross = {key for key in before if "attn2" in key}
        assert chosen.number_selected == int(0.5 * sum(before[key].numel() for key in cross))
        after = load_file(folder / "pipeline" / name)
        assert {key for key in before if not torch.equal(before[key], after[key])} <= cross


def test_magnitude_selects_the_largest_weights(small_run, tmp_path, tiny_pipeline: Path):
    assert main(small_run(output_dir=tmp_path / "run", mask="magnitude", mask_ratio=0.1)) == 0
    mask = SaliencyMask.load(tmp_path / "run" / "mask.safetensors")
    weights = load_file(tiny_pipeline / "unet/diffusion_pytorch_model.safetensors")
    chosen = torch.cat([weights[name][mask[name]].abs() for name in weights])
    frozen = torch.cat([weights[name][~mask[name]].abs() for name in weights])
    assert float(chosen.min()) >= float(frozen.max())
