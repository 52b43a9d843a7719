"""`salun export lora`: of a run, of two folders, of a run's own LoRA; and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from salun_diffusers.adapters.difference import lora_between
from salun_diffusers.adapters.lora_folder import WEIGHTS, read_lora, write_lora
from salun_diffusers.adapters.lora_names import peft_tensors
from salun_diffusers.adapters.low_rank import Factors, LowRank
from salun_diffusers.programs.erase import main as erase
from salun_diffusers.programs.export_lora import main
from salun_diffusers.programs.export_sparse import main as sparse

Attempt = Callable[..., str]


@pytest.fixture(scope="module")
def run(small_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, whose detector knows other pictures but says something of these."""
    folder = tmp_path_factory.mktemp("export") / "run"
    looked = {"detector": "demo", "detector_labels": "shape:circle", "num_validation_images": 1}
    assert erase(small_run(output_dir=folder, max_train_steps=1, **looked)) == 0
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Attempt:
    def attempt(*words: object) -> str:
        assert main(list(map(str, words))) == 2
        told = capsys.readouterr()
        lines = [line for line in told.err.splitlines() if line and not line.startswith("low rank")]
        assert told.out == "" and len(lines) == 1 and lines[0].startswith("error: "), told.err
        return lines[0]

    return attempt


