"""Memory is counted without having it: against an allocator, and rule by rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import tiny_settings

from salun_diffusers.diffusion.fitting import fitting
from salun_diffusers.diffusion.foreseen import parameters_of_rank
from salun_diffusers.diffusion.global_batch import GlobalBatch
from salun_diffusers.diffusion.memory_account import GPU, LiveBytes, imagined
from salun_diffusers.diffusion.model_shape import ModelShape
from salun_diffusers.diffusion.quick_peaks import QuickPeaks
from salun_diffusers.diffusion.rehearsal import mask_of_size
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.diffusion.stage_peaks import Precision, StagePeaks, stage_peaks
from salun_diffusers.errors import UserError
from salun_diffusers.files.pipeline_folder import EMBEDDED


def settings_of(**changes: object) -> Settings:
    return tiny_settings(
        **{"train_batch_size": 8, "saliency_batch_size": 8, "generation_batch_size": 4, "mask_ratio": 0.5, **changes}
    )


def test_a_storage_counts_once_and_as_long_as_it_lives() -> None:
    with LiveBytes("cpu") as count:
        whole = torch.zeros(100)
        part = whole[:50].view(5, 10).t()
        assert count.live == 400
        del whole
        assert count.live == 400  # `part` still looks into it.
        doubled = part * 2
        assert (count.live, count.peak) == (600, 600)
        del part
        count.restart()
        assert (count.live, count.peak) == (200, 200)
        doubled.add_(1)
    assert count.peak == 200


def test_what_was_there_before_counts_when_it_is_named() -> None:
    before = torch.zeros(100)
    with LiveBytes("cpu") as count:
        count.watch([before])
        before.add_(1)
        assert count.live == 400


def test_what_lies_on_the_host_is_not_counted_nor_what_is_made_of_it() -> None:
    with imagined() as count:
        tensor = torch.zeros(10_000, device=GPU)
        sums = tensor.to("cpu", torch.float32)
        sums.add_(sums)
        again = sums.abs()
        assert count.live == 40_000
        mixed = again * tensor
        assert count.live == 80_000
        assert mixed.sum().item() == 1.0 and bool(torch.isfinite(mixed).all())
        assert torch.zeros(3, device=GPU).tolist() == [1, 1, 1]


def test_autocast_follows_the_rules_of_a_gpu() -> None:
    """Norms in fp32, products in half; and of attention only what a flash kernel keeps."""
    with imagined() as count, torch.autocast("cpu", torch.bfloat16):
        normed = F.group_norm(torch.zeros(1, 4, 8, 8, device=GPU, dtype=torch.bfloat16), 2)
        assert normed.dtype == torch.float32
        assert F.conv2d(normed, torch.zeros(4, 4, 1, 1, device=GPU)).dtype == torch.bfloat16
        query = torch.zeros(1, 1, 512, 8, device=GPU, requires_grad=True)
        before = count.live
        attended = F.scaled_dot_product_attention(query, query, query)
        assert count.live - before < 512 * 512
    assert attended.dtype == torch.bfloat16
    assert F.group_norm(torch.zeros(1, 4, 2, 2), 2).device.type == "cpu"  # As before, outside.


def test_the_account_is_what_an_allocator_hands_out(script: Callable[[str], ModuleType]) -> None:
    for found in script("benchmark_memory").validation().values():
        assert found["account"] == pytest.approx(found["allocator"], rel=0.02)


def test_offload_and_micro_batches_and_eight_bits_save_what_they_say() -> None:
    shape = ModelShape.of(EMBEDDED["demo"])
    weights = sum(size.numel() for size in shape.denoiser_shapes().values())
    plain = stage_peaks(shape, settings_of(), "no")
    micro = stage_peaks(shape, settings_of(saliency_micro_batch_size=1), "no")
    offloaded = stage_peaks(shape, settings_of(saliency_micro_batch_size=1, offload_saliency=True), "no")
    assert micro.saliency < plain.saliency
    assert micro.saliency - offloaded.saliency == pytest.approx(4 * weights, rel=0.1)
    eight = stage_peaks(shape, settings_of(use_8bit_adam=True), "no")
    assert plain.static - eight.static == pytest.approx(6 * weights / 2, rel=0.05)
    assert stage_peaks(shape, settings_of(mask="random"), "no").saliency < plain.saliency


def within_15_percent(shape: ModelShape, settings: Settings, precision: str) -> None:
    account, quick = stage_peaks(shape, settings, precision), QuickPeaks(shape).peaks(settings, precision)
    for name, counted in dataclasses.asdict(account).items():
        assert getattr(quick, name) == pytest.approx(counted, rel=0.15), name


CHANGES: list[dict[str, object]] = [
    {},
    {"use_8bit_adam": True, "gradient_checkpointing": True},
    {
        "gradient_accumulation_steps": 3,
        "batch_of": "process",
        "use_ema": True,
        "saliency_micro_batch_size": 2,
        "recipe": "frozen_teacher",
    },
    {"mask": "full", "objective": "finetune"},
    {"saliency_max_grad_norm": 1.0, "offload_saliency": True, "train_method": "xattn"},
    {"mask": "saliency_ratio"},
    {"robust": "relearning"},
    {"mask": "saliency_ratio", "saliency_batch_size": 1, "train_batch_size": 1},
    {"mask": "saliency_ratio", "saliency_micro_batch_size": 2},
]


@pytest.mark.parametrize("other", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", range(len(CHANGES)))
def test_the_estimate_is_the_account_within_15_percent(place: int, other: bool) -> None:
    """Each in one of both precisions; the slow tests have the other."""
    precision: Precision = "bf16" if (place % 2 == 0) != other else "no"
    within_15_percent(ModelShape.of(EMBEDDED["demo"]), settings_of(**CHANGES[place]), precision)


def test_of_a_class_conditional_model_too() -> None:
    within_15_percent(ModelShape.of(EMBEDDED["digits"]), settings_of(), "no")


def test_the_estimate_of_stable_diffusion_and_the_bars(script: Callable[[str], ModuleType]) -> None:
    """On the real shape; bf16, batch 8 + 8: at most 16 GB at ratio 0.5, of which 10.5 throughout."""
    shape = script("real_shapes").sd1()
    settings = settings_of(gradient_checkpointing=True)
    account = stage_peaks(shape, settings, "bf16")
    assert account.most < 16e9 and account.static < 10.5e9
    quick = QuickPeaks(shape).peaks(settings, "bf16")
    for name, counted in dataclasses.asdict(account).items():
        assert getattr(quick, name) == pytest.approx(counted, rel=0.15), name


def test_flags_that_fit_are_the_smallest_sacrifice(monkeypatch: pytest.MonkeyPatch) -> None:
    """On arithmetic alone: halves and checkpointing halve a pass, as many rows as many gigabytes."""

    class Simple(QuickPeaks):
        def _passes(self, settings: Settings, precision: str, rows: int) -> int:
            return int(1e9 * rows / (1 + settings.gradient_checkpointing) / (1 + (precision != "no")))

        def training(self, settings: Settings, precision: str) -> tuple[int, int]:
            static = int((2 if settings.use_8bit_adam else 4) * 1e9)
            held = GlobalBatch.of(settings, processes=1).largest
            return static + self._passes(settings, precision, held), static

        def saliency(self, settings: Settings, precision: str) -> int:
            held = int(min(settings.saliency_batch_size, settings.saliency_micro_batch_size))
            return self._passes(settings, precision, held)

        def drawing(self, settings: Settings, precision: str) -> tuple[int, int]:
            return 1, 1

    model = Simple(ModelShape.of(EMBEDDED["demo"]))

    def flags(gigabytes: float) -> tuple[str, ...]:
        found = fitting(model, settings_of(), "no", gigabytes)
        assert found.fits == (found.peaks.most <= (gigabytes - 1) * 1e9)
        return found.flags

    assert flags(13) == ()
    assert flags(9) == ("--mixed_precision bf16",)
    assert flags(7) == ("--mixed_precision bf16", "--gradient_checkpointing")
    # bf16 and checkpointing leave 4 + 2 GB; half a batch is the next, and eight bits would be more than is needed.
    assert flags(6) == (
        "--mixed_precision bf16", "--gradient_checkpointing", "--gradient_accumulation_steps 2",
    )  # fmt: skip
    assert "--use_8bit_adam" in flags(4) and "--gradient_accumulation_steps 2" in flags(4)
    assert not fitting(model, settings_of(), "no", 2).fits
    typed = fitting(model, settings_of(batch_of="process", gradient_accumulation_steps=2), "no", 6).flags
    assert typed[-2:] == ("--train_batch_size 4", "--gradient_accumulation_steps 4")


def test_a_folder_without_configuration_is_told(tiny_pipeline: Path, copied: Path) -> None:
    assert ModelShape.of(tiny_pipeline).latent_shape == (4, 4, 4)
    (copied / "unet" / "config.json").unlink()
    with pytest.raises(UserError, match="no unet/config"):
        ModelShape.of(copied)
    assert dataclasses.asdict(StagePeaks(1, 2, 3, 4, 5))["static"] == 5


def test_a_lora_takes_what_its_parameters_take(tiny_pipeline: Path) -> None:
    """Themselves, their gradients and their moments, beside the whole network."""
    shape = ModelShape.of(tiny_pipeline)
    settings = settings_of(adapter="lora", rank=2, lora_alpha=2.0)
    weights = sum(size.numel() for size in shape.denoiser_shapes().values())
    selected = mask_of_size(shape.denoiser_shapes(), settings, shape.attention).number_selected
    assert selected == parameters_of_rank(tiny_pipeline / "unet", None, 2)
    assert QuickPeaks(shape).training(settings, "no")[1] == 4 * weights + 16 * selected
