"""Memory that runs out: one sentence with the flags that help, exit code 2, and the same folder goes on with them."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from salun_diffusers.diffusion import batches, optimizer, run, trainer
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.out_of_memory import saving_flags
from salun_diffusers.errors import is_out_of_memory
from salun_diffusers.programs.erase import main
from salun_diffusers.programs.program import Program

UNET = "pipeline/unet/diffusion_pytorch_model.safetensors"
CPU = "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
EXHAUSTED = {
    "gpu": torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 8 GB"
    ),
    "cpu": RuntimeError(f"{CPU} 4398046511104 bytes."),
    "python": MemoryError(),
    "system": OSError(12, "Cannot allocate memory"),
}
FIRST = "--gradient_checkpointing, --mixed_precision bf16, --saliency_micro_batch_size 1, --train_batch_size 1 with"
STAGES = {
    "drawing": "salun_diffusers.diffusion.families.stable_diffusion.StableDiffusion.generate",
    "saliency": "salun_diffusers.diffusion.saliency_pass.guided_noise_loss",
    "fine-tuning": "salun_diffusers.diffusion.trainer._step",
    "pictures after": "salun_diffusers.diffusion.run.sampler_of_erased",
    "report": "salun_diffusers.diffusion.run.write_report",
}


@pytest.fixture(scope="module")
def whole(small_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(small_run(output_dir=folder)) == 0
    return folder


@pytest.mark.parametrize(("stage", "kind"), [*((stage, "gpu") for stage in STAGES), ("saliency", "cpu"),
                                             ("fine-tuning", "python"), ("report", "system")])  # fmt: skip
def test_is_told_and_the_folder_goes_on_with_other_flags(stopped, small_run, whole, tmp_path, monkeypatch, stage, kind):
    def exhausted(*_, **__):
        raise EXHAUSTED[kind]

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(STAGES[stage], exhausted)
        line = stopped("Memory ran out", FIRST, "--use_8bit_adam, --offload_saliency", output_dir=folder)
    assert f"--output_dir {folder} --resume_from_checkpoint latest" in line
    finished = {path.stem for path in (folder / "work").glob("*.json")}
    expected = {"drawing": set(), "saliency": {"forget", "retain"}, "fine-tuning": {"forget", "retain", "mask"}}
    assert finished == expected.get(stage, {"forget", "retain", "mask", "pipeline"})

    words = small_run(
        output_dir=folder, resume_from_checkpoint="latest", saliency_micro_batch_size=2, offload_saliency=True,
        generation_batch_size=1,
    )  # fmt: skip
    drawn = []
    with monkeypatch.context() as patch:
        patch.setattr("salun_diffusers.diffusion.latent_sets.generate_latents", lambda *_: drawn.append(1))
        if stage != "drawing":  # The sets are there.
            assert main(words) == 0
    if stage == "drawing":
        assert main(words) == 0
    assert not drawn
    if stage not in ("drawing", "saliency"):  # Sums of micro-batches round otherwise.
        assert (folder / UNET).read_bytes() == (whole / UNET).read_bytes()


def test_while_the_model_is_loaded(stopped, monkeypatch, tmp_path):
    """There is no folder yet that could go on."""

    def exhausted(*_, **__):
        raise EXHAUSTED["gpu"]

    monkeypatch.setattr("salun_diffusers.diffusion.start.load_family", exhausted)
    assert "--resume_from_checkpoint" not in stopped("Memory ran out", FIRST, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_of_a_real_allocation_in_a_program(small_run, tmp_path):
    """torch is asked for four million gigabytes in the middle of fine-tuning."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, torch\n"
        "from salun_diffusers.diffusion import trainer\n"
        "from salun_diffusers.programs.erase import main\n"
        "trainer._step = lambda *_, **__: torch.empty(2**50)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, str(program), *small_run(output_dir=tmp_path / "run")],
        capture_output=True, text=True, check=False, timeout=280,
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
             "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr[-2000:]
    assert done.stderr.splitlines()[-1].startswith(f"error: Memory ran out; less is needed with {FIRST}")
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "mask.safetensors").exists()


