"""Pipelines of the real architectures are erased, verified, and loaded by diffusers alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SMALL = {
    "UNETS": {
        "sd15": {"block_out_channels": (32, 64), "cross_attention_dim": 16, "attention_head_dim": 4,
                 "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                 "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "layers_per_block": 1},
        "sdxl": {"block_out_channels": (32, 64), "cross_attention_dim": 32, "attention_head_dim": (2, 4),
                 "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                 "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": (1, 2),
                 "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
                 "projection_class_embeddings_input_dim": 16 + 24, "layers_per_block": 1},
    },
    "VAE": {"block_out_channels": (4, 4, 8, 8), "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4, "latent_channels": 4, "norm_num_groups": 2, "sample_size": 64},
}  # fmt: skip
TEXT = {
    "vocab_size": 700, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 77, "projection_dim": 16,
}  # fmt: skip


@pytest.fixture
def small(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, with tiny networks."""
    program = script("real_size")
    for name, value in {**SMALL, "CLIP_L": TEXT, "CLIP_G": TEXT, "SIDE": 8}.items():
        monkeypatch.setattr(program, name, value)
    return program


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_the_way_through_it(small: ModuleType, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert small.main([kind, "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["receipt"]["outside_mask_identical"] is True and figures["kind"] == kind
    assert all(figures[name]["peak_gigabytes"] > 0.1 for name in ("erase", "verify", "load_and_draw"))
    assert "GB at most" in capsys.readouterr().out


def test_a_process_that_fails_is_told(small: ModuleType) -> None:
    with pytest.raises(Exception, match=r"ended with 3: the reason"):
        small.alone(["-c", "import sys; print('the reason'); sys.exit(3)"])


def test_sizes_are_those_of_the_published_networks(script: Callable[[str], ModuleType]) -> None:
    """Of Stable Diffusion 1.5 the U-Net has 859,520,964 weights, the VAE 83,653,863, the text encoder 123,060,480."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    program = script("real_size")
    with torch.device("meta"):
        parts = [
            UNet2DConditionModel(sample_size=program.SIDE, **program.UNETS["sd15"]), AutoencoderKL(**program.VAE),
            CLIPTextModel(CLIPTextConfig(**program.CLIP_L)),
            CLIPTextModelWithProjection(CLIPTextConfig(**program.CLIP_G)),
        ]  # fmt: skip
    counts = [sum(tensor.numel() for tensor in part.parameters()) for part in parts]
    assert counts == [859_520_964, 83_653_863, 123_060_480, 694_659_840]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_real_networks(script: Callable[[str], ModuleType], kind: str, tmp_path: Path) -> None:
    """At most 22 GB; on two cores it takes some minutes, and 15 GB of disk."""
    figures = script("real_size").measure(kind, tmp_path)
    assert figures["receipt"]["outside_mask_identical"] is True
    assert max(figures[name]["peak_gigabytes"] for name in ("erase", "verify", "load_and_draw")) <= 22
