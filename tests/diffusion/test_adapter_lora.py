"""An erasure that trains a LoRA: on salient layers, resumed to the bit, loaded by diffusers, the base as it was."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from peft import get_peft_model_state_dict
from tiny_runs import tiny_settings
from two_processes import run_two

from salun_diffusers.adapters.fused import Fused
from salun_diffusers.adapters.lora_folder import WEIGHTS, read_lora
from salun_diffusers.adapters.lora_names import peft_tensors
from salun_diffusers.adapters.lora_weights import LoraWeights, attach, attached
from salun_diffusers.adapters.low_rank import Factors, LowRank, cost, layers_of
from salun_diffusers.diffusion import layer_masks
from salun_diffusers.diffusion.adapted_model import NAME, load_lora
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.layer_masks import ranks_of
from salun_diffusers.diffusion.publishing import published
from salun_diffusers.diffusion.request import accept
from salun_diffusers.diffusion.stage_marks import Sources, stage_marks
from salun_diffusers.diffusion.strength_line import AdapterLine
from salun_diffusers.errors import UserError
from salun_diffusers.files.loading import load_folder
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.files.whole_files import sha256_of
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.saliency import Saliency
from salun_diffusers.programs.erase import main
from salun_diffusers.programs.verify import main as verify
from salun_diffusers.reports.report import EvaluationReport


def files_of(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def base_of(folder: Path) -> Any:
    pipe = load_folder(DiffusionPipeline, folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


LORA = {"adapter": "lora", "rank": 2, "checkpointing_steps": 2, "detector": "demo", "detector_labels": "shape:circle",
        "strength_points": 3}  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_pipeline: Path, small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, the base's files before and after it compared."""
    before = files_of(tiny_pipeline)
    folder = tmp_path_factory.mktemp("lora") / "run"
    assert main(small_run(**LORA, output_dir=folder)) == 0
    assert files_of(tiny_pipeline) == before
    return folder


@pytest.fixture(scope="module")
def lora(run: Path) -> LowRank:
    return read_lora(run / "adapter")


