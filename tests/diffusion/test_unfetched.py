"""Of a model on the hub everything else is known to be good before its weights are fetched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import diffusers
import huggingface_hub
import pytest

from salun_diffusers.programs.erase import main

HUB_ID = "someone/some-model"


@pytest.fixture
def fetched(monkeypatch, tmp_path_factory, tiny_pipeline) -> list[str]:
    """What was asked of a hub that has one model: its index, then its weights."""
    asked: list[str] = []
    index = tmp_path_factory.mktemp("hub")
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        (index / name).parent.mkdir(exist_ok=True)
        (index / name).write_text((tiny_pipeline / name).read_text())

    def file(repository: str, name: str, **_: object) -> str:
        assert repository == HUB_ID
        asked.append(name)
        return str(index / name)

    def everything(repository: str, **_: object) -> str:
        asked.append("weights")
        return str(tiny_pipeline)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", file)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", everything)
    return asked


@pytest.fixture
def refused_unfetched(refused, fetched):
    """Refused in one line, and no weights were asked for."""

    def attempt(*words: str, **flags: object) -> None:
        refused(*words, pretrained_model_name_or_path=HUB_ID, **flags)
        assert "weights" not in fetched

    return attempt


def test_the_hub_is_asked_for_weights_last(fetched, small_run, tmp_path):
    assert main(small_run(pretrained_model_name_or_path=HUB_ID, output_dir=tmp_path / "run")) == 0
    assert fetched.pop() == "weights"
    assert "weights" not in fetched and all(name.endswith(".json") for name in fetched)


def test_words(refused_unfetched, fetched):
    refused_unfetched("--anchor_prompt", anchor_prompt=None)
    assert fetched[0] == "model_index.json"  # They might have named a class.


@pytest.mark.parametrize("name", ["a star", "hearts", "star"])
def test_shapes_of_the_embedded_model_are_words_there(fetched, small_run, tmp_path, name):
    """On the hub is no toy: they are neither presets nor what other words are mistyped for, and the run is planned."""
    flags = {"concept": name, "forget_prompt": None, "anchor_prompt": None, "retain_prompts": None}
    where = tmp_path / "run"
    assert main([*small_run(**flags, pretrained_model_name_or_path=HUB_ID, output_dir=where), "--dry_run"]) == 0
    assert "weights" not in fetched


def test_a_pipeline_that_no_family_knows(refused_unfetched, monkeypatch, tmp_path):
    index = json.loads(Path(huggingface_hub.hf_hub_download(HUB_ID, "model_index.json")).read_text())
    other = tmp_path.parent / f"{tmp_path.name}-index"
    other.mkdir()
    (other / "model_index.json").write_text(json.dumps({**index, "_class_name": "KolorsPipeline"}))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(other / "model_index.json"))
    refused_unfetched("KolorsPipeline")


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "WORLD_SIZE": "2"}, "FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, "DeepSpeed"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "DeepSpeed"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "fp8"),
    ],
    ids=["fsdp1", "zero2", "zero3", "fp8"],
)
def test_an_engine_that_cannot_work(refused_unfetched, monkeypatch, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    refused_unfetched(words)


def test_a_tracker_that_is_not_installed(refused_unfetched, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    refused_unfetched("pip install wandb", report_to="wandb")


def test_a_detector_that_is_not_installed(refused_unfetched, monkeypatch):
    monkeypatch.setitem(sys.modules, "nudenet", None)
    refused_unfetched("needs NudeNet", "pip install", concept="nudity", retain_prompts=None)


def test_a_detector_that_cannot_be_loaded(refused_unfetched, monkeypatch):
    """The package is there, but what it needs is not."""
    monkeypatch.setattr("salun_diffusers.evaluation.nudity.version", lambda name: "1.0")
    refused_unfetched("installed is 1.0", concept="nudity", retain_prompts=None)


@pytest.mark.parametrize(("rank", "shown"), [(None, True), ("0", True), ("1", False)])
def test_the_hubs_own_bars_are_shown_by_one_process(rank, shown):
    code = (
        "from salun_diffusers.programs.program import quieten_libraries\n"
        "quieten_libraries()\n"
        "from huggingface_hub.utils import are_progress_bars_disabled\n"
        "print(not are_progress_bars_disabled())\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "HF_HUB_DISABLE_PROGRESS_BARS")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)} | ({"LOCAL_RANK": rank} if rank else {})
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == str(shown)
