"""The whole program on a tiny pipeline: what it leaves, what it promises, and every way to vary it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from salun_diffusers import EraseConfig, erase
from salun_diffusers.diffusion.presets.everyday import beside, everyday
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.receipt import compare
from salun_diffusers.programs.erase import main
from salun_diffusers.reports.report import EvaluationReport
from salun_diffusers.seeds import stream

STAGES = [
    "load", "pictures before", "latent sets", "saliency and mask", "fine-tuning", "save and verify", "pictures after",
]  # fmt: skip


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")


def report_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text())


def moved(run: Path, base: Path) -> dict[str, Tensor]:
    before = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    return {name: tensor != before[name] for name, tensor in weights(run).items()}


def same(first: Path, second: Path) -> bool:
    other = weights(second)
    return all(torch.equal(tensor, other[name]) for name, tensor in weights(first).items())


@pytest.fixture(scope="module")
def finished(small_run: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a finished run with some flags; the same flags are run once."""
    known: dict[str, Path] = {}

    def run(**flags: object) -> Path:
        name = json.dumps(flags, default=str)
        if name not in known:
            folder = tmp_path_factory.mktemp("runs") / "run"
            assert main(small_run(output_dir=folder, **flags)) == 0
            known[name] = folder
        return known[name]

    return run


