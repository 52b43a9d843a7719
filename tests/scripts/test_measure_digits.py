"""The program that measures a digits model, on one that knows nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from tiny_models import build_ddpm


def test_counts_per_digit(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    """A judge that calls everything a 3 is right for all threes and nothing else: 2 of 2, 0 of 2, 2 of 20."""
    program = script("measure_digits_model")

    class Three:
        protocol = "always three"

        def __init__(self, folder: Path) -> None: ...

        def labels(self, pictures: list[Image.Image]) -> list[frozenset[str]]:
            return [frozenset({"digit:3"}) for _ in pictures]

    monkeypatch.setattr(program, "GroupDetector", Three)
    folder = build_ddpm(tmp_path / "model", names=tuple(map(str, range(10))))
    words = ["--pipeline", folder, "--num_images", 2, "--num_inference_steps", 1, "--output_dir", tmp_path / "out"]
    assert program.main([str(word) for word in words]) == 0
    rates = {
        item["name"]: (item["value"], item["n"]) for item in json.loads((tmp_path / "out/quality.json").read_text())
    }
    assert (rates["3"], rates["4"], rates["all"]) == ((1, 2), (0, 2), (0.1, 20))
    assert "2 x 3" in capsys.readouterr().out
    with Image.open(tmp_path / "out/samples.png") as sheet:
        assert sheet.size == (20 * 10, 10 * 10)