class TestRun:
    def test_writes_the_adapter_alone(self, run: Path) -> None:
        assert {path.name for path in (run / "adapter").iterdir()} == {WEIGHTS, "lora.json", "README.md"}
        assert not (run / "pipeline").exists() and not list(run.rglob("diffusion_pytorch_model*"))

    def test_the_report_is_of_the_base_with_the_lora(self, run: Path) -> None:
        report = EvaluationReport.from_json(json.loads((run / "report.json").read_text()))
        assert report.receipt.outside_mask_identical and 0 < report.receipt.moved_share <= report.mask.density
        assert f'pipe.load_lora_weights("{run / "adapter"}", weight_name="{WEIGHTS}")' in report.load
        assert (report.config["adapter"], report.config["rank"], report.config["lora_alpha"]) == ("lora", 2, 2)
        assert report.strength is not None and [one.strength for one in report.strength.points] == [0.0, 0.5, 1.0]
        pairs = [
            (path, path.with_name(path.name.replace("before", "after"))) for path in run.rglob("forget*before.png")
        ]
        assert pairs and any(before.read_bytes() != after.read_bytes() for before, after in pairs)

    def test_its_card(self, run: Path, tiny_pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """It says what it is, with figures; its commands hold, and name no folder of this machine."""
        card = ModelCard.load(run / "adapter" / "README.md")
        assert card.data.salun_diffusers == {"concept": ["disc"], "base": "tiny", "adapter": "lora"}
        assert "lora" in card.data.tags and "without “disc”, a LoRA" in card.text
        assert "without it the base is what it was" in card.text and "| LoRA | the parameters of rank 2" in card.text
        assert f'from_pretrained("BASE")\npipe.load_lora_weights("FOLDER", weight_name="{WEIGHTS}")' in card.text
        assert f"`{WEIGHTS}` | `{sha256_of(run / 'adapter' / WEIGHTS)}`" in card.text
        assert "Verdict: not measured yet" not in card.text and str(run) not in card.text
        assert "salun verify BASE FOLDER --mask full" in card.text
        assert verify([str(tiny_pipeline), str(run / "adapter"), "--mask", "full"]) == 0
        assert "ok: " in capsys.readouterr().out

    def test_what_of_it_is_uploaded(self, run: Path) -> None:
        names = {"README.md", "lora.json", WEIGHTS}
        folder, config = RunFolder(run, "adapter"), EraseConfig(adapter="lora")
        assert set(published(folder, config)) == names
        both = published(folder, dataclasses.replace(config, publish_mask=True))
        assert set(both) == names | {"salun/mask.safetensors"}

    def test_the_record(self, run: Path, lora: LowRank) -> None:
        record = json.loads((run / "adapter" / "lora.json").read_text())
        assert {row["layer"]: row["rank"] for row in record["layers"]} == {name: one.rank for name, one in lora.items()}
        assert (record["made"], record["base"], record["concept"]) == ("trained", "tiny", "disc")
        assert record["parameters"] == lora.number_of_parameters

    def test_layers_are_within_the_ratio_and_ranks_within_the_budget(
        self, run: Path, lora: LowRank, tiny_pipeline: Path
    ) -> None:
        unet, mask = base_of(tiny_pipeline).unet, SaliencyMask.load(run / "mask.safetensors")
        shapes = layers_of(unet)
        assert 0.3 < mask.density <= 0.5
        assert set(lora) == set(ranks_of(mask)) == {row.name[: -len(".weight")] for row in mask.stats() if row.selected}
        assert all(row.density in (0.0, 1.0) for row in mask.stats())
        assert {name: one.rank for name, one in lora.items()} == ranks_of(mask)
        budget = 2 * sum(map(cost, shapes.values()))
        assert 0.9 * budget < lora.number_of_parameters <= budget
        assert len(set(ranks_of(mask).values())) > 2

    def test_diffusers_loads_what_was_trained(self, run: Path, lora: LowRank, tiny_pipeline: Path) -> None:
        pipe = base_of(tiny_pipeline)
        exec(json.loads((run / "report.json").read_text())["load"], space := {})
        given = get_peft_model_state_dict(space["pipe"].unet, adapter_name="default_0")
        wanted = peft_tensors(lora)
        assert given.keys() == wanted.keys() and all(torch.equal(given[name], wanted[name]) for name in wanted)
        assert any(one.up.abs().max() > 0 for one in lora.values())
        assert dict(pipe.unet.named_parameters()).keys().isdisjoint(given)

    def test_the_same_run_again_is_the_same_lora(
        self, run: Path, small_run: Any, tmp_path: Path, tiny_pipeline: Path
    ) -> None:
        """Interrupted after two steps of four, and gone on with."""
        folder = tmp_path / "again"
        shutil.copytree(run, folder)
        shutil.rmtree(folder / "adapter")
        shutil.rmtree(folder / "checkpoint-4")
        (folder / "work" / "pipeline.json").unlink()
        assert main(small_run(**LORA, output_dir=folder, resume_from_checkpoint="latest")) == 0
        assert sha256_of(folder / "adapter" / WEIGHTS) == sha256_of(run / "adapter" / WEIGHTS)

    def test_another_rank_is_another_mask_and_another_alpha_another_training(self) -> None:
        asked = EraseConfig(concept="circle", pretrained_model_name_or_path="demo", adapter="lora", rank=2)
        changes: dict[str, dict[str, Any]] = {
            "": {}, "alpha": {"lora_alpha": 4.0}, "rank": {"rank": 3}, "none": {"adapter": "none", "rank": None},
        }  # fmt: skip
        marks = {}
        for name, change in changes.items():
            request = accept(dataclasses.replace(asked, **change))
            marks[name] = stage_marks(request.concept, request.settings, Sources("base", None, (), {}, 1))
        assert marks["alpha"].mask == marks[""].mask and marks["alpha"].training != marks[""].training
        assert len({mark.mask for mark in marks.values()}) == 3
        assert len({mark.training for mark in marks.values()}) == 4
        assert len({mark.run for mark in marks.values()}) == 1


@pytest.mark.slow
def test_two_processes_train_one_lora(run: Path, small_run: Any, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import sys; from salun_diffusers.programs.erase import main; sys.exit(main())")
    run_two(program, *small_run(**LORA, train_batch_size=1, output_dir=tmp_path / "run"))
    alone, together = (peft_tensors(read_lora(folder / "adapter")) for folder in (run, tmp_path / "run"))
    learnt = [name for name in alone if ".lora_B." in name]
    # Adam's steps have the sign of a gradient, however small: what rounding turns is a weight here and there.
    apart = sum(float((together[name] - alone[name]).square().sum()) for name in learnt) ** 0.5
    assert alone.keys() == together.keys()
    assert apart < 0.02 * sum(float(alone[name].square().sum()) for name in learnt) ** 0.5


def test_the_line_is_walked_by_scaling_the_lora(run: Path, lora: LowRank, tiny_pipeline: Path) -> None:
    pipe, noised, states = base_of(tiny_pipeline), torch.ones(1, 4, 4, 4), torch.ones(1, 16, 16)
    weights = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    load_lora(pipe, run / "adapter")
    line, plain = AdapterLine(pipe, NAME), base_of(tiny_pipeline).unet
    for strength in (0.0, 0.5, 1.0):
        line.go_to(strength)
        part = LowRank({name: Factors(one.down, one.up * strength) for name, one in lora.items()})
        plain.load_state_dict(dict(Fused(weights, part)))
        with torch.no_grad():
            wanted, found = (unet(noised, 3, states).sample for unet in (plain, pipe.unet))
        assert torch.allclose(found, wanted, atol=1e-5), strength


class TestReceipt:
    """A LoRA on a layer that the mask does not name, and a base that changes under it."""

    def test_verify_tells_it(
        self, run: Path, tiny_pipeline: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        words = [str(tiny_pipeline), str(run / "adapter"), "--mask", str(run / "mask.safetensors")]
        assert verify(words) == 0
        assert "ok: " in capsys.readouterr().out
        mask = SaliencyMask.load(run / "mask.safetensors")
        narrower = mask.restrict(lambda name: "conv" not in name)
        SaliencyMask(narrower.packed, narrower.shapes, mask.recipe).save(tmp_path / "mask.safetensors")
        assert verify([*words[:3], str(tmp_path / "mask.safetensors")]) == 1
        assert "FAILED: " in capsys.readouterr().out
        assert verify(["demo", *words[1:]]) == 2
        assert "The LoRA is of another model" in capsys.readouterr().err

    def test_another_layer_is_seen(self, run: Path, lora: LowRank, tiny_pipeline: Path, tmp_path: Path) -> None:
        from salun_diffusers.adapters.lora_folder import write_lora
        from salun_diffusers.diffusion.adapted_model import AdaptedModel
        from salun_diffusers.diffusion.base_model import FolderModel

        model, mask = AdaptedModel(FolderModel(tiny_pipeline)), SaliencyMask.load(run / "mask.safetensors")
        assert model.receipt(run / "adapter", mask).holds
        layer = next(name for name in lora if any(one.up.abs().max() > 0 for one in [lora[name]]))
        narrower = mask.restrict(lambda name: name != f"{layer}.weight")
        narrower = SaliencyMask(narrower.packed, narrower.shapes, mask.recipe)
        found = model.receipt(run / "adapter", narrower)
        assert not found.holds and found.first_violation == f"{layer}.weight"
        write_lora(tmp_path / "lora", LowRank({name: one for name, one in lora.items() if name != layer}), {})
        assert model.receipt(tmp_path / "lora", narrower).holds

    def test_a_base_that_changed_is_seen(self, run: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
        from salun_diffusers.diffusion.adapted_model import AdaptedModel
        from salun_diffusers.diffusion.base_model import FolderModel

        other = Path(shutil.copytree(tiny_pipeline, tmp_path / "other"))
        scheduler = other / "scheduler" / "scheduler_config.json"
        scheduler.write_text(scheduler.read_text() + "\n")
        found = AdaptedModel(FolderModel(other)).receipt(run / "adapter", SaliencyMask.load(run / "mask.safetensors"))
        assert not found.holds and found.changed_files == ("the base model",)


class TestLayers:
    @pytest.mark.slow
    @pytest.mark.parametrize("mask", ["random", "magnitude", "saliency_ratio"])
    def test_other_ways_to_choose(self, mask: str, small_run: Any, tmp_path: Path, tiny_pipeline: Path) -> None:
        assert main(small_run(adapter="lora", rank=2, mask=mask, output_dir=tmp_path / "run", max_train_steps=1)) == 0
        ranks = ranks_of(SaliencyMask.load(tmp_path / "run" / "mask.safetensors"))
        unet = base_of(tiny_pipeline).unet
        held = sum(layers_of(unet)[layer].numel() for layer in ranks)
        assert 0 < held <= 0.5 * sum(tensor.numel() for tensor in unet.parameters())

    def test_a_plain_lora_on_what_train_method_says(self, small_run: Any, tmp_path: Path, tiny_pipeline: Path) -> None:
        """Without a mask all layers have the rank that was asked for."""
        assert main(small_run(adapter="lora", mask="full", train_method="xattn", rank=3, use_ema=True,
                              output_dir=tmp_path / "run")) == 0  # fmt: skip
        lora = read_lora(tmp_path / "run" / "adapter")
        assert set(lora) == {name for name in layers_of(base_of(tiny_pipeline).unet) if ".attn2." in name}
        assert {one.rank for one in lora.values()} == {3}


def test_of_several_concepts_each_layer_has_the_sum_of_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """A concept whose gradients are a thousand times another's says no more than that one: 3/4 + 1/4, 1/4 + 3/4."""
    found = {0: {"a": [3000.0], "b": [1000.0]}, 1: {"a": [1.0], "b": [3.0]}}
    monkeypatch.setattr(
        layer_masks, "forget_saliency",
        lambda run, family, weights, data, settings: Saliency(
            {f"{name}.weight": torch.tensor(value) for name, value in found[data].items()}
        ),
    )  # fmt: skip
    network = torch.nn.ModuleDict({name: torch.nn.Linear(1, 1, bias=False) for name in "ab"})
    data, settings = SimpleNamespace(groups=2, forget_of=lambda group: group), tiny_settings()
    shapes = {name: torch.Size((1, 1)) for name in "ab"}
    assert layer_masks._scores(None, SimpleNamespace(denoiser=network), shapes, data, settings) == {"a": 1.0, "b": 1.0}  # type: ignore[arg-type]


class TestWeights:
    """In a network by itself."""

    @pytest.fixture
    def unet(self, tiny_pipeline: Path) -> Any:
        unet = base_of(tiny_pipeline).unet
        attach(unet, {"conv_in": 3, "mid_block.resnets.0.time_emb_proj": 2}, 0.5, name="erasure", seed=7)
        return unet

    def test_begins_as_no_change(self, unet: Any, tiny_pipeline: Path) -> None:
        noised, states = torch.ones(1, 4, 4, 4), torch.ones(1, 16, 16)
        with torch.no_grad():
            assert torch.equal(unet(noised, 3, states).sample, base_of(tiny_pipeline).unet(noised, 3, states).sample)

    def test_is_told_by_seed_and_name_and_not_by_the_process(self, unet: Any, tiny_pipeline: Path) -> None:
        torch.manual_seed(123)
        other = base_of(tiny_pipeline).unet
        attach(other, {"conv_in": 3}, 0.5, name="erasure", seed=7)
        mine, theirs = (attached(one, "erasure")["conv_in"].down for one in (unet, other))
        assert torch.equal(mine, theirs) and 0.8 < mine.abs().max() * (4 * 9) ** 0.5 <= 1

    def test_only_a_and_b_learn(self, unet: Any) -> None:
        weights = LoraWeights(unet, "erasure")
        before = {name: tensor.detach().clone() for name, tensor in unet.named_parameters()}
        assert len(weights.weights) == 4 and weights.number_selected == 3 * (8 + 36) + 2 * (16 + 32)
        stepper = torch.optim.AdamW(weights.weights, lr=0.1, weight_decay=1.0)
        with weights.in_training(gather_as_they_come=True):
            for _ in range(2):
                unet(torch.ones(1, 4, 4, 4), 3, torch.ones(1, 16, 16)).sample.square().mean().backward()
                assert {name for name, tensor in unet.named_parameters() if tensor.grad is not None} == set(
                    weights.names
                )
                weights.gather_gradients()
                stepper.step()
                stepper.zero_grad()
                weights.scatter()
        moved = {name for name, tensor in unet.named_parameters() if not torch.equal(tensor, before[name])}
        assert moved == set(weights.names)

    def test_the_scale_is_in_b(self, unet: Any, tiny_pipeline: Path) -> None:
        LoraWeights(unet, "erasure").load(
            {name: torch.ones_like(tensor) for name, tensor in LoraWeights(unet, "erasure").state().items()}
        )
        assert attached(unet, "erasure")["conv_in"].up.unique().tolist() == [0.5]
        plain = base_of(tiny_pipeline).unet
        weight = plain.conv_in.weight + attached(unet, "erasure")["conv_in"].change()
        with torch.no_grad():
            wanted = torch.conv2d(torch.ones(1, 4, 4, 4), weight, plain.conv_in.bias, padding=1)
            assert torch.allclose(unet.conv_in(torch.ones(1, 4, 4, 4)), wanted, atol=1e-5)

    @pytest.mark.parametrize("change", ["other shape", "missing", "unknown"])
    def test_refuses_the_state_of_other_ranks(self, unet: Any, change: str) -> None:
        weights = LoraWeights(unet, "erasure")
        state = {name: tensor.clone() for name, tensor in weights.state().items()}
        name = weights.names[0]
        if change == "other shape":
            state[name] = torch.ones(2, 4, 3, 3)
        elif change == "missing":
            del state[name]
        else:
            state["more"] = torch.ones(1)
        kept = {name: tensor.clone() for name, tensor in weights.state().items()}
        with pytest.raises(UserError, match="of a run with other ranks"):
            weights.load(state)
        assert all(torch.equal(tensor, kept[name]) for name, tensor in weights.state().items())


class TestRefused:
    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            ({"adapter": "lora", "soft_threshold": "proximal"}, "weighs single weights of the denoiser"),
            ({"rank": 4}, "--rank is of a LoRA"),
            ({"lora_alpha": 4}, "--lora_alpha is of a LoRA"),
            ({"adapter": "lora", "objective": "l1_sparse"}, "--objective l1_sparse"),
            ({"adapter": "lora", "mask_scope": "per_tensor"}, "--mask_scope"),
            ({"adapter": "lora", "save_patch": True}, "--save_patch"),
            ({"adapter": "lora", "target_forget": 0.9}, "pipe.set_adapters"),
            ({"adapter": "lora", "rank": 0}, "--rank must be"),
            ({"adapter": "dora"}, "invalid choice"),
        ],
    )
    def test_flags_that_contradict(self, refused: Any, flags: dict[str, Any], words: str) -> None:
        refused(words, **flags)

    def test_a_mask_file(self, refused: Any, run: Path) -> None:
        refused("a mask file says single weights", adapter="lora", mask=run / "mask.safetensors")

    def test_a_model_that_loads_no_lora(self, tiny_ddpm: Path, refused: Any) -> None:
        refused(
            "--adapter lora needs a pipeline whose class loads LoRA", "ClassConditionalDDPMPipeline", adapter="lora",
            pretrained_model_name_or_path=tiny_ddpm, concept="cat", forget_prompt=None, anchor_prompt=None,
            retain_prompts=None,
        )  # fmt: skip

    def test_no_layer_is_left(self, stopped: Any, tmp_path: Path) -> None:
        stopped("leaves no linear layer or convolution", adapter="lora", train_method=r"norm\d\.weight",
                output_dir=tmp_path / "run")  # fmt: skip
        stopped("no layer is as small; raise it", adapter="lora", mask_ratio=0.0005, output_dir=tmp_path / "run2")
