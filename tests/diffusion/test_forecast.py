"""What `--dry_run` says a run would cost is what it costs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from salun_diffusers.arguments import parse
from salun_diffusers.diffusion import forecast as forecasting
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.forecast import Passes, forecast
from salun_diffusers.diffusion.probe import Probed
from salun_diffusers.diffusion.request import accept
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
    assert "in 4 steps" in lines["work"]
    assert "not known; --probe on" in lines["time"]
    assert "download" not in lines  # It is at hand.


def test_a_dry_run_with_a_probe_tells_the_time(
    small_run: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small_run(dry_run=True, probe="on")) == 0
    assert re.search(r"about \d+ s on this machine: drawing ", lines_of(capsys.readouterr().out)["time"])


@pytest.mark.parametrize("flags", [{}, {"recipe": "paper"}, {"mask": "random", "guidance_scale": 1}], ids=str)
def test_as_many_rows_go_through_the_denoiser_as_it_says(
    small_run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, object]
) -> None:
    rows = {True: 0, False: 0}
    plain = UNet2DConditionModel.forward

    def counted(self: UNet2DConditionModel, sample: torch.Tensor, *words: object, **named: object) -> object:
        rows[torch.is_grad_enabled()] += len(sample)
        return plain(self, sample, *words, **named)

    monkeypatch.setattr(UNet2DConditionModel, "forward", counted)
    words = small_run(output_dir=tmp_path / "run", **flags)
    request = accept(parse(EraseConfig, words))
    passes = Passes.of(request.concept, request.settings)
    assert main(words) == 0
    # The teacher of the paper's recipe is asked within a step.
    asked = passes.training // 2 if request.settings.recipe == "paper" else passes.targets
    assert rows == {True: passes.saliency + passes.training, False: passes.drawing + asked}


def test_the_time_is_that_of_the_rows(small_run: Callable[..., list[str]], tmp_path: Path) -> None:
    request = accept(parse(EraseConfig, small_run(recipe="paper")))
    passes = Passes.of(request.concept, request.settings)
    told = lines_of(forecast(request, Probed(row_seconds=60.0, step_seconds=600.0, peaks={})))["time"]
    assert f"drawing {passes.drawing / 60:.1f} h" in told and "fine-tuning 40 min" in told and "targets" not in told


def test_a_hub_model_is_asked_for_its_size(
    small_run: Callable[..., list[str]], tiny_pipeline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = accept(parse(EraseConfig, small_run()))
    monkeypatch.setattr(forecasting, "is_local", lambda name: False)
    monkeypatch.setattr(forecasting, "fetch_configurations", lambda *_: None)
    for size, words in ((5_480_000_000, "5.5 GB"), (None, "does not tell"), (0, "nothing, all is in the cache")):
        monkeypatch.setattr(forecasting, "download_size", lambda *_, size=size, **__: size)
        assert words in lines_of(forecast(request, None))["download"]


def test_vram_without_dry_run_is_refused(refused: Callable[..., str]) -> None:
    refused("--vram says what a run may take, for --dry_run", vram=12)
