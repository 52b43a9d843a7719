"""Small real-format pipelines, built on the spot."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("ACCELERATE_USE_CPU", "true")
if os.environ.get("SALUN_TEST_DEVICE") != "cuda":
    os.environ["TRITON_INTERPRET"] = "1"  # Read where kernels are defined, once: these run on a CPU then.

import gc
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from fake_hub import FakeHub, serving
from PIL import Image
from tiny_models import CAPTIONS, build_ddpm, build_pipeline, build_sd14, build_sdxl_snapshot

from salun_diffusers.programs.erase import main


@pytest.fixture(scope="session", autouse=True)
def thawed_in_the_end() -> Iterator[None]:
    """What `quick_collections` froze is taken down with the process, as ever."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> None:
    """Leave what is there before a module to itself: accelerate collects garbage in every run, and looking through all
    that torch and transformers have loaded took a third of the time of tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_ddpm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained class-conditional DDPM."""
    return build_ddpm(tmp_path_factory.mktemp("models") / "ddpm")


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained pipeline, ε-prediction."""
    return build_pipeline(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def sd14(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot in the layout of Stable Diffusion 1.4, as the hub's cache holds it."""
    return build_sd14(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot in the layout of Stable Diffusion XL's base model, as the hub's cache holds it."""
    return build_sdxl_snapshot(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def retain_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of retain prompts."""
    path = tmp_path_factory.mktemp("prompts") / "retain.txt"
    path.write_text("a photo of a square\na star\n")
    return path


@pytest.fixture(scope="session")
def small_run(tiny_pipeline: Path, retain_file: Path) -> Callable[..., list[str]]:
    """The command line of a run that takes a second or two."""

    def command(**flags: object) -> list[str]:
        values: dict[str, object] = {
            "concept": "disc", "forget_prompt": "a photo of a circle", "anchor_prompt": "a photo of a heart",
            "retain_prompts": retain_file, "pretrained_model_name_or_path": tiny_pipeline, "num_forget_images": 6,
            "num_anchor_images": 0, "scheduler": "own",
            "num_retain_images": 5, "num_inference_steps": 2, "guidance_scale": 2, "generation_batch_size": 4,
            "saliency_batch_size": 4, "train_batch_size": 2, "max_train_steps": 4, "learning_rate": 1e-3,
            "num_validation_images": 2, "retain_weight": 1,
        }  # fmt: skip
        values |= flags
        words: list[str] = []
        for name, value in values.items():
            if value is not None:
                words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        return words

    return command


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """Default run folders would lie here."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(small_run, capsys, tmp_path):
    """Run, expect exit code 2 and one line on stderr that holds all of some words, and no run folder."""

    def attempt(*contents: str, left: tuple[str, ...] = (), **flags: object) -> str:
        before = {path.name for path in tmp_path.iterdir()}
        assert main(small_run(**flags)) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and captured.err.endswith("\n"), captured.err
        assert captured.err.count("\n") == 1, captured.err
        assert captured.out == ""
        for content in contents:
            assert content in captured.err
        assert {path.name for path in tmp_path.iterdir()} == before | set(left)
        return captured.err

    return attempt


@pytest.fixture
def stopped(small_run, capsys):
    """Run until something stops it late: exit code 2 and a last line on stderr that holds all of some words."""

    def attempt(*contents: str, code: int = 2, kind: str = "error", **flags: object) -> str:
        assert main(small_run(**flags)) == code
        lines = capsys.readouterr().err.splitlines()
        assert sum(line.startswith(f"{kind}: ") for line in lines) == 1
        assert lines[-1].startswith(f"{kind}: ")
        for content in contents:
            assert content in lines[-1]
        return lines[-1]

    return attempt


@pytest.fixture
def copied(tiny_pipeline, tmp_path):
    """A copy of the tiny pipeline, to be spoilt."""
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "copied"))


@pytest.fixture(scope="session")
def script() -> Callable[[str], ModuleType]:
    """A program of scripts/, imported by name."""

    def load(name: str) -> ModuleType:
        key = f"scripts_{name}"
        if key not in sys.modules:
            path = Path(__file__).parent.parent / "scripts" / f"{name}.py"
            spec = importlib.util.spec_from_file_location(key, path)
            assert spec is not None and spec.loader is not None
            sys.modules[key] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[key])
        return sys.modules[key]

    return load


@pytest.fixture(scope="session")
def noise_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder of pictures of coloured noise."""

    def make(count: int, *, size: int = 16, seed: int = 0, shift: int = 0) -> Path:
        folder = tmp_path_factory.mktemp("noise")
        rng = np.random.default_rng(seed)
        for number in range(count):
            pixels = rng.integers(0, 200, (size, size, 3)) + shift
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}_0.png")
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained CLIP of 32 x 32 pixels, as transformers saves it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from salun_diffusers.demo.architecture import tokenizer

    torch.manual_seed(0)
    tokens = tokenizer(CAPTIONS)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    text = {**small, **ids, "vocab_size": len(tokens), "max_position_embeddings": 16}
    vision = {**small, "image_size": 32, "patch_size": 16}
    folder = tmp_path_factory.mktemp("models") / "clip"
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    tokens.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    """A hub on 127.0.0.1 that the libraries of this process take for the one there is; nobody is logged in."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    forget_sessions = getattr(_http, "close_session", None) or _http.reset_sessions
    with serving() as running:
        for name, value in (("ENDPOINT", running.url), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True),
                            ("HF_TOKEN_PATH", str(tmp_path_factory.mktemp("home") / "token"))):  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        forget_sessions()
        yield running
    forget_sessions()  # Once more: a session keeps what it was made with.
