"""FSDP2: what is shared out among two processes moves as if it were whole, and is saved whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from two_processes import run_two

from salun_diffusers.accelerator import engine
from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.programs.erase import main

FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
UNET = "pipeline/unet/diffusion_pytorch_model.safetensors"

# Erases, keeps how many of the selected weights each rank trained, and looks at the averages after every step, as
# somebody does who draws validation pictures.
ERASE = """
import json, os, sys
import torch
from pathlib import Path
from salun_diffusers.diffusion import run
from salun_diffusers.programs.erase import main

fine_tune = run.fine_tune

def spied(started, family, selected, data, settings, checkpoint, watch):
    started.folder.root.with_suffix(f".rank{os.environ['RANK']}").write_text(json.dumps(selected.number_selected))

    def look(step, steps, as_saved):
        with as_saved(), torch.no_grad():
            latents, conditions = data.forget.latents[:1], {n: t[:1] for n, t in data.forget_conditions.items()}
            family.predict(family.denoiser, latents, torch.tensor([step]), conditions)

    return fine_tune(started, family, selected, data, settings, checkpoint, look)

run.fine_tune = spied
sys.exit(main())
"""

# A layer of three rows and one of a single row, of which the second process holds nothing, under two optimizers' steps.
STEPS = """
import sys
import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor
from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.selected_weights import SelectedWeights

accelerator = Accelerator()

