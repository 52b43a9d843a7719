"""Several processes under accelerate: one saliency, one set of weights, one folder, whatever their number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import run_in, tiny_settings
from two_processes import run_many, run_two

from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.programs.erase import main

pytestmark = pytest.mark.slow  # 15 to 30 s, most of it two imports of torch and diffusers at once.

# Runs the program and keeps what each rank found: its saliency, its weights after fine-tuning, how much it drew, how
# often it hashed, verified, loaded a detector and measured, and the report that it ended with; then all is there.
SPY = """
import json, os, sys
from collections import Counter
from pathlib import Path
from accelerate import Accelerator
from safetensors.torch import save_file
from salun_diffusers.diffusion import masks, run, run_report, start
from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
from salun_diffusers.files import run_folder
from salun_diffusers.masks import receipt
from salun_diffusers.programs.erase import main

folder, rank = Path(sys.argv[1]), os.environ.get("RANK", "0")
saliency_of, fine_tune, generate = masks.forget_saliency, run.fine_tune, StableDiffusion.generate

def spied_saliency(*arguments):
    saliency = saliency_of(*arguments)
    save_file({name: tensor.clone() for name, tensor in saliency.items()}, folder / f"saliency-{rank}.safetensors")
    return saliency

def spied_fine_tune(started, family, *arguments):
    history = fine_tune(started, family, *arguments)
    save_file({name: tensor.clone() for name, tensor in family.denoiser.state_dict().items()},
              folder / f"weights-{rank}.safetensors")
    return history

def spied_generate(family, prompts, seeds, **how):
    with (folder / f"drawn-{rank}.txt").open("a") as file:
        file.write("drawn\\n" * len(prompts))
    return generate(family, prompts, seeds, **how)

calls = Counter()

def counted(module, name):
    real = getattr(module, name)
    def spied(*arguments, **named):
        calls[name] += 1
        return real(*arguments, **named)
    setattr(module, name, spied)

for module, name in (
    (run_folder, "sha256_of"), (receipt, "compare"), (start, "make_detector"), (run_report, "measure"),
):
    counted(module, name)

masks.forget_saliency, run.fine_tune = spied_saliency, spied_fine_tune
StableDiffusion.generate = spied_generate
write_report = run.write_report

def spied_report(*arguments):
    report = write_report(*arguments)
    (folder / f"report-{rank}.json").write_text(json.dumps(report.to_json()))
    return report

run.write_report = spied_report
Accelerator.end_training = lambda accelerator: None  # It would end the group of processes, which the second run needs.
for when, words in (("calls", []), ("resumed", ["--resume_from_checkpoint", "latest"])):
    calls.clear()
    if code := main([*sys.argv[2:], *words]):
        sys.exit(code)
    (folder / f"{when}-{rank}.json").write_text(json.dumps(calls))
