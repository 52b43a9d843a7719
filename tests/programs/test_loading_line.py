"""The line that loads the result, as the program prints it and the report shows it, is executed here as it is."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest
import torch
from tiny_models import build_pipeline

from salun_diffusers.programs.erase import main

pytestmark = pytest.mark.usefixtures("empty_folder")


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What an erasure prints after `load`."""
    assert main(words) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("load ")]
    return line.removeprefix("load").strip()


def executed(line: str) -> object:
    found: dict[str, object] = {}
    exec(line, found)
    found["pipe"].set_progress_bar_config(disable=True)
    return found["pipe"]


def declare(folder: Path, dtype: str) -> None:
    """Have a text encoder's configuration say its data type, as transformers saves it."""
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"torch_dtype": dtype, "dtype": dtype}))


class TestExecuted:
    @pytest.mark.parametrize("flags", [{}, {"variant": "fp16"}], ids=["plain", "fp16"])
    def test_on_a_snapshot_of_two_variants(self, sd14, small_run, capsys, tmp_path, flags):
        """Its text encoder's configuration says float16, whatever variant is loaded: the type is named then."""
        line = printed(small_run(pretrained_model_name_or_path=sd14, output_dir=tmp_path / "run", **flags), capsys)
        wanted = torch.float16 if flags else torch.float32
        assert ('variant="fp16"' in line) is bool(flags) and f"dtype={wanted}" in line
        pipe = executed(line)
        assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {wanted}
        if not flags:
            assert pipe("a star", num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)

    @pytest.mark.parametrize("save_dtype", ["base", "float16", "bfloat16"])
    def test_where_all_else_is_fp32(self, tiny_pipeline, small_run, capsys, tmp_path, save_dtype):
        """diffusers loads a half denoiser in fp32 by itself, so a plain call draws."""
        words = small_run(output_dir=tmp_path / "run", save_dtype=save_dtype, mask="random")
        line = printed(words, capsys)
        assert "torch" not in line and "variant" not in line
        assert executed(line)("a star", num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)

    def test_a_half_text_encoder_beside_a_denoiser_of_two_types(self, small_run, capsys, tmp_path):
        from safetensors.torch import load_file, save_file

        base = build_pipeline(tmp_path / "base")
        file = base / "unet" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        save_file({name: x.bfloat16() if "norm" in name else x.half() for name, x in tensors.items()}, file)
        declare(base, "float16")
        words = small_run(pretrained_model_name_or_path=base, output_dir=tmp_path / "run", mask="random")
        line = printed(words, capsys)
        assert "dtype=torch.float32" in line
        assert executed(line)("a star", num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)

    def test_a_class_conditional_pipeline(self, tiny_ddpm, small_run, capsys, tmp_path):
        """diffusers' own class would run the code that the folder carries."""
        none = dict.fromkeys(("forget_prompt", "anchor_prompt", "retain_prompts"))
        words = small_run(
            concept="dog", pretrained_model_name_or_path=tiny_ddpm, output_dir=tmp_path / "run", mask="random", **none
        )
        pipe = executed(printed(words, capsys))
        assert pipe("cat", num_inference_steps=1, output_type="np").images.shape == (1, 8, 8, 1)

    def test_a_folder_whose_name_has_a_quote(self, small_run, capsys, tmp_path):
        line = printed(small_run(output_dir=tmp_path / 'a "run"', mask="random"), capsys)
        assert executed(line).unet.dtype == torch.float32


def test_report_shows_the_line(small_run, capsys, tmp_path):
    line = printed(small_run(output_dir=tmp_path / "run", mask="random"), capsys)
    assert f"<pre>{line}</pre>" in html.unescape((tmp_path / "run" / "report.html").read_text())
    assert json.loads((tmp_path / "run" / "report.json").read_text())["load"] == line


def test_nothing_is_promised_of_a_folder_that_is_gone(tiny_pipeline, retain_file):
    from salun_diffusers import EraseConfig, erase

    small = {"num_forget_images": 2, "num_retain_images": 2, "num_inference_steps": 1, "max_train_steps": 1,
             "num_validation_images": 1, "mask": "random"}  # fmt: skip
    result = erase(
        EraseConfig(
            concept="disc", forget_prompt=("a circle",), anchor_prompt=("a heart",), retain_prompts=str(retain_file),
            pretrained_model_name_or_path=str(tiny_pipeline), **small,
        )
    )  # fmt: skip
    assert result.report.load == ""
