"""The table of artefacts: which runs it asks for, and where its figures come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def report(shown: float, right: float) -> dict[str, Any]:
    def side(group: str, value: float) -> dict[str, Any]:
        return {"group": group, "value": value, "n": 10}

    return {
        "comparisons": [
            {"name": "shown", "before": side("concept", 1.0), "after": side("concept", shown)},
            {"name": "right", "before": side("retained", 1.0), "after": side("retained", right)},
            {"name": "across", "before": side("retained across", 1.0), "after": side("retained across", 0.9)},
        ],
        "measurements": [{"name": "drift", "group": "drift", "value": 0.05, "n": 10}],
        "timings": {"saliency and mask": 1.0, "fine-tuning": 1.0},
    }


@pytest.fixture
def table(script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The script, with runs that leave reports at once; `asked` has what they were asked for."""
    module = script("benchmark_adapters")
    module.asked = []

    def erase(words: list[str]) -> int:
        flags = {word: words[place + 1] for place, word in enumerate(words[:-1]) if word.startswith("--")}
        module.asked.append(flags)
        folder = Path(flags["--output_dir"])
        folder.mkdir(parents=True)
        if "--adapter" in words:
            (folder / "adapter").mkdir()
            (folder / "adapter" / "lora.json").write_text(json.dumps({"bytes": 10 * int(flags["--rank"])}))
        else:
            (folder / "pipeline" / "unet").mkdir(parents=True)
            (folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x" * 1000)
            (folder / "patch.safetensors").write_bytes(b"x" * int(1000 * float(flags["--mask_ratio"])))
        (folder / "report.json").write_text(json.dumps(report(0.1, 0.8)))
        return 0

    def export(words: list[str]) -> int:
        module.asked.append({"export": words[0], "--rank": words[3]})
        rates = [{"group": group, "lora": value} for group, value in (("concept", 0.3), ("retained", 0.7))]
        record = {"bytes": 99, "error": 0.25, "rates": rates, "drift": [{"group": "drift", "lora": 0.04}]}
        Path(words[1]).mkdir()
        (Path(words[1]) / "lora.json").write_text(json.dumps(record))
        return 0

    monkeypatch.setattr(module, "erase", erase)
    monkeypatch.setattr(module, "export", export)
    return module


def test_every_artefact_has_its_own_bytes_and_figures(
    table: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--output_dir", str(tmp_path / "runs"), "--json", str(tmp_path / "rows.json"), "--ranks", "4"]
    assert table.main(words) == 0
    told, asked = capsys.readouterr().out, len(table.asked)
    assert table.main(words) == 0 and len(table.asked) == asked == 4
    rows = {row["artefact"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert {name: (row["bytes"], round(row["ua"], 3), row["ra"], row["lacks"]) for name, row in rows.items()} == {
        "pipeline, ratio 0.5": (1000, 0.9, 0.8, 0.0),
        "patch, ratio 0.5": (500, 0.9, 0.8, 0.0),
        "LoRA 4 of the difference": (99, 0.7, 0.7, 0.25),
        "pipeline, ratio 0.1": (1000, 0.9, 0.8, 0.0),
        "patch, ratio 0.1": (100, 0.9, 0.8, 0.0),
        "LoRA 4": (40, 0.9, 0.8, None),
    }
    assert "| LoRA 4 of the difference | 99 | 0.700 | 0.700 | – | 0.0400 | 25.0% |" in told
    of = [words["export"] for words in table.asked if "export" in words]
    assert of == [str(tmp_path / "runs" / "circle-0" / "ratio-0.5")]