"""


@pytest.fixture(scope="module")
def pair(small_run: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave that accumulate three micro-batches each: six unequal parts of the preset's batch."""
    folder = tmp_path_factory.mktemp("pair")
    (folder / "spy.py").write_text(SPY)
    words = small_run(output_dir=folder / "run", train_batch_size=None, gradient_accumulation_steps=3)
    printed = run_two(folder / "spy.py", str(folder), *words)
    for rank, text in enumerate(printed):
        (folder / f"printed-{rank}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def four(small_run: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four processes leave: each is given two of the eight."""
    folder = tmp_path_factory.mktemp("four")
    (folder / "spy.py").write_text(SPY)
    run_many(4, folder / "spy.py", str(folder), *small_run(output_dir=folder / "run", train_batch_size=2))
    return folder


@pytest.fixture(scope="module")
def single(small_run: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves that takes the preset's eight at once, on as many threads as each of the others has."""
    folder = tmp_path_factory.mktemp("single") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main(small_run(output_dir=folder, train_batch_size=None)) == 0
    finally:
        torch.set_num_threads(threads)
    return folder


def test_latent_sets_are_those_of_one_process(pair, single):
    for name in ("forget", "retain"):
        ours, expected = (load_file(run / "work" / f"{name}.safetensors") for run in (pair / "run", single))
        assert torch.equal(ours["latents"], expected["latents"])


def test_the_ranks_share_all_drawing(pair):
    """Sets, pictures before and after: each is drawn by one rank."""
    shares = [(pair / f"drawn-{rank}.txt").read_text().count("drawn") for rank in (0, 1)]
    assert min(shares) > 0
    assert sum(shares) == len(list((pair / "run" / "work" / "drawn").rglob("*.safetensors")))


def test_saliency_is_summed_before_the_absolute_value(pair, single, tiny_pipeline):
    """Each rank has one of the two batches; |g_0 + g_1| on both, not |g_0| + |g_1|."""
    first, second = (load_file(pair / f"saliency-{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    mine = saliency_of_one_process(single, tiny_pipeline)
    for name, scores in mine.items():
        torch.testing.assert_close(first[name], scores, atol=1e-4 * float(scores.max()), rtol=1e-3)
    # Of two numbers the sum has no order: the mask is the same to the bit.
    assert SaliencyMask.load(pair / "run" / "mask.safetensors") == SaliencyMask.load(single / "mask.safetensors")


def saliency_of_one_process(run: Path, base: Path) -> dict[str, torch.Tensor]:
    from salun_diffusers.accelerator import engine
    from salun_diffusers.diffusion.families.stable_diffusion import StableDiffusion
    from salun_diffusers.diffusion.latent_sets import EraseData, LatentSet
    from salun_diffusers.diffusion.saliency_pass import forget_saliency

    family = StableDiffusion(base, device=torch.device("cpu"))
    sets = [LatentSet.load(run / "work" / f"{name}.safetensors") for name in ("forget", "retain")]
    prompts = ["a photo of a circle"], ["a photo of a heart"], ["a photo of a square", "a star"], [""]
    with engine(mixed_precision="no", gradient_accumulation_steps=1, report_to=None) as accelerator:
        data = EraseData(*sets, LatentSet.empty(prompts[1]), *map(family.encode, prompts))
        settings = tiny_settings(saliency_batch_size=4, saliency_guidance=7.5, seed=0)
        parameters = dict(family.denoiser.named_parameters())
        return dict(forget_saliency(run_in(run, accelerator), family, parameters, data, settings))


@pytest.mark.parametrize("count", [2, 4])
def test_all_ranks_end_with_the_weights_of_one_process(count, single, request):
    several = request.getfixturevalue({2: "pair", 4: "four"}[count])
    ranks = [load_file(several / f"weights-{rank}.safetensors") for rank in range(count)]
    saved = load_file(several / "run" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    expected = load_file(single / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert SaliencyMask.load(several / "run" / "mask.safetensors") == SaliencyMask.load(single / "mask.safetensors")
    far = 0
    for name, tensor in saved.items():
        assert all(torch.equal(rank[name], tensor) for rank in ranks)
        far += int(((tensor - expected[name]).abs() > 1e-4).sum())
    # Adam turns the rounding of a vanishing gradient into a step; such weights are few.
    assert far < 1e-3 * sum(tensor.numel() for tensor in saved.values())


def test_one_rank_hashes_verifies_and_measures_for_both(pair):
    """It holds a second U-Net and the detector; on eight ranks of one machine eight of each would not fit."""
    for when in ("calls", "resumed"):
        first, second = (json.loads((pair / f"{when}-{rank}.json").read_text()) for rank in (0, 1))
        assert first.pop("sha256_of") > 10  # Each file of the base and of the erased folder, and what stages left.
        assert first == {"compare": 1, "make_detector": 1, "measure": 1}
        assert second == {}
    ours, told = (json.loads((pair / f"report-{rank}.json").read_text()) for rank in (0, 1))
    assert ours == told == json.loads((pair / "run" / "report.json").read_text())


def test_the_verdict_is_printed_once_a_run(pair):
    first, second = ((pair / f"printed-{rank}.txt").read_text() for rank in (0, 1))
    assert first.count("pipeline  ") == 2 and second == ""


def test_one_folder_one_record(pair, single):
    rows = [json.loads(line) for line in (pair / "run" / "metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (single / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected], rel=1e-2)
    assert (pair / "run" / "report.json").exists()
    assert [path.name for path in pair.glob("run*")] == ["run"]


def test_two_processes_train_cross_attention_alone(small_run, tmp_path):
    """Tensors without gradient are no concern of DistributedDataParallel's; the weights are those of one process."""
    (tmp_path / "erase.py").write_text(
        "import sys\nfrom salun_diffusers.programs.erase import main\nsys.exit(main())\n"
    )
    flags = {"train_method": "xattn", "saliency_micro_batch_size": 1, "offload_saliency": True, "num_anchor_images": 0}
    run_two(tmp_path / "erase.py", *small_run(output_dir=tmp_path / "two", **flags))
    assert main(small_run(output_dir=tmp_path / "one", gradient_accumulation_steps=2, **flags)) == 0
    two, one = (
        load_file(tmp_path / run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
        for run in ("two", "one")
    )
    far = sum(int(((tensor - one[name]).abs() > 1e-4).sum()) for name, tensor in two.items())
    assert far < 1e-2 * SaliencyMask.load(tmp_path / "one" / "mask.safetensors").number_selected
