"""A probe before the work changes nothing, and tells what does not fit before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from salun_diffusers.accelerator import engine
from salun_diffusers.diffusion import probe as probing
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.families.known import family_of
from salun_diffusers.diffusion.fitting import Fit
from salun_diffusers.diffusion.probe import probe, probe_is_wanted
from salun_diffusers.diffusion.request import Request, accept
from salun_diffusers.diffusion.stage_peaks import StagePeaks
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.programs.erase import main

FLAGS: list[dict[str, object]] = [
    {},
    {"mask": "full", "adam_weight_decay": 0.1},
    {"recipe": "paper", "gradient_accumulation_steps": 3, "max_grad_norm": 1, "gradient_checkpointing": True},
    {"mixed_precision": "bf16", "train_method": "xattn", "saliency_micro_batch_size": 1, "offload_saliency": True},
]


def request_for(folder: Path, tmp_path: Path, **flags: object) -> Request:
    return accept(
        EraseConfig(
            concept="disc", forget_prompt=("a photo of a circle",), anchor_prompt=("a photo of a heart",),
            pretrained_model_name_or_path=str(folder), output_dir=str(tmp_path / "run"),
            retain_prompts=str(folder.parent / "retain.txt"), num_inference_steps=2, train_batch_size=2,
            saliency_batch_size=2, generation_batch_size=2, **flags,
        )
    )  # fmt: skip


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_it_leaves_weights_and_random_numbers_as_they_were(
    tiny_pipeline: Path, tmp_path: Path, flags: dict[str, object]
) -> None:
    (tiny_pipeline.parent / "retain.txt").write_text("a photo of a square\n")
    request = request_for(tiny_pipeline, tmp_path, **flags)
    family = family_of(request.class_name)(tiny_pipeline, device=torch.device("cpu"))
    with torch.no_grad():  # The sign of a zero is a bit, too.
        family.denoiser.conv_in.bias.fill_(-0.0)  # type: ignore[union-attr]
    before = {name: tensor.clone() for name, tensor in family.denoiser.state_dict().items()}
    required = [parameter.requires_grad for parameter in family.denoiser.parameters()]
    torch.manual_seed(5)
    state = torch.get_rng_state()

    with engine(
        mixed_precision=request.config.mixed_precision or "no",
        gradient_accumulation_steps=request.settings.gradient_accumulation_steps,
        report_to=None,
    ) as accelerator:
        found = probe(accelerator, family, request)
        assert accelerator.step == 0 and not accelerator._models and not accelerator._optimizers

    assert found.row_seconds > 0 and found.gradient_row_seconds > 0 and found.peaks == {}
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in family.denoiser.state_dict().items():
        assert torch.equal(tensor.view(torch.int32), before[name].view(torch.int32)), name
    assert [parameter.requires_grad for parameter in family.denoiser.parameters()] == required
    assert all(parameter.grad is None for parameter in family.denoiser.parameters())
    assert not any(parameter._post_accumulate_grad_hooks for parameter in family.denoiser.parameters())
    assert not (tmp_path / "run").exists() and not Path("rehearsal").exists()


@pytest.mark.parametrize(
    "flags",
    [pytest.param({}, marks=pytest.mark.slow), {"mixed_precision": "bf16", "gradient_accumulation_steps": 2}],
    ids=str,
)
def test_a_run_with_it_is_the_run_without(
    small_run: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: dict[str, object],
) -> None:
    for probed in ("on", "off"):
        assert main(small_run(output_dir=tmp_path / probed, probe=probed, **flags)) == 0
        assert ("note: probe: the stages fit." in capsys.readouterr().err) == (probed == "on")
    on, off = tmp_path / "on", tmp_path / "off"
    for name in ("metrics.jsonl", "work/forget.safetensors", "work/retain.safetensors"):
        assert (on / name).read_bytes() == (off / name).read_bytes(), name
    assert SaliencyMask.load(on / "mask.safetensors") == SaliencyMask.load(off / "mask.safetensors")
    erased, other = (
        load_file(folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors") for folder in (on, off)
    )
    assert all(torch.equal(tensor, other[name]) for name, tensor in erased.items())
    assert sorted(path.name for path in on.iterdir()) == sorted(path.name for path in off.iterdir())


def too_much(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize(
    ("stage", "function"), [("saliency", "forget_saliency"), ("fine-tuning", "step_of")], ids=["saliency", "training"]
)
def test_what_does_not_fit_is_told_before_anything_is_drawn(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, stage: str, function: str, tmp_path: Path
) -> None:
    from salun_diffusers.diffusion import latent_sets, rehearsal

    monkeypatch.setattr(rehearsal, function, too_much)
    monkeypatch.setattr(latent_sets, "generate_latents", lambda *_: pytest.fail("something was drawn"))
    monkeypatch.chdir(tmp_path)
    refused(
        f"A first {stage} at the run's sizes does not fit into memory; less is needed with --gradient_checkpointing",
        "Nothing was drawn or written.",
        probe="on",
    )


def test_on_a_gpu_the_flags_are_those_that_fit(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from salun_diffusers.diffusion import rehearsal

    fit = Fit(("--mixed_precision bf16", "--gradient_checkpointing"), StagePeaks(1, 1, 1, 1, 1), True)
    asked: list[object] = []
    monkeypatch.setattr(rehearsal, "step_of", too_much)
    monkeypatch.setattr(probing, "_total", lambda device: 12 * 10**9)
    monkeypatch.setattr(probing, "fitting", lambda *words: asked.append(words[2:]) or fit)
    monkeypatch.chdir(tmp_path)
    refused(
        "does not fit into the 12.0 GB of this device; it fits with --mixed_precision bf16 --gradient_checkpointing.",
        probe="on",
    )
    assert asked == [("no", 12.0)]


def test_other_errors_pass(small_run: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    from salun_diffusers.diffusion import rehearsal

    def wrong(*_: object, **__: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(rehearsal, "step_of", wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        main(small_run(probe="on"))


@pytest.mark.parametrize(
    ("flag", "device", "weights", "wanted"),
    [
        ("auto", "cuda", 859_520_964, True), ("auto", "cuda", 4_000_000, False), ("auto", "cpu", 859_520_964, False),
        ("on", "cpu", 1, True), ("off", "cuda", 859_520_964, False),
    ],
)  # fmt: skip
def test_the_rule_by_which_a_run_begins_with_it(
    monkeypatch: pytest.MonkeyPatch, flag: str, device: str, weights: int, wanted: bool
) -> None:
    request = SimpleNamespace(config=SimpleNamespace(probe=flag))
    accelerator = SimpleNamespace(device=torch.device(device), num_processes=2, state=SimpleNamespace())
    assert probe_is_wanted(request, accelerator, weights) == wanted  # type: ignore[arg-type]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # What is to be shared out is not there yet.
    assert not probe_is_wanted(request, accelerator, weights)  # type: ignore[arg-type]
