"""A change redoes the stages that it decides and no others; what was left is used only if it is what was left."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_runs import run_in

from salun_diffusers.accelerator import engine
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.presets.known import find_concept
from salun_diffusers.diffusion.sampler import model_of, sampler_of_base, sampler_of_erased
from salun_diffusers.diffusion.settings import resolve
from salun_diffusers.diffusion.stage_marks import Sources, StageMarks, stage_marks
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.programs.erase import main

STAGES = ("latents, forget", "latents, retain", "saliency", "fine-tuning")
GIVEN = {"base": "base", "variant": None, "given_masks": (), "pictures": {}, "processes": 1}
UNET = "pipeline/unet/diffusion_pytorch_model.safetensors"


def in_order(value: object) -> str:
    """An id that does not change from one process to the next, as the order of a set does."""
    return str(sorted(value)) if isinstance(value, set) else str(value)


@pytest.fixture(scope="module")
def finished(small_run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(small_run(output_dir=folder, checkpointing_steps=2)) == 0
    return folder


@pytest.fixture
def again(finished, small_run, tmp_path, capsys) -> Callable[..., tuple[set[str], Path]]:
    """Resume a copy of the finished run with other flags; returns which stages were gone through, and the copy."""

    def resume(spoil: Callable[[Path], object] = lambda folder: None, **flags: object) -> tuple[set[str], Path]:
        folder = tmp_path / "run"
        if not folder.exists():
            shutil.copytree(finished, folder)
        spoil(folder)
        capsys.readouterr()
        words = small_run(output_dir=folder, resume_from_checkpoint="latest", **{"checkpointing_steps": 2, **flags})
        assert main(words) == 0, capsys.readouterr().err
        err = capsys.readouterr().err
        return {
            name for name in ("latents, forget", "latents, retain", "saliency", "fine-tuning") if name in err
        }, folder

    return resume


def same_weights(run: Path, other: Path) -> bool:
    return (run / UNET).read_bytes() == (other / UNET).read_bytes()


class TestNothingIsRedone:
    @pytest.mark.parametrize(
        "flags",
        [
            {}, {"detector": "none"}, {"gradient_checkpointing": True}, {"mixed_precision": "bf16"},
            {"generation_batch_size": 2}, {"checkpointing_steps": 1}, {"checkpoints_total_limit": 1},
            {"num_validation_images": 3}, {"save_patch": True}, {"show_explicit": True},
            {"train_batch_size": 1, "gradient_accumulation_steps": 2},
        ],
        ids=in_order,
    )  # fmt: skip
    def test_for_memory_time_and_looking(self, again, finished, flags):
        stages, folder = again(**flags)
        assert stages == set() and same_weights(folder, finished)
        assert (folder / "patch.safetensors").exists() == ("save_patch" in flags)

    def test_the_record_says_what_the_last_command_was(self, again):
        _, folder = again(num_validation_images=3)
        assert len([*(folder / "samples").glob("forget-00-*-after.png")]) == 3


class TestWhatAChangeDecides:
    @pytest.mark.parametrize(
        ("flags", "expected"),
        [
            ({"learning_rate": 2e-3}, {"fine-tuning"}),
            ({"objective": "ascent"}, {"fine-tuning"}),
            ({"train_batch_size": 1}, {"fine-tuning"}),
            ({"mask_ratio": 0.25}, {"saliency", "fine-tuning"}),
            ({"saliency_guidance": 1.0}, {"saliency", "fine-tuning"}),
            ({"mask": "random"}, {"fine-tuning"}),
            ({"saliency_weighting": "difference"}, {"saliency", "fine-tuning"}),
            ({"num_retain_images": 4}, {"latents, retain", "fine-tuning"}),
            ({"num_forget_images": 4}, {"latents, forget", "saliency", "fine-tuning"}),
            ({"guidance_scale": 3}, {"latents, forget", "latents, retain", "saliency", "fine-tuning"}),
        ],
        ids=in_order,
    )
    def test_is_redone_and_what_it_does_not_is_not(self, again, small_run, tmp_path, flags, expected):
        stages, folder = again(**flags)
        assert stages == expected
        fresh = tmp_path / "fresh"
        assert main(small_run(output_dir=fresh, checkpointing_steps=2, **flags)) == 0
        assert same_weights(folder, fresh)
        assert (folder / "metrics.jsonl").read_text() == (fresh / "metrics.jsonl").read_text()

    @pytest.mark.parametrize(
        "flags", [{"seed": 1}, {"forget_prompt": "a circle"}, {"anchor_prompt": "a star"}], ids=in_order
    )
    def test_another_run_is_refused(self, finished, small_run, tmp_path, capsys, flags):
        folder = Path(shutil.copytree(finished, tmp_path / "run"))
        assert main(small_run(output_dir=folder, resume_from_checkpoint="latest", **flags)) == 2
        assert "another base model, seed or set of prompts" in capsys.readouterr().err

    def test_a_named_checkpoint_of_other_settings_is_refused(self, finished, small_run, tmp_path, capsys):
        folder = Path(shutil.copytree(finished, tmp_path / "run"))
        words = small_run(output_dir=folder, resume_from_checkpoint="checkpoint-2", learning_rate=2e-3)
        assert main(words) == 2
        assert "of a training with other settings" in capsys.readouterr().err


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def another_set(folder: Path) -> None:
    """A whole file of other latents, as somebody could put there."""
    path = folder / "work" / "forget.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "latents": tensors["latents"] + 1}, path, metadata={"prompts": '["a photo of a circle"]'})
    (folder / "work" / "pipeline.json").unlink()


def another_mask(folder: Path) -> None:
    SaliencyMask.full(dict(SaliencyMask.load(folder / "mask.safetensors").shapes)).save(folder / "mask.safetensors")


class TestWhatWasChangedIsNotUsed:
    @pytest.mark.parametrize(
        ("spoil", "expected"),
        [
            (another_set, {"latents, forget"}),
            (another_mask, {"saliency"}),
            (lambda folder: flip(folder / UNET), set()),
            (lambda folder: flip(folder / "work" / "mask.json", 5), set()),
            (lambda folder: shutil.rmtree(folder / "work"), {"latents, forget", "latents, retain", "saliency"}),
        ],
        ids=["latents", "mask", "pipeline", "mark", "work"],
    )
    def test_it_is_made_anew(self, again, finished, spoil, expected):
        stages, folder = again(spoil)
        assert expected <= stages
        assert same_weights(folder, finished)
        assert SaliencyMask.load(folder / "mask.safetensors") == SaliencyMask.load(finished / "mask.safetensors")

    def test_a_cached_latent(self, again, finished, capsys):
        def spoil(folder: Path) -> None:
            shutil.rmtree(folder / "pipeline")
            for name in ("forget", "pipeline"):
                (folder / "work" / f"{name}.json").unlink()
            for path in (folder / "work" / "drawn").rglob("*.safetensors"):
                flip(path)

        _, folder = again(spoil)
        assert same_weights(folder, finished)

    @pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
    def test_a_checkpoint(self, finished, small_run, tmp_path, capsys, file):
        folder = Path(shutil.copytree(finished, tmp_path / "run"))
        (folder / "work" / "pipeline.json").unlink()
        shutil.rmtree(folder / "checkpoint-4")
        path = folder / "checkpoint-2" / file
        if file == "state.json":
            path.write_text(re.sub(r'"step": 2', '"step": 3', path.read_text()))
        else:
            flip(path)
        assert main(small_run(output_dir=folder, resume_from_checkpoint="latest", checkpointing_steps=2)) == 2
        err = capsys.readouterr().err
        assert "checkpoint-2 is damaged" in err and "delete it to start over" in err
        shutil.rmtree(folder / "checkpoint-2")
        assert main(small_run(output_dir=folder, resume_from_checkpoint="latest", checkpointing_steps=2)) == 0
        assert same_weights(folder, finished)

    @pytest.mark.parametrize("wanted", ["latest", "checkpoint-3"])
    def test_the_newest_of_several_checkpoints(self, small_run, tmp_path, capsys, wanted):
        """`latest` goes on from the one before, and ends with the same bits; by its name it is refused."""
        whole, folder = tmp_path / "whole", tmp_path / "run"
        assert main(small_run(output_dir=whole, checkpointing_steps=1)) == 0
        shutil.copytree(whole, folder)
        (folder / "work" / "pipeline.json").unlink()
        shutil.rmtree(folder / "checkpoint-4")
        flip(folder / "checkpoint-3" / "state.safetensors")
        capsys.readouterr()
        code = main(small_run(output_dir=folder, resume_from_checkpoint=wanted, checkpointing_steps=1))
        notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("note: check", "error: "))]
        if wanted == "latest":
            assert code == 0 and same_weights(folder, whole)
            assert notes == [
                "note: checkpoint-3 is damaged; the training goes on from checkpoint-2, the newest that is whole."
            ]
            assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
        else:
            assert code == 2 and len(notes) == 1
            assert "checkpoint-3 is damaged" in notes[0] and "checkpoint-2 before it is whole" in notes[0]

    def test_rows_of_the_record_that_cannot_be_read_are_left_out(self, again, finished):
        def spoil(folder: Path) -> None:
            path = folder / "metrics.jsonl"
            path.write_text("[]\n{\n" + path.read_text() + '{"step": "x"}\n{"step": 2, "loss": NaN}\n')

        stages, _ = again(spoil)
        assert stages == set()


class TestMarks:
    """What a folder of the base's name holds can be several models, and labels come from a detector with weights."""

    def marks(self, mask: str = "saliency", **sources: object) -> StageMarks:
        asked = EraseConfig(concept="circle", mask=mask)
        concept = find_concept(asked)
        settings = replace(resolve(asked, concept.numbers), target_forget=0.98)
        return stage_marks(concept, settings, Sources(**{**GIVEN, **sources}))  # type: ignore[arg-type]

    @pytest.mark.parametrize("mask", ["saliency", "magnitude"])
    def test_another_variant_is_another_model_in_every_stage(self, mask):
        one, other = self.marks(mask), self.marks(mask, variant="non_ema")
        assert not set(one.sets.values()) & set(other.sets.values())
        assert one.mask != other.mask and one.training != other.training and one.pipeline != other.pipeline

    def test_only_the_strength_asks_what_looks(self):
        one, other = self.marks(looks="CLIP weights 1"), self.marks(looks="CLIP weights 2")
        assert one.strength != other.strength and replace(one, strength="") == replace(other, strength="")

    def test_kept_latents_are_those_of_the_variant(self):
        assert model_of("sha", None) == "sha"
        assert len({"sha", model_of("sha", "non_ema"), model_of("sha", "fp16"), model_of("other", "fp16")}) == 4

    def test_both_samplers_go_by_it(self, tmp_path):
        asked: Any = SimpleNamespace(
            config=SimpleNamespace(generated_data_dir=None, variant="non_ema"), settings=None,
            model=SimpleNamespace(at=lambda _: SimpleNamespace(identity=lambda: "sha")),
        )  # fmt: skip
        with engine(mixed_precision="no", gradient_accumulation_steps=1, report_to=None) as accelerator:
            run = run_in(tmp_path, accelerator)
            found = [make(None, asked, run).pipeline for make in (sampler_of_base, sampler_of_erased)]  # type: ignore[arg-type]
        assert found == [model_of("base", "non_ema"), model_of("sha", "non_ema")]
