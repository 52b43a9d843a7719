"""The readers that `fuzz.py` tries: for each a good file, how it is read, and whether a hash covers its content."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from fuzz_community import erased_by_pipeline
from fuzz_pipeline import small_pipeline
from PIL import Image
from safetensors.torch import save_file

from salun_diffusers.adapters.eraser_lora import fit_lora, read_pairs
from salun_diffusers.adapters.fused import Fused
from salun_diffusers.adapters.lora_folder import WEIGHTS, read_lora, write_lora
from salun_diffusers.adapters.lora_names import peft_tensors
from salun_diffusers.adapters.low_rank import Factors, LowRank
from salun_diffusers.diffusion.concept_rows import read_concepts
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.families.tensor_names import check_tensors
from salun_diffusers.diffusion.foreseen import check_foreseen
from salun_diffusers.diffusion.latent_cache import kept_in
from salun_diffusers.diffusion.presets.known import find_concept
from salun_diffusers.diffusion.presets.written import read_own
from salun_diffusers.diffusion.settings import resolve
from salun_diffusers.diffusion.trainer import read_metrics
from salun_diffusers.evaluation.comparison import compare_runs, read_runs
from salun_diffusers.evaluation.comparison_page import comparison_page, same_seed_grid
from salun_diffusers.evaluation.feature_files import FeatureSet
from salun_diffusers.evaluation.image_folder import read_image_folder
from salun_diffusers.evaluation.manifest import Manifest, PictureRow, read_manifest
from salun_diffusers.evaluation.nudity import Box, boxes_to_json, read_boxes
from salun_diffusers.evaluation.prompt_files import read_prompt_file
from salun_diffusers.evaluation.record import EvaluationRecord, Table
from salun_diffusers.files.base_card import read_card
from salun_diffusers.files.checkpoint import load_state, save_state
from salun_diffusers.files.component_files import check_complete
from salun_diffusers.files.eraser_files import read_eraser_file
from salun_diffusers.files.eraser_fit import fit_weights
from salun_diffusers.files.eraser_folder import read_tensor
from salun_diffusers.files.pipeline_folder import model_index
from salun_diffusers.files.run_folder import RunFolder, check_output, identity_of
from salun_diffusers.files.run_source import RunSource
from salun_diffusers.files.single_file_export import write_changed_file, write_single_file
from salun_diffusers.masks.inclusion import Inclusion
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.mask_map import mask_map
from salun_diffusers.masks.mask_overlap import bases_of, method_of, overlaps
from salun_diffusers.masks.patch import WeightPatch
from salun_diffusers.masks.receipt import compare
from salun_diffusers.pictures.picture_sources import load_pictures
from salun_diffusers.red_team.attack import Case, Finding
from salun_diffusers.red_team.found_prompts import FoundPrompts
from salun_diffusers.reports.measurement import Comparison, Measurement
from salun_diffusers.reports.report import BlockRow, EvaluationReport, MaskSummary, ReceiptSummary
from salun_diffusers.studio.records import read_record

Kind = Literal["bytes", "json", "safetensors"]


@dataclass
class Reader:
    """One way in.

    Args:
        name: Of the reader, and of the folder of its good file.
        where: The file, below that folder.
        kind: What mutators suit it.
        read: Reads the folder; what it returns is compared.
        hashed: Whether other content than was written must never be returned.
        expected: What the good file gives.
    """

    name: str
    where: str
    kind: Kind
    read: Callable[[Path], Any]
    hashed: bool = False
    expected: Any = field(default=None, init=False)

    def file(self, folder: Path) -> Path:
        """The file in a copy of the folder."""
        return folder / self.where


_BASE = {"w": torch.arange(40.0).view(8, 5), "b": torch.ones(3)}
_ERASED = {"w": _BASE["w"].clone().index_fill_(0, torch.tensor([1, 4]), 7.0), "b": torch.ones(3)}
_CONCEPT = """name = "my mug"
kind = "object"
explicit = false
anchor = "a cup"
swaps = [["{opening} my mug", "{opening} a cup"]]
keep = ["a photo of a {thing}"]
[words]
opening = ["a photo of", "a drawing of"]
thing = ["plate", "jug"]
[numbers]
learning_rate = 2e-5
max_train_steps = 50
"""
_SETTINGS = resolve(EraseConfig(concept="circle"), find_concept(EraseConfig(concept="circle")).numbers)


def readers(folder: Path) -> list[Reader]:
    """All readers, with their good files below a folder."""
    found = [*_masks(), *_adapters(), *_runs(), *_evaluation(), *_pipelines()]
    for reader, make in found:
        home = folder / reader.name
        reader.file(home).parent.mkdir(parents=True)
        make(home)
        reader.expected = reader.read(home)
    return [reader for reader, _ in found]


Made = tuple[Reader, Callable[[Path], object]]


def _flat(tensors: Any) -> list[Any]:
    return [(name, tensor.dtype, tensor.tolist()) for name, tensor in sorted(tensors.items())]


def _masks() -> list[Made]:
    mask = SaliencyMask.random({"w": (8, 5), "b": (3,)}, 0.5, torch.Generator().manual_seed(0))

    def read_mask(home: Path) -> Any:
        read = SaliencyMask.load(home / "mask.safetensors")
        return read, dict(read.recipe), read.matched_to({"w": _BASE["w"], "b": _BASE["b"]}).density

    def looked_at(home: Path) -> Any:
        read = SaliencyMask.load(home / "mask.safetensors")
        return mask_map(read).cells, method_of(read.recipe), bases_of(read.recipe), overlaps(read, mask)["w"].both

    def read_inclusion(home: Path) -> Any:
        read = Inclusion.load(home / "inclusion.safetensors")
        return _flat(read), list(read), dict(read.recipe)

    def read_patch(home: Path) -> Any:
        patch = WeightPatch.load(home / "patch.safetensors")
        return _flat(patch.apply(_BASE)), _flat(patch.revert(_ERASED))

    def community_patch(home: Path) -> Any:
        return _flat(erased_by_pipeline(home / "patch.safetensors", _BASE))

    return [
        (
            Reader("community-patch", "patch.safetensors", "safetensors", community_patch, hashed=True),
            lambda home: WeightPatch.between(_BASE, _ERASED).save(home / "patch.safetensors"),
        ),
        (
            Reader("mask", "mask.safetensors", "safetensors", read_mask, hashed=True),
            lambda home: mask.save(home / "mask.safetensors"),
        ),
        (
            Reader("mask-tools", "mask.safetensors", "safetensors", looked_at, hashed=True),
            lambda home: (mask | ~mask).save(home / "mask.safetensors"),
        ),
        (
            Reader("inclusion", "inclusion.safetensors", "safetensors", read_inclusion, hashed=True),
            lambda home: Inclusion({"w": torch.rand(8, 5).half(), "b": torch.rand(3).half()}, {"ratio": 0.5}).save(
                home / "inclusion.safetensors"
            ),
        ),
        (
            Reader("patch", "patch.safetensors", "safetensors", read_patch, hashed=True),
            lambda home: WeightPatch.between(_BASE, _ERASED).save(home / "patch.safetensors"),
        ),
    ]


def _adapters() -> list[Made]:
    lora = LowRank({"w": Factors(torch.ones(2, 5), torch.ones(8, 2))})

    def read(home: Path) -> Any:
        fused = Fused({"w.weight": _BASE["w"]}, read_lora(home / "lora"))
        return _flat(peft_tensors(read_lora(home / "lora"))), [tuple(fused[name].shape) for name in fused]

    def eraser(home: Path) -> None:
        small_pipeline(home)
        save_file({"unet.conv_in.bias": torch.ones(4), "model.conv_out.bias": torch.zeros(4)}, home / "e.safetensors")

    def eraser_lora(home: Path) -> None:
        small_pipeline(home)
        halves = {"down": torch.ones(2, 4), "up": torch.ones(16, 2)}
        called = "lora_unet_time_embedding_linear_1"
        tensors = {f"{called}.lora_{half}.weight": tensor for half, tensor in halves.items()}
        save_file({**tensors, f"{called}.alpha": torch.tensor(1.0)}, home / "e.safetensors")

    def fitted(home: Path) -> Any:
        found = read_eraser_file(home / "e.safetensors")
        if found.kind == "lora":
            return [(part, _flat(peft_tensors(read_pairs(pairs)))) for part, pairs in fit_lora(found, home).items()]
        placed = fit_weights(found, home).items() if found.kind == "weights" else ()
        return [(part, _flat({name: read_tensor(one) for name, one in tensors.items()})) for part, tensors in placed]

    def run(home: Path) -> None:
        (home / "pipeline").mkdir()
        (home / "pipeline" / "model_index.json").write_text("{}")
        (home / "run.json").write_text("{}")
        (home / "config.json").write_text(json.dumps({"pretrained_model_name_or_path": "demo", "variant": None}))

    def source(home: Path) -> Any:
        found = RunSource.found(str(home))
        return found and [found.told(name) for name in ("pretrained_model_name_or_path", "variant")]

    return [
        (
            Reader("lora", f"lora/{WEIGHTS}", "safetensors", read),
            lambda home: write_lora(home / "lora", lora, {}),
        ),
        (Reader("run-source", "config.json", "json", source), run),
        (Reader("eraser-weights", "e.safetensors", "safetensors", fitted), eraser),
        (Reader("eraser-lora", "e.safetensors", "safetensors", fitted), eraser_lora),
    ]


def _runs() -> list[Made]:
    def checkpoint(home: Path) -> None:
        save_state(home / "checkpoint-2", _BASE, {"step": 2, "optimizer": {"lr": 0.5}, "fingerprint": "f"})

    def state(home: Path) -> Any:
        tensors, values = load_state(home / "checkpoint-2")
        return _flat(tensors), values

    def draw(prompts: Any, seeds: Any, **how: Any) -> torch.Tensor:
        return torch.full((len(prompts), 4, 2, 2), float(seeds[0]))

    def cached(home: Path) -> Any:
        [latent] = kept_in(home, draw, pipeline="p")(["a star"], [3], num_inference_steps=2, guidance_scale=1.0)
        return latent.tolist()

    def mark(home: Path) -> None:
        (home / "mask.safetensors").write_bytes(b"mask")
        RunFolder(home).mark_done("mask", "one", home / "mask.safetensors")

    def marked(home: Path) -> bool:
        return RunFolder(home).stage_is_done("mask", "one")

    def warm(home: Path) -> None:
        cached(home)
        [file] = home.rglob("*.safetensors")
        (home / "latent").symlink_to(file.relative_to(home))

    metrics = "".join(json.dumps({"step": n, "loss": 0.5}) + "\n" for n in range(1, 4))
    return [
        (Reader("checkpoint-state", "checkpoint-2/state.json", "json", state, hashed=True), checkpoint),
        (Reader("checkpoint-tensors", "checkpoint-2/state.safetensors", "safetensors", state, hashed=True), checkpoint),
        (Reader("latent-cache", "latent", "safetensors", cached, hashed=True), warm),
        (Reader("stage-mark", "work/mask.json", "json", marked), mark),
        (
            Reader("run-record", "run.json", "json", lambda home: check_output(str(home), "latest", "i")),
            lambda home: RunFolder(home).write_json("run.json", {"format": "salun_diffusers.run", "identity": "i"}),
        ),
        (
            Reader("metrics", "metrics.jsonl", "bytes", lambda home: read_metrics(home / "metrics.jsonl")),
            lambda home: (home / "metrics.jsonl").write_text(metrics),
        ),
    ]  # fmt: skip


def _evaluation() -> list[Made]:
    rows = (PictureRow("0.png", "a star", 1, 7.5, 0, 0, "star"), PictureRow("1.png", "a cat", 2, 7.5, 1, 0, "cat"))

    def drawn(home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        for name in ("0.png", "1.png"):
            Image.new("RGB", (8, 8), "red").save(home / name)
        Manifest(rows, {"num_inference_steps": 5, "height": 8}, False, "by hand").save(home)

    def report(home: Path) -> None:
        rate = Measurement.rate("star appears", 1, 20, direction="lower", group="concept", protocol="by hand")
        made = EvaluationReport(
            concept="star",
            verdict="erased",
            verdict_reason="It is gone.",
            base="demo",
            recipe="paper",
            mask=MaskSummary(0.5, 20, (BlockRow("down", 40, 0.5, 0.25),)),
            receipt=ReceiptSummary(0, True, 0.25),
            created="2026-01-01T00:00:00+00:00",
            measurements=(rate,),
            comparisons=(Comparison("star appears", rate, rate),),
            series=({"step": 1, "loss": 0.5},),
        )
        (home / "report.json").write_text(json.dumps(made.to_json()))

    def record(home: Path) -> None:
        # Pictures of its own beside it, as the page will look for them.
        drawn(home / "after")
        rates = [Measurement.rate(name, 1, 20, direction="lower", protocol="by hand") for name in ("a star", "a cat")]
        made = EvaluationRecord(
            kind="objects",
            title="Forgetting star",
            pictures="after",
            before="before",
            measurements=(rates[0].of("without star: cat"),),
            comparisons=(Comparison("a cat", rates[1], rates[1]),),
            tables=(Table("What star became", ("shown", "pictures"), (("cat", 2),)),),
            sampling={"num_inference_steps": 5, "guidance": [7.5]},
            command="by hand",
            created="2026-01-01T00:00:00+00:00",
            environment={"python": "3"},
        )
        (home / "objects.json").write_text(json.dumps(made.to_json()))

    def compared(home: Path) -> Any:
        table = compare_runs(read_runs([f"one={home}", f"other={home}"]))
        return table.markdown(), comparison_page(table, (None, None), same_seed_grid(table.runs), "") != ""

    def settings(home: Path) -> None:
        prompts = {"forget": ["a star"], "retain": ["a cat", "a dog"], "concepts": ["star"]}
        told = {"concept": "star", "concept_prompts": prompts, "explicit_concept": False, "num_inference_steps": 5}
        RunFolder(home).write_json("config.json", {**told, "scheduler": "own"})

    def looked_at(home: Path) -> Any:
        found = read_record(RunFolder(home))
        shown = () if found.report is None else tuple(pair.change_text() for pair in found.report.comparisons)
        return found.name, found.prompts, found.explicit, found.number("num_inference_steps", 200), shown

    def labelled(home: Path) -> None:
        pixels = torch.arange(6 * 3 * 8 * 8, dtype=torch.int64).remainder(256).to(torch.uint8).view(6, 3, 8, 8)
        labels = torch.arange(6) % 2
        parts = {
            "train_pixels": pixels,
            "train_labels": labels,
            "test_pixels": pixels.clone(),
            "test_labels": labels.clone(),
        }
        save_file(parts, home / "data.safetensors")

    def read_labelled(home: Path) -> Any:
        train, test = load_pictures(str(home / "data.safetensors"))
        return train.pixels.sum().item(), None if test is None else test.labels.tolist()

    def features(home: Path) -> None:
        FeatureSet(torch.ones(4, 3), "protocol", "digest", "source").save(home / "features.safetensors")

    def read_features(home: Path) -> Any:
        read = FeatureSet.load(home / "features.safetensors")
        return read.values.tolist(), read.protocol

    csv = "case_number,prompt,evaluation_seed,evaluation_guidance,class\n3,a star,11,7,star\n5,a cat,12,2,cat\n"
    boxes = boxes_to_json([Box("FACE_FEMALE", 0.7, (1, 2, 3, 4))])
    return [
        (Reader("manifest", "manifest.json", "json", lambda home: read_manifest(home)), drawn),
        (Reader("picture-folder", "0.png", "bytes", lambda home: len(read_image_folder(home).files)), drawn),
        (
            Reader("prompts-csv", "p.csv", "bytes", lambda home: read_prompt_file(home / "p.csv").rows),
            lambda home: (home / "p.csv").write_text(csv),
        ),
        (
            Reader("prompts-text", "p.txt", "bytes", lambda home: read_prompt_file(home / "p.txt").rows),
            lambda home: (home / "p.txt").write_text("a star\na cat\n"),
        ),
        (
            Reader("concept-toml", "c.toml", "bytes", lambda home: read_own(home / "c.toml")),
            lambda home: (home / "c.toml").write_text(_CONCEPT),
        ),
        (
            Reader("concepts-csv", "c.csv", "bytes", lambda home: read_concepts(str(home / "c.csv"))),
            lambda home: (home / "c.csv").write_text("concept,anchor,kind\nVan Gogh,a painting,style\nstar,,\n"),
        ),
        (
            Reader("found-prompts", "f.csv", "bytes", lambda home: FoundPrompts.read(home / "f.csv")),
            lambda home: FoundPrompts.of(
                {"synonym": [Finding(True, 2, "a disc", (3, 4)), Finding(False, 3, "a hoop")]},
                [Case("a circle", 1), Case("a ring", 2)],
                "a1" * 32,
            ).write(home / "f.csv"),
        ),
        (Reader("features", "features.safetensors", "safetensors", read_features), features),
        (
            Reader("detections", "d.json", "json", lambda home: read_boxes(home / "d.json")),
            lambda home: (home / "d.json").write_text(json.dumps(boxes)),
        ),
        (Reader("labelled", "data.safetensors", "safetensors", read_labelled), labelled),
        (Reader("report", "report.json", "json", compared), report),
        (Reader("record", "objects.json", "json", compared), record),
        (Reader("studio-report", "report.json", "json", looked_at), report),
        (Reader("studio-settings", "config.json", "json", looked_at), settings),
    ]  # fmt: skip


def _pipelines() -> list[Made]:
    def mask_of(home: Path) -> SaliencyMask:
        return SaliencyMask.full(_unet_shapes(home / "base"))

    def two(home: Path) -> None:
        small_pipeline(home / "base")
        small_pipeline(home / "erased")

    def whole(home: Path) -> Any:
        check_complete(home)
        return model_index(home)

    def receipt(home: Path) -> Any:
        read = compare(home / "base", home / "erased", mask_of(home))
        return read.holds, read.moved if not read.holds else 0

    def tensors(home: Path) -> None:
        check_tensors(home, None)

    def foreseen(home: Path) -> None:
        check_foreseen(home / "unet", home / "scheduler", _SETTINGS, None)

    def small_checkpoint(home: Path) -> None:
        small_pipeline(home)
        (home / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
        save_file({"quant_conv.bias": torch.ones(4)}, home / "vae" / "diffusion_pytorch_model.safetensors")
        text = {"text_model.final_layer_norm.bias": torch.ones(4)}
        save_file(text, home / "text_encoder" / "model.safetensors")
        write_single_file(home, home / "base.safetensors", None)

    def exported(home: Path) -> Any:
        check_complete(home)
        count = write_single_file(home, home / "out.safetensors", None)
        return count, (home / "out.safetensors").read_bytes()

    def put_into_base(home: Path) -> Any:
        full = SaliencyMask.full(_unet_shapes(home))
        return write_changed_file(home, home / "out.safetensors", home / "base.safetensors", full)

    card = "---\nlicense: other\nlicense_name: a-name\nbase_model: [a/b, c/d]\ntags:\n- a\n---\n# A model\n"
    weights = "unet/diffusion_pytorch_model.safetensors"
    return [
        (Reader("export", weights, "safetensors", exported), small_checkpoint),
        (Reader("export-text", "text_encoder/model.safetensors", "safetensors", exported), small_checkpoint),
        (Reader("export-config", "unet/config.json", "json", exported), small_checkpoint),
        (Reader("export-base", "base.safetensors", "safetensors", put_into_base), small_checkpoint),
        (
            Reader("base-card", "README.md", "bytes", lambda home: read_card(home / "README.md")),
            lambda home: (home / "README.md").write_text(card),
        ),
        (Reader("model-index", "model_index.json", "json", whole), small_pipeline),
        (Reader("unet-config", "unet/config.json", "json", tensors), small_pipeline),
        (Reader("unet-weights", weights, "safetensors", tensors), small_pipeline),
        (Reader("scheduler", "scheduler/scheduler_config.json", "json", foreseen), small_pipeline),
        (Reader("receipt", f"erased/{weights}", "safetensors", receipt), two),
        (Reader("identity", "vae/config.json", "json", lambda home: identity_of(home)), small_pipeline),
    ]


def _unet_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    from salun_diffusers.files.whole_files import check_whole

    header = check_whole(folder / "unet" / "diffusion_pytorch_model.safetensors")
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
