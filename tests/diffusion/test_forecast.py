"""What `--dry_run` says a run would cost is what it costs."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from salun_diffusers.arguments import parse
from salun_diffusers.diffusion import forecast as forecasting
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.forecast import forecast
from salun_diffusers.diffusion.model_shape import ModelShape
from salun_diffusers.diffusion.probe import Probed
from salun_diffusers.diffusion.request import accept
from salun_diffusers.diffusion.row_forwards import row_forwards
from salun_diffusers.programs.erase import main


def lines_of(out: str) -> dict[str, str]:
    """The lines behind the settings, by their first word."""
    return {line.split()[0]: line for line in out.splitlines() if line and line[0].isalpha()}


def test_a_dry_run_tells_memory_and_work(
    small_run: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small_run(dry_run=True, vram=2)) == 0
    lines = lines_of(capsys.readouterr().out)
    assert re.search(r"memory +1\.0 GB of a GPU: drawing 0\.0, .* saliency 0\.0, fine-tuning 0\.0", lines["memory"])
    assert lines["vram"] == "vram      2 GB: fits with no further flag (1.0 GB)"
    assert "not known; --probe on" in lines["time"]
    assert "download" not in lines  # It is at hand.


def test_a_dry_run_with_a_probe_tells_the_time(
    small_run: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small_run(dry_run=True, probe="on")) == 0
    assert re.search(r"about \d+ s on this machine: pictures before ", lines_of(capsys.readouterr().out)["time"])


def test_the_time_is_that_of_the_rows(small_run: Callable[..., list[str]]) -> None:
    request = accept(parse(EraseConfig, small_run(recipe="paper")))
    rows = {stage.stage: stage.rows for stage in row_forwards(request.concept, request.settings, "DDIMScheduler")}
    told = lines_of(forecast(request, Probed(60.0, 600.0, "DDIMScheduler", {})))["time"]
    assert f"latent sets {rows['latent sets']} min" in told
    assert f"fine-tuning {rows['fine-tuning'] / 6:.1f} h" in told


def test_the_resolution_is_that_of_the_run(tiny_pipeline: Path) -> None:
    assert ModelShape.of(tiny_pipeline, 32).latent_shape == (4, 8, 8)
    assert ModelShape.of(tiny_pipeline, 32).denoiser_shapes() == ModelShape.of(tiny_pipeline).denoiser_shapes()


def test_a_hub_model_is_asked_for_its_size(
    small_run: Callable[..., list[str]], tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(accept(parse(EraseConfig, small_run())), disk=None)
    monkeypatch.setattr(forecasting, "is_local", lambda name: False)
    monkeypatch.setattr(forecasting, "fetch_configurations", lambda *_: None)
    for size, words in ((5_480_000_000, "5.5 GB"), (None, "does not tell"), (0, "nothing, all is in the cache")):
        monkeypatch.setattr(forecasting, "download_size", lambda *_, size=size, **__: size)
        assert words in lines_of(forecast(request, None))["download"]


def test_of_a_fetched_hub_model_all_is_known(sd14: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its disk was "known when the weights are there", which they were; the hub, not asked offline, need not tell."""
    words = ["--concept", "Van Gogh", "--dry_run", "--cache_dir", str(sd14.parents[2])]
    for variant, weights_are_there in (("fp16", True), ("bf16", False)):
        assert main([*words, "--variant", variant]) == 0
        lines = lines_of(capsys.readouterr().out)
        assert (" GB, in it 1 checkpoint" in lines["disk"]) is weights_are_there
        assert ("nothing, all is in the cache" in lines["download"]) is weights_are_there


def test_vram_without_dry_run_is_refused(refused: Callable[..., str]) -> None:
    refused("--vram says what a run may take, for --dry_run", vram=12)
