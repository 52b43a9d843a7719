"""What only a GPU shows. `scripts/gpu_check.sh` runs these there, and with --rehearse, in small, on a CPU.

The device is that of the environment variable SALUN_TEST_DEVICE, ``cuda`` or ``cpu``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from accelerate.state import PartialState
from held_pipes import QUICK, load
from safetensors.torch import load_file
from tiny_runs import tiny_settings

from salun_diffusers import erase
from salun_diffusers.accelerator import engine
from salun_diffusers.diffusion.families.known import family_of
from salun_diffusers.diffusion.latent_sets import EraseData, LatentSet
from salun_diffusers.diffusion.rehearsal import QuietRun
from salun_diffusers.diffusion.saliency_pass import forget_saliency
from salun_diffusers.files.pipeline_folder import EMBEDDED
from salun_diffusers.masks.bit_kernels import kernels_run
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.selected_weights import SelectedWeights
from salun_diffusers.programs.erase import main

pytestmark = pytest.mark.gpu

DEVICE = torch.device(os.environ.get("SALUN_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "cpu"))
ON_A_GPU = DEVICE.type == "cuda"
# accelerate refuses fp16 without a GPU.
PRECISIONS = ("no", "bf16", *(["fp16"] if ON_A_GPU else []))
OPTIMIZERS = (None, *([True] if find_spec("bitsandbytes") else []))
# Without a GPU compiling takes minutes; the way to it is the same.
BACKEND = "inductor" if ON_A_GPU else "eager"


@pytest.fixture(autouse=True)
def on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate takes the device that is meant."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", str(not ON_A_GPU).lower())


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")


def test_the_device_is_there() -> None:
    with engine(mixed_precision="no", gradient_accumulation_steps=1, report_to=None) as accelerator:
        assert accelerator.device.type == DEVICE.type


@pytest.mark.parametrize("eight_bits", OPTIMIZERS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_in_every_precision(
    small_run: Callable[..., list[str]], tmp_path: Path, precision: str, eight_bits: bool | None
) -> None:
    """It ends with a receipt, which `main` asks for, and every loss is finite."""
    words = small_run(output_dir=tmp_path / "run", mixed_precision=precision, use_8bit_adam=eight_bits, probe="on")
    assert main(words) == 0
    rows = rows_of(tmp_path / "run")
    assert len(rows) == 4 and all(math.isfinite(row["loss"]) for row in rows)


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's compiler of itself.
@pytest.mark.filterwarnings("ignore:.*lru_cache:UserWarning")
def test_a_compiled_run(small_run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(small_run(output_dir=tmp_path / "plain")) == 0
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", BACKEND)
    assert main(small_run(output_dir=tmp_path / "compiled")) == 0
    for row, other in zip(rows_of(tmp_path / "plain"), rows_of(tmp_path / "compiled"), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-2, abs=1e-5)  # It begins at 0.


def test_channels_last_is_the_same_network() -> None:
    family = family_of("StableDiffusionPipeline")(EMBEDDED["demo"], device=DEVICE)
    states = family.encode(["a photo of a circle"])
    noised = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        plain = family.predict(family.denoiser, noised, torch.tensor([500], device=DEVICE), states)
        family.denoiser.to(memory_format=torch.channels_last)
        other = family.predict(family.denoiser, noised, torch.tensor([500], device=DEVICE), states)
    assert torch.allclose(plain, other, atol=1e-3)


def test_positions_on_the_device_are_those_of_indices() -> None:
    """Whatever is kept of a mask there: the same weights are taken, and no other is written."""
    if ON_A_GPU:
        assert kernels_run(DEVICE)
    weights = {"w": torch.randn(700, 1001, generator=torch.Generator().manual_seed(0)), "b": torch.arange(13.0)}
    mask = SaliencyMask.random(weights, 0.3, torch.Generator().manual_seed(1))
    results = []
    for device, keep in ((torch.device("cpu"), "indices"), *((DEVICE, keep) for keep in (None, "bits", "indices"))):
        parameters = {name: torch.nn.Parameter(value.to(device, copy=True)) for name, value in weights.items()}
        selected = SelectedWeights(parameters, mask, keep=keep)  # type: ignore[arg-type]
        for parameter in parameters.values():
            parameter.grad = parameter.detach() * 2
        selected.gather_gradients()
        with torch.no_grad():
            for leaf in selected.weights:
                leaf.sub_(leaf.grad)
        selected.scatter()
        results.append({name: parameter.detach().cpu() for name, parameter in parameters.items()})
    for name, value in weights.items():
        assert torch.equal(results[0][name], torch.where(mask[name], -value, value))
        assert all(torch.equal(result[name], results[0][name]) for result in results)


def test_masks_of_cpu_and_device_agree() -> None:
    masks = []
    for device in (torch.device("cpu"), DEVICE):
        os.environ["ACCELERATE_USE_CPU"] = str(device.type == "cpu").lower()
        PartialState._reset_state()  # The processes of a program have one device, the first they took.
        with engine(mixed_precision="no", gradient_accumulation_steps=1, report_to=None) as accelerator:
            family = family_of("StableDiffusionPipeline")(EMBEDDED["demo"], device=device)
            latents = torch.randn(16, 8, 8, 8, generator=torch.Generator().manual_seed(1))
            drawn = LatentSet(latents, torch.zeros(16, dtype=torch.int64), ("",))
            circle, empty = family.encode(["a photo of a circle"]), family.encode([""])
            data = EraseData(drawn, drawn, drawn, circle, circle, circle, empty)
            parameters = dict(family.denoiser.named_parameters())
            settings = tiny_settings(saliency_batch_size=8)
            scores = forget_saliency(QuietRun.of(accelerator), family, parameters, data, settings)
            masks.append(SaliencyMask.from_saliency(scores, 0.5))
    same = sum(int((masks[0][name] == masks[1][name]).sum()) for name in masks[0])
    assert same / masks[0].number_of_weights >= 0.999


def test_a_stopped_run_goes_on(
    small_run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from salun_diffusers.diffusion import trainer

    assert main(small_run(output_dir=tmp_path / "whole", checkpointing_steps=2)) == 0
    plain = trainer._step

    def stopping(*words: object, progress: float) -> dict[str, float]:
        if progress > 0.6:
            raise KeyboardInterrupt
        return plain(*words, progress=progress)  # type: ignore[arg-type]

    again = small_run(output_dir=tmp_path / "stopped", checkpointing_steps=2, resume_from_checkpoint="latest")
    monkeypatch.setattr(trainer, "_step", stopping)
    assert main(small_run(output_dir=tmp_path / "stopped", checkpointing_steps=2)) == 130
    monkeypatch.setattr(trainer, "_step", plain)
    assert main(again) == 0
    whole = weights_of(tmp_path / "whole")
    for name, tensor in weights_of(tmp_path / "stopped").items():
        # A GPU's sums are not always in the same order.
        assert torch.allclose(tensor, whole[name], atol=0 if DEVICE.type == "cpu" else 1e-4), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, *([torch.float16] if ON_A_GPU else [])])
def test_a_pipeline_in_memory_stays_where_it_is(tiny_pipeline: Path, dtype: torch.dtype) -> None:
    pipe = load(tiny_pipeline, dtype=dtype).to(DEVICE)
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    torch.manual_seed(5)
    wanted = torch.rand(3, device=DEVICE)
    torch.manual_seed(5)
    result = erase(pipe, "disc", **QUICK)
    assert torch.equal(torch.rand(3, device=DEVICE), wanted)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        assert {(tensor.device.type, tensor.dtype) for tensor in part.parameters()} == {(DEVICE.type, dtype)}
    assert result.patch is not None and result.patch.number_moved > 1000
    drawn = pipe("a star", num_inference_steps=2, output_type="latent").images
    assert drawn.device.type == DEVICE.type and bool(drawn.isfinite().all())
    result.undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipe.unet.state_dict().items())


# accelerate's sequential offloading cannot be drawn with on a CPU.
@pytest.mark.parametrize("way", ["model", *(["sequential"] if ON_A_GPU else [])])
def test_an_offloaded_pipeline_in_memory_draws_what_another_one_draws(tiny_pipeline: Path, way: str) -> None:
    plain, offloaded = load(tiny_pipeline).to(DEVICE), load(tiny_pipeline)
    getattr(offloaded, f"enable_{way}_cpu_offload")(device=DEVICE)
    drawn = []
    for pipe in (plain, offloaded):
        erase(pipe, "disc", **QUICK)
        generator = torch.Generator().manual_seed(1)
        drawn.append(pipe("a star", num_inference_steps=2, output_type="latent", generator=generator).images.cpu())
    torch.testing.assert_close(drawn[0], drawn[1], rtol=1e-3, atol=1e-3)


def test_a_pipeline_on_the_cpu_is_computed_there(tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else the machine has: the result is that of a machine without."""
    first, second = load(tiny_pipeline), load(tiny_pipeline)
    erase(first, "disc", **QUICK)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    erase(second, "disc", **QUICK)
    weights = second.unet.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in first.unet.state_dict().items())
