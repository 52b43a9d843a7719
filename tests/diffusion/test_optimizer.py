"""Adam with moments of 8 bits: what it stores, what it moves, and that it goes on where it was."""

from __future__ import annotations

import importlib.util
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tiny_settings
from torch import nn

from salun_diffusers.diffusion.optimizer import make_optimizer
from salun_diffusers.files.checkpoint import load_optimizer_state, load_state, optimizer_state, save_state
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.selected_weights import SelectedWeights
from salun_diffusers.programs.erase import main

LARGE = {"mask_ratio": 0.95, "mask_scope": "per_tensor"}  # More than 4,096 weights of the largest tensor.
UNET = "pipeline/unet/diffusion_pytorch_model.safetensors"


def model(decay: float = 0.0, ratio: float = 0.5, **changes):
    """Two tensors of many weights and one of 300, some of which may move."""
    draws = torch.Generator().manual_seed(0)
    sizes = {"w": 30_000, "v": 300, "u": 20_001}
    parameters = {name: nn.Parameter(torch.randn(size, generator=draws)) for name, size in sizes.items()}
    mask = SaliencyMask.random(parameters, ratio, draws)
    selected = SelectedWeights(parameters, mask)
    settings = tiny_settings(learning_rate=1e-2, adam_weight_decay=decay, **{"use_8bit_adam": True, **changes})
    return parameters, mask, selected, make_optimizer(selected, settings)


def steps(parameters, selected, optimizer, numbers) -> None:
    for number in numbers:
        draws = torch.Generator().manual_seed(number)
        for parameter in parameters.values():
            parameter.grad = torch.randn(parameter.shape, generator=draws) + 1
        selected.gather_gradients()
        optimizer.step()
        optimizer.zero_grad()
        selected.scatter()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_frozen_weights_stay_bit_for_bit_and_others_move_about_as_in_32_bits(decay):
    parameters, mask, selected, optimizer = model(decay)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    steps(parameters, selected, optimizer, range(5))
    others, _, plain, dense = model(decay, use_8bit_adam=False)
    steps(others, plain, dense, range(5))
    for name, parameter in parameters.items():
        assert torch.equal(parameter[~mask[name]], before[name][~mask[name]])
        assert (parameter != before[name])[mask[name]].all()
        torch.testing.assert_close(parameter, others[name], atol=5e-3, rtol=0)


def test_two_bytes_a_weight():
    """One for each moment, 4 / 256 for each one's scale; small tensors keep 32 bits, each large one its tables."""
    parameters, mask, selected, optimizer = model()
    steps(parameters, selected, optimizer, [0])
    tensors, _ = optimizer_state(optimizer)
    sizes = {
        index: sum(t.numel() * t.element_size() for name, t in tensors.items() if name.startswith(f"{index}."))
        for index in (0, 1, 2)
    }
    first, small, second = (int(mask[name].sum()) for name in ("w", "v", "u"))
    large = {index: 2 * (count + 4 * -(-count // 256) + 4 * 256) for index, count in ((0, first), (2, second))}
    assert sizes == large | {1: 8 * small}


def test_goes_on_from_a_checkpoint_to_the_bit(tmp_path):
    parameters, _, selected, optimizer = model(decay=0.1)
    steps(parameters, selected, optimizer, range(3))
    tensors, values = optimizer_state(optimizer)
    save_state(tmp_path / "checkpoint-3", {**tensors, **{f"w.{n}": t for n, t in selected.state().items()}}, values)
    steps(parameters, selected, optimizer, range(3, 6))

    resumed, _, weights, other = model(decay=0.1)
    stored, values = load_state(tmp_path / "checkpoint-3")
    weights.load({name: stored.pop(f"w.{name}") for name in weights.names})
    load_optimizer_state(other, stored, values)
    steps(resumed, weights, other, range(3, 6))
    assert all(torch.equal(resumed[name], parameter) for name, parameter in parameters.items())


@pytest.fixture(scope="module")
def whole(small_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(small_run(**LARGE, output_dir=folder, use_8bit_adam=True, checkpointing_steps=2)) == 0
    return folder


def test_a_run_has_moments_of_8_bits(whole):
    tensors, _ = load_state(whole / "checkpoint-2")
    assert {tensor.dtype for name, tensor in tensors.items() if name.endswith(".state1")} == {
        torch.uint8,
        torch.float32,
    }


class TestARun:
    def test_resumed_ends_with_the_bits_of_the_whole(self, small_run, whole, tmp_path):
        folder = shutil.copytree(whole, tmp_path / "run")
        shutil.rmtree(folder / "pipeline")
        (folder / UNET).parent.mkdir(parents=True)
        words = small_run(
            **LARGE, output_dir=folder, use_8bit_adam=True, checkpointing_steps=2, resume_from_checkpoint="checkpoint-2"
        )
        assert main(words) == 0
        assert (folder / UNET).read_bytes() == (whole / UNET).read_bytes()

    def test_differs_from_32_bits_in_what_may_move_only(self, small_run, whole, tmp_path):
        assert main(small_run(**LARGE, output_dir=tmp_path / "run")) == 0
        ours, plain = (load_file(folder / UNET) for folder in (whole, tmp_path / "run"))
        mask = SaliencyMask.load(whole / "mask.safetensors")
        assert mask == SaliencyMask.load(tmp_path / "run" / "mask.safetensors")
        assert all(torch.equal(ours[name][~mask[name]], plain[name][~mask[name]]) for name in ours)
        assert any(not torch.equal(ours[name], plain[name]) for name in ours)

    def test_a_checkpoint_of_other_bits_is_none(self, small_run, whole, tmp_path, capsys):
        """It is refused by name; with `latest` fine-tuning begins anew, and ends as if it had not been there."""
        folder = shutil.copytree(whole, tmp_path / "run")
        shutil.rmtree(folder / "pipeline")
        assert main(small_run(**LARGE, output_dir=folder, resume_from_checkpoint="checkpoint-2")) == 2
        assert "of a training with other settings" in capsys.readouterr().err
        assert main(small_run(**LARGE, output_dir=folder, resume_from_checkpoint="latest")) == 0
        assert "it begins anew" in capsys.readouterr().err
        assert main(small_run(**LARGE, output_dir=tmp_path / "fresh")) == 0
        assert (folder / UNET).read_bytes() == (tmp_path / "fresh" / UNET).read_bytes()

    def test_a_finished_run_is_not_redone_for_it(self, small_run, whole, tmp_path, capsys):
        folder = shutil.copytree(whole, tmp_path / "run")
        assert main(small_run(**LARGE, output_dir=folder, resume_from_checkpoint="latest")) == 0
        assert "fine-tuning" not in capsys.readouterr().err
        assert (folder / UNET).read_bytes() == (whole / UNET).read_bytes()


@pytest.mark.usefixtures("empty_folder")
def test_without_bitsandbytes_it_is_refused_at_once(refused, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "salun_diffusers.diffusion.request.find_spec",
        lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest),
    )
    refused("--use_8bit_adam needs bitsandbytes", "salun-diffusers[8bit]", use_8bit_adam=True)