def test_of_a_run(run: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert main([str(run), str(tmp_path / "lora"), "--rank", "4"]) == 0
    told = capsys.readouterr().out
    record = json.loads((tmp_path / "lora" / "lora.json").read_text())
    wanted, lacks = lora_between(tiny_pipeline, run / "pipeline", 4, show=False)
    found = read_lora(tmp_path / "lora")
    assert all(torch.equal(found[name].up, one.up) for name, one in wanted.items()) and len(found) == len(wanted)
    assert record["error"] == lacks.error and record["left_out"] == list(lacks.left_out)
    assert [row["error"] for row in record["layers"]] == [row.error for row in lacks.layers]
    assert f"lacks {lacks.error:.2%} of the squared change" in told
    # The run's own figures, and those with the LoRA.
    report = json.loads((run / "report.json").read_text())
    pairs = {pair["after"]["name"]: pair for pair in report["comparisons"]}
    assert {row["name"] for row in record["rates"]} == set(pairs)
    for row in record["rates"]:
        assert (row["base"], row["erased"]) == tuple(pairs[row["name"]][side]["value"] for side in ("before", "after"))
        assert row["name"] in told
    drift = {one["name"]: one["value"] for one in report["measurements"]}
    assert {row["name"]: row["erased"] for row in record["drift"]} == drift
    assert any(0 < row["lora"] != row["erased"] for row in record["drift"])
    assert kept == {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def test_of_two_folders_for_webui(run: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
    words = [str(run / "pipeline"), str(tmp_path / "circle"), "--base", str(tiny_pipeline), "--format", "kohya"]
    assert main([*words, "--save_dtype", "float16"]) == 0
    tensors = load_file(tmp_path / "circle" / "circle.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(name.startswith("lora_unet_") for name in tensors)
    record = json.loads((tmp_path / "circle" / "lora.json").read_text())
    assert record["layout"] == "kohya" and "rates" not in record and record["rank"] == 16


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run with --adapter lora leaves, as far as it is read."""
    root = tmp_path_factory.mktemp("adapted") / "run"
    lora = LowRank({"conv_in": Factors(torch.ones(2, 4, 3, 3), torch.ones(8, 2, 1, 1) / 3)})
    write_lora(root / "adapter", lora, {"made": "trained", "concept": "disc"})
    (root / "run.json").write_text("{}")
    (root / "config.json").write_text("{}")
    return root


def test_of_a_lora(adapted: Path, tmp_path: Path) -> None:
    assert main([str(adapted), str(tmp_path / "again")]) == 0
    mine, theirs = (peft_tensors(read_lora(folder)) for folder in (adapted / "adapter", tmp_path / "again"))
    assert all(torch.equal(mine[name], theirs[name]) for name in (*mine, *theirs))
    assert main([str(adapted), str(tmp_path / "disc"), "--format", "kohya"]) == 0
    record = json.loads((tmp_path / "disc" / "lora.json").read_text())
    assert (record["layout"], record["made"], record["concept"]) == ("kohya", "trained", "disc")


class TestRefused:
    def test_a_rank_for_a_lora(self, refused: Attempt, adapted: Path, tmp_path: Path) -> None:
        assert "leave --rank out" in refused(adapted, tmp_path / "lora", "--rank", 4)

    def test_a_lora_that_is_cut_off(self, refused: Attempt, adapted: Path, tmp_path: Path) -> None:
        root = Path(shutil.copytree(adapted, tmp_path / "run"))
        file = root / "adapter" / WEIGHTS
        file.write_bytes(file.read_bytes()[:-5])
        assert "truncated or damaged" in refused(root, tmp_path / "lora")

    def test_a_folder_without_its_base(self, refused: Attempt, run: Path, tmp_path: Path) -> None:
        assert "--base is required" in refused(run / "pipeline", tmp_path / "lora")

    def test_a_base_that_was_named_from_elsewhere(self, refused: Attempt, run: Path, tmp_path: Path) -> None:
        """The record has the word that was typed: a relative one means nothing after `cd`."""
        shutil.copytree(run, tmp_path / "run")
        record = json.loads((tmp_path / "run" / "config.json").read_text())
        record["pretrained_model_name_or_path"] = "bases/mine/sd"
        (tmp_path / "run" / "config.json").write_text(json.dumps(record))
        told = refused(tmp_path / "run", tmp_path / "lora")
        assert f"the base that {tmp_path / 'run'} names (another place of it: --base) cannot be used" in told

    def test_a_run_without_a_result(self, refused: Attempt, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "run.json").write_text("{}")
        assert "is a run without a result" in refused(tmp_path / "run", tmp_path / "lora")

    def test_a_record_that_is_damaged(self, refused: Attempt, run: Path, tmp_path: Path) -> None:
        root = Path(shutil.copytree(run, tmp_path / "run"))
        (root / "config.json").write_text('{"pretrained')
        assert "config.json" in refused(root, tmp_path / "lora")

    def test_another_base(self, refused: Attempt, run: Path, tiny_ddpm: Path, tmp_path: Path) -> None:
        assert "whose class loads LoRA" in refused(run, tmp_path / "lora", "--base", tiny_ddpm)
        assert "the base of an erasure is required" in refused(run, tmp_path / "lora", "--base", "demo")

    @pytest.mark.parametrize("program", [main, sparse])
    def test_another_base_of_the_same_shape(
        self, run: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], program: Any
    ) -> None:
        """What two bases differ in is no erasure."""
        other = tmp_path / "other"
        shutil.copytree(tiny_pipeline, other)
        file = other / "unet" / "diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        save_file({name: tensor + 0.01 for name, tensor in weights.items()}, file, {"format": "pt"})
        assert program([str(run), str(tmp_path / "out"), "--base", str(other)]) == 2
        told = capsys.readouterr().err
        assert f"The base that {run} was made of is required; {other} is another" in told
        assert not (tmp_path / "out").exists() and told.count("\n") == 1

    def test_no_folder(self, refused: Attempt, tiny_pipeline: Path, tmp_path: Path) -> None:
        assert "no folder" in refused(tmp_path / "none", tmp_path / "lora", "--base", tiny_pipeline)
        assert "not a diffusers pipeline" in refused(tmp_path, tmp_path / "lora", "--base", tiny_pipeline)

    def test_nothing_to_export(self, refused: Attempt, tiny_pipeline: Path, tmp_path: Path) -> None:
        assert "no weight differs" in refused(tiny_pipeline, tmp_path / "lora", "--base", tiny_pipeline)

    def test_an_output_in_use(self, refused: Attempt, run: Path, tiny_pipeline: Path, tmp_path: Path) -> None:
        (tmp_path / "lora").mkdir()
        (tmp_path / "lora" / "mine").touch()
        assert "nothing is overwritten" in refused(run, tmp_path / "lora")
        assert "outside of the base's components" in refused(run, tiny_pipeline / "unet" / "lora")

    def test_weights_that_are_cut_off(self, refused: Attempt, run: Path, tmp_path: Path) -> None:
        root = Path(shutil.copytree(run, tmp_path / "run"))
        file = next((root / "pipeline" / "unet").glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:-7])
        assert "truncated or damaged" in refused(root, tmp_path / "lora", "--rates", "off")
        assert not (tmp_path / "lora").exists()


def test_rates_that_cannot_be_had_are_no_reason_to_stop(
    run: Path, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's prompts are gone."""
    root = Path(shutil.copytree(run, tmp_path / "run"))
    record = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps(record | {"retain_prompts": str(tmp_path / "gone.txt")}))
    assert main([str(root), str(tmp_path / "lora")]) == 0
    assert "rates were not measured" in capsys.readouterr().err
    assert "rates" not in json.loads((tmp_path / "lora" / "lora.json").read_text())