class TestOutputs:
    def test_every_file_is_there(self, finished):
        run = finished()
        assert sorted(path.name for path in run.iterdir()) == [
            "checkpoint-4", "config.json", "mask.safetensors", "metrics.jsonl", "pipeline", "report.html",
            "report.json", "run.json", "samples", "work",
        ]  # fmt: skip
        # One forget and two retain prompts, two pictures each, before and after.
        pictures = sorted((run / "samples").iterdir())
        assert len(pictures) == 3 * 2 * 2
        with Image.open(pictures[0]) as picture:
            assert picture.size == (16, 16)
        assert "<html" in (run / "report.html").read_text()

    def test_report_is_complete(self, finished):
        run = finished()
        content = report_of(run)
        report = EvaluationReport.from_json(content)
        assert report.to_json() == content
        assert (report.concept, report.recipe, report.verdict) == ("disc", "frozen_teacher", "not measured")
        assert report.receipt.outside_mask_identical
        assert list(report.timings) == STAGES
        assert [measurement.n for measurement in report.measurements] == [4]

    def test_metrics_have_a_row_a_step(self, finished):
        rows = [json.loads(line) for line in (finished() / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        assert rows == report_of(finished())["series"]

    def test_config_is_resolved(self, finished):
        config = json.loads((finished() / "config.json").read_text())
        seen, _ = everyday("disc", ["a photo of a circle"], ["a photo of a heart"])
        assert config["concept_prompts"] == {
            "forget": ["a photo of a circle"],
            "anchor": ["a photo of a heart"],
            "retain": [*beside(("a photo of a square", "a star"), seen)],
        }
        assert (config["lr_scheduler"], config["empty_prompt_share"], config["saliency_guidance"]) == (
            "cosine",
            0.2,
            7.5,
        )

    def test_only_the_denoisers_weights_are_new(self, finished, tiny_pipeline):
        pipeline = finished() / "pipeline"
        new = "unet/diffusion_pytorch_model.safetensors"
        names = sorted(str(path.relative_to(tiny_pipeline)) for path in tiny_pipeline.rglob("*") if path.is_file())
        made = {str(path.relative_to(pipeline)) for path in pipeline.rglob("*") if path.is_file()}
        assert made == {*names, "README.md"}  # The card; this base has none.
        for name in names:
            assert ((pipeline / name).read_bytes() == (tiny_pipeline / name).read_bytes()) is (name != new)

    def test_a_random_mask_can_be_drawn_again_from_its_recipe(self, finished):
        mask = SaliencyMask.load(finished(mask="random", mask_ratio=0.25) / "mask.safetensors")
        generator = stream(mask.recipe["run_seed"], "mask")
        assert SaliencyMask.random(mask.shapes, mask.recipe["ratio"], generator, mask.recipe["scope"]) == mask

    def test_mask_receipt_holds(self, finished, tiny_pipeline):
        run = finished()
        mask = SaliencyMask.load(run / "mask.safetensors")
        receipt = compare(tiny_pipeline, run / "pipeline", mask)
        assert receipt.holds
        assert mask.number_selected == receipt.weights // 2
        assert 0.9 * mask.number_selected < receipt.moved <= mask.number_selected
        assert not any((flags & ~mask[name]).any() for name, flags in moved(run, tiny_pipeline).items())

    def test_pipeline_loads_and_draws(self, finished):
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(finished() / "pipeline", safety_checker=None)
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline("a photo of a circle", num_inference_steps=2).images[0].size == (16, 16)

    def test_from_python_nothing_is_left(self, tiny_pipeline, retain_file, finished, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        result = erase(
            EraseConfig(
                concept="disc", forget_prompt=("a photo of a circle",), anchor_prompt=("a photo of a heart",),
                retain_prompts=str(retain_file), pretrained_model_name_or_path=str(tiny_pipeline),
                num_forget_images=6, num_anchor_images=0, num_retain_images=5, scheduler="own", num_inference_steps=2,
                guidance_scale=2, generation_batch_size=4, saliency_batch_size=4, train_batch_size=2, max_train_steps=4,
                learning_rate=1e-3, num_validation_images=2, retain_weight=1,
            )
        )  # fmt: skip
        assert result.folder is None
        assert not list(tmp_path.iterdir())
        assert result.mask == SaliencyMask.load(finished() / "mask.safetensors")
        expected = weights(finished())
        assert all(torch.equal(value, expected[name]) for name, value in result.pipeline.unet.state_dict().items())
        assert result.report.verdict == "not measured"


class TestSeed:
    def test_same_seed_same_bits(self, finished, small_run, tmp_path):
        assert main(small_run(output_dir=tmp_path / "run")) == 0
        assert same(finished(), tmp_path / "run")
        masks = [SaliencyMask.load(run / "mask.safetensors") for run in (finished(), tmp_path / "run")]
        assert masks[0] == masks[1]
        for file in ("metrics.jsonl", "samples/forget-00-00-after.png"):
            assert (tmp_path / "run" / file).read_bytes() == (finished() / file).read_bytes()

        # The command that made them names another folder.
        first, second = (report_of(run) for run in (finished(), tmp_path / "run"))
        for report in (first, second):
            for measurement in report["measurements"]:
                measurement["command"] = ""
        assert first["measurements"] == second["measurements"]
        assert first["verdict"] == second["verdict"]

    def test_other_seed_other_weights(self, finished):
        assert not same(finished(), finished(seed=1))
        assert SaliencyMask.load(finished() / "mask.safetensors") != SaliencyMask.load(
            finished(seed=1) / "mask.safetensors"
        )


class TestVariants:
    def test_paper_recipe(self, finished):
        run = finished(recipe="paper", learning_rate=1e-5)
        config = json.loads((run / "config.json").read_text())
        assert (config["lr_scheduler"], config["empty_prompt_share"]) == ("constant", 0.0)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        # The retain target is the noise, which an untrained network is far from.
        assert rows[0]["retain_loss"] > 0.1
        assert SaliencyMask.load(run / "mask.safetensors") == SaliencyMask.load(finished() / "mask.safetensors")

    @pytest.mark.parametrize(("kind", "density"), [("random", 0.25), ("full", 1.0)])
    def test_made_masks(self, finished, tiny_pipeline, kind, density):
        run = finished(mask=kind, mask_ratio=0.25)
        mask = SaliencyMask.load(run / "mask.safetensors")
        assert mask.recipe["kind"] == kind
        # What it is, what it is for, and of which model, by a name that says nothing of the user's folders.
        told = {"concept": "disc", "base": tiny_pipeline.name, "train_method": "full", "ratio": density}
        assert told.items() <= mask.recipe.items() and len(mask.recipe["base_sha256"]) == 64
        seeds = {"seed", "run_seed"} if kind == "random" else {"seed"}
        assert seeds <= mask.recipe.keys()
        assert mask.density == pytest.approx(density, abs=1e-4)
        flags = moved(run, tiny_pipeline)
        assert not any((flags[name] & ~mask[name]).any() for name in mask)
        assert sum(int(flag.sum()) for flag in flags.values()) > 0.9 * mask.number_selected

    def test_mask_from_a_file(self, finished):
        """The file's mask is the run's mask, and that of the same run gives the same weights."""
        run = finished(mask=finished() / "mask.safetensors")
        assert SaliencyMask.load(run / "mask.safetensors") == SaliencyMask.load(finished() / "mask.safetensors")
        assert same(run, finished())

    def test_gradient_checkpointing_gives_the_same_weights(self, finished):
        expected = weights(finished())
        for name, tensor in weights(finished(gradient_checkpointing=True)).items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)

    def test_bf16_computes_in_bf16_and_keeps_fp32_weights(self, finished):
        common = {"recipe": "paper", "max_train_steps": 1, "learning_rate": 1e-5}
        run, exact = finished(mixed_precision="bf16", **common), finished(mixed_precision="no", **common)
        assert {tensor.dtype for tensor in weights(run).values()} == {torch.float32}
        losses = [json.loads((one / "metrics.jsonl").read_text())["loss"] for one in (run, exact)]
        assert losses[0] != losses[1]
        assert losses[0] == pytest.approx(losses[1], rel=0.02)
        # On a CPU pictures are drawn in fp32, before and after.
        name = "samples/forget-00-00-before.png"
        assert (run / name).read_bytes() == (exact / name).read_bytes()

    def test_precision_of_one_run_is_not_inherited_by_the_next(self, finished, small_run, tmp_path):
        common = {"recipe": "paper", "max_train_steps": 1, "learning_rate": 1e-5}
        exact = finished(mixed_precision="no", **common)
        assert main(small_run(output_dir=tmp_path / "bf16", mixed_precision="bf16", **common)) == 0
        assert main(small_run(output_dir=tmp_path / "run", **common)) == 0
        assert same(tmp_path / "run", exact)
        assert not same(tmp_path / "bf16", exact)

    def test_accumulation_uses_all_its_batches(self, finished):
        """Two steps of two batches see the batches of four steps, and move the weights twice, not four times."""
        run = finished(gradient_accumulation_steps=2, max_train_steps=2)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2]
        single = finished(max_train_steps=2)
        assert not same(run, single)
        first = json.loads((single / "metrics.jsonl").read_text().splitlines()[0])
        assert rows[0]["forget_loss"] != first["forget_loss"]

    def test_save_dtype(self, finished):
        run = finished(save_dtype="float16", max_train_steps=2)
        assert {tensor.dtype for tensor in weights(run).values()} == {torch.float16}
        assert report_of(run)["receipt"]["outside_mask_identical"]