def trained(shared, whole):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    before = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}
    bools = {name: (torch.rand(tensor.shape) < 0.5) | whole for name, tensor in before.items()}
    bools["0.bias"][:] = False
    if shared:
        fully_shard(network)
    selected = SelectedWeights(dict(network.named_parameters()), SaliencyMask.from_bools(bools))
    sizes = [len(leaf) for leaf in selected.weights]
    optimizer = torch.optim.AdamW(selected.weights, lr=0.1, weight_decay=0.5, fused=True)
    for step in range(3):
        network(torch.randn(5, 4, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        selected.gather_gradients()
        optimizer.step()
        optimizer.zero_grad()
        selected.scatter()
    after = {n: t.full_tensor() if shared else t.detach() for n, t in network.named_parameters()}
    assert all(torch.equal(after[name][~bools[name]], before[name][~bools[name]]) for name in before)
    assert all((after[name][bools[name]] != before[name][bools[name]]).all() for name in before)
    return after, sizes, [int(bools[name].sum()) for name in selected.names]

for whole in (False, True):
    plain, sizes, totals = trained(False, whole)
    assert sizes == totals
    shared, sizes, totals = trained(True, whole)
    for name, tensor in plain.items():
        torch.testing.assert_close(shared[name], tensor, atol=1e-6, rtol=0)
    everyone = torch.tensor(sizes)
    torch.distributed.all_reduce(everyone)
    assert everyone.tolist() == totals and sum(sizes) < sum(totals), (sizes, totals)

weight = nn.Parameter(distribute_tensor(torch.zeros(2, 2), init_device_mesh("cpu", (2,)), [Replicate()]))
try:
    SelectedWeights({"w": weight}, SaliencyMask.from_bools({"w": torch.tensor([[True, False], [True, True]])}))
    sys.exit("a tensor that is not shared out by rows was taken")
except UserError as error:
    assert "shared out by its first dimension" in str(error)
"""


@pytest.mark.slow  # Two imports of torch at once.
def test_steps_of_shared_tensors_are_those_of_whole_ones(tmp_path):
    (tmp_path / "steps.py").write_text(STEPS)
    run_two(tmp_path / "steps.py")


@pytest.fixture(scope="module")
def words(small_run):
    def of(folder: Path, **flags: object) -> list[str]:
        plain = {"checkpointing_steps": 2, "max_grad_norm": 1e-3, "adam_weight_decay": 0.01, "use_ema": True}
        return small_run(output_dir=folder, train_batch_size=None, **plain | flags)

    return of


@pytest.fixture(scope="module")
def shared(words, tmp_path_factory) -> Path:
    """What two processes leave that share out the denoiser, and accumulate two micro-batches."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "erase.py").write_text(ERASE)
    run_two(folder / "erase.py", *words(folder / "run", gradient_accumulation_steps=2), **FSDP2)
    return folder / "run"


@pytest.fixture(scope="module")
def single(words, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("single") / "run"
    assert main(words(folder)) == 0
    return folder


def close(run: Path, other: Path, file: str) -> bool:
    """Whether two files of tensors have the same ones, but for a few weights that Adam moves by rounding alone."""
    ours, theirs = load_file(run / file), load_file(other / file)
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: tensor.shape for n, tensor in theirs.items()}
    far = sum(int(((tensor - theirs[name]).abs() > 1e-4).sum()) for name, tensor in ours.items())
    return far < 1e-3 * sum(tensor.numel() for tensor in ours.values())


@pytest.mark.slow
class TestErasure:
    def test_ends_with_the_weights_of_one_process(self, shared, single):
        assert SaliencyMask.load(shared / "mask.safetensors") == SaliencyMask.load(single / "mask.safetensors")
        assert close(shared, single, UNET)
        selected = SaliencyMask.load(shared / "mask.safetensors").number_selected
        parts = [json.loads(shared.with_suffix(f".rank{rank}").read_text()) for rank in (0, 1)]
        assert sum(parts) == selected and max(parts) < 0.7 * selected

    def test_checkpoints_are_whole(self, shared, single):
        """Weights, moments and averages, in the order of one process."""
        for name in ("checkpoint-2", "checkpoint-4"):
            assert close(shared, single, f"{name}/state.safetensors")

    def test_one_process_goes_on_from_them(self, shared, single, words, tmp_path):
        import shutil

        run = Path(shutil.copytree(shared, tmp_path / "run"))
        shutil.rmtree(run / "pipeline")
        (run / "work" / "pipeline.json").unlink()
        assert main(words(run, resume_from_checkpoint="checkpoint-2")) == 0
        assert close(run, single, UNET)

    def test_two_go_on_to_the_bit(self, shared, words, tmp_path):
        import shutil

        run = Path(shutil.copytree(shared, tmp_path / "run"))
        (run / "work" / "pipeline.json").unlink()
        (tmp_path / "erase.py").write_text(ERASE)
        flags = words(run, resume_from_checkpoint="checkpoint-2", gradient_accumulation_steps=2)
        run_two(tmp_path / "erase.py", *flags, **FSDP2)
        assert (run / UNET).read_bytes() == (shared / UNET).read_bytes()

    def test_the_present_network_as_teacher(self, words, tmp_path):
        """The paper's recipe, whose teacher runs without gradient before every step."""
        (tmp_path / "erase.py").write_text(ERASE)
        run_two(tmp_path / "erase.py", *words(tmp_path / "two", recipe="paper"), **FSDP2)
        assert main(words(tmp_path / "one", recipe="paper")) == 0
        assert close(tmp_path / "two", tmp_path / "one", UNET)


class TestRefusals:
    @pytest.fixture(autouse=True)
    def configured(self, monkeypatch):
        for name, value in {**FSDP2, "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)

    @pytest.mark.parametrize(
        ("environment", "words"),
        [
            ({"FSDP_VERSION": "1"}, "configured for FSDP1"),
            ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "bf16 or fp32"),
            ({"FSDP_OFFLOAD_PARAMS": "true"}, "offloaded weights"),
        ],
    )
    def test_what_is_not_shared_out(self, refused, monkeypatch, environment, words):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        refused(words)

    def test_a_program_that_only_draws(self):
        drawing = engine(mixed_precision="no", gradient_accumulation_steps=1, report_to=None, trains=False)
        with pytest.raises(UserError, match="only draws"), drawing:
            pytest.fail("entered")


def test_sums_over_whole_tensors_are_refused(monkeypatch):
    from types import SimpleNamespace

    from tiny_runs import tiny_settings

    from salun_diffusers.diffusion.sharding import refuse_unshardable

    alone = SimpleNamespace(num_processes=1, state=SimpleNamespace())
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    refuse_unshardable(alone, tiny_settings(objective="l1_sparse"))
    several = SimpleNamespace(num_processes=2, state=SimpleNamespace(fsdp_plugin=torch.nn.Identity()))
    refuse_unshardable(several, tiny_settings())
    with pytest.raises(UserError, match="l1_sparse"):
        refuse_unshardable(several, tiny_settings(objective="l1_sparse"))