def test_other_programs_tell_it_too(capsys):
    def exhausted(config, command):
        raise EXHAUSTED["gpu"]

    assert Program("something", EraseConfig, exhausted, "Some work.")(["--concept", "circle"]) == 2
    assert capsys.readouterr().err.startswith("error: Memory ran out; smaller batches need less (CUDA out of memory.")


class TestWhatIsExhausted:
    @pytest.mark.parametrize("error", EXHAUSTED.values(), ids=EXHAUSTED)
    def test_memory(self, error):
        assert is_out_of_memory(error)

    @pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(28, "No space left on device"),
                                       ValueError("out of memory")], ids=repr)  # fmt: skip
    def test_other_things(self, error):
        assert not is_out_of_memory(error)

    def test_a_mistake_of_ours_is_not_hidden(self, small_run, tmp_path, monkeypatch):
        def broken(*_, **__):
            raise RuntimeError("shapes differ")

        monkeypatch.setattr(STAGES["saliency"], broken)
        with pytest.raises(RuntimeError, match="shapes differ"):
            main(small_run(output_dir=tmp_path / "run"))


class TestFlags:
    def test_that_are_given_are_not_named_again(self):
        everything = saving_flags(EraseConfig(concept="nudity"))
        fewer = saving_flags(
            EraseConfig(
                concept="nudity", gradient_checkpointing=True, mixed_precision="bf16", saliency_micro_batch_size=1,
                train_batch_size=1, use_8bit_adam=True, offload_saliency=True, generation_batch_size=1,
            )
        )  # fmt: skip
        assert [flag.split()[0] for flag in everything] == [
            "--gradient_checkpointing", "--mixed_precision", "--saliency_micro_batch_size",
            "--gradient_accumulation_steps", "--use_8bit_adam", "--offload_saliency", "--generation_batch_size",
            "--mask_ratio",
        ]  # fmt: skip
        assert [flag.split()[0] for flag in fewer] == ["--mask_ratio"]

    def test_a_batch_of_the_users_is_cut_as_one_of_a_preset_is(self):
        """Twice the micro-batches of half the size are the same training; those of one latent cannot be cut."""
        own, one = (saving_flags(EraseConfig(concept="nudity", train_batch_size=size)) for size in (4, 1))
        assert "--train_batch_size 1 with 4 times the --gradient_accumulation_steps" in own
        assert not [flag for flag in one if "batch_size 1 with" in flag or "accumulation" in flag]

    def test_of_the_saliency_are_named_where_there_is_one(self):
        assert not [flag for flag in saving_flags(EraseConfig(concept="nudity", mask="random")) if "saliency" in flag]


def test_nothing_of_the_training_is_alive_when_the_erased_model_draws(small_run, tmp_path, monkeypatch):
    """Neither the base's network nor the leaves, the optimizer, its moments, the targets, the sets."""
    kept: dict[str, list[weakref.ref]] = {}
    alive: list[str] = []

    def watched(name, thing):
        kept.setdefault(name, []).append(weakref.ref(thing))
        return thing

    fine_tune, make, draw, draws = run.fine_tune, optimizer.make_optimizer, run.draw_pictures, batches.Draws.__init__

    def spied_fine_tune(started, family, selected, data, *others):
        watched("family", family)
        watched("network", family.denoiser)
        watched("selected weights", selected)
        watched("sets", data.forget.latents)
        for leaf in selected.weights:
            watched("leaves", leaf)
        return fine_tune(started, family, selected, data, *others)

    def spied_make(*arguments):
        return watched("optimizer", make(*arguments))

    def spied_draws(self, *arguments):
        watched("targets", self)
        draws(self, *arguments)

    def spied_draw(sampler, concept, when):
        if when == "after":
            alive.extend(name for name, things in kept.items() if any(thing() is not None for thing in things))
        return draw(sampler, concept, when)

    monkeypatch.setattr(run, "fine_tune", spied_fine_tune)
    monkeypatch.setattr(trainer, "make_optimizer", spied_make)
    monkeypatch.setattr(batches.Draws, "__init__", spied_draws)
    monkeypatch.setattr(run, "draw_pictures", spied_draw)
    assert main(small_run(output_dir=tmp_path / "run")) == 0
    assert set(kept) == {"family", "network", "selected weights", "sets", "leaves", "optimizer", "targets"}
    assert alive == []
    assert json.loads((tmp_path / "run" / "report.json").read_text())["receipt"]
