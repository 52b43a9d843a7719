"""What a download would fetch is what diffusers reads, without what is there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from salun_diffusers.files.hub_size import download_size, fetch_configurations, weights_of

FILES = {
    "model_index.json": 1,
    "v1-5-pruned.safetensors": 7_700,
    "unet/config.json": 1,
    "unet/diffusion_pytorch_model.bin": 3_400,
    "unet/diffusion_pytorch_model.safetensors": 3_438,
    "unet/diffusion_pytorch_model.fp16.safetensors": 1_719,
    "unet/diffusion_pytorch_model.non_ema.safetensors": 3_438,
    "vae/diffusion_pytorch_model.safetensors": 335,
    "text_encoder/model-00001-of-00002.safetensors": 250,
    "text_encoder/model-00002-of-00002.safetensors": 242,
}


def test_the_weights_of_the_variant_or_else_the_plain_ones() -> None:
    parts = ["unet", "vae", "text_encoder", "tokenizer"]
    assert sum(FILES[name] for name in weights_of(FILES, parts, None)) == 3_438 + 335 + 250 + 242
    assert sum(FILES[name] for name in weights_of(FILES, parts, "fp16")) == 1_719 + 335 + 250 + 242


def test_what_is_in_the_cache_is_not_fetched(tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = [SimpleNamespace(rfilename=name, size=size) for name, size in FILES.items()]
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: SimpleNamespace(siblings=told))
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda _, name, **__: "there" if name.startswith("unet/") else None
    )
    about = {"revision": None, "variant": None, "cache_dir": None}
    assert download_size("a/b", tiny_pipeline, **about) == 335 + 250 + 242  # type: ignore[arg-type]

    def silent(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", silent)
    assert download_size("a/b", tiny_pipeline, **about) is None  # type: ignore[arg-type]


def test_configurations_are_fetched_where_they_are_missing(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(_: str, file: str, **__: object) -> None:
        asked.append(file)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    (copied / "vae" / "config.json").unlink()
    fetch_configurations("a/b", copied, None, None)
    assert asked == ["vae/config.json"]
