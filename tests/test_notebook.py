"""docs/quickstart.ipynb: cells are Python, commands are commands, no output is kept, and it does what it says."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from salun_diffusers.__main__ import PROGRAMS
from salun_diffusers.arguments import parse

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs" / "quickstart.ipynb"
CELLS: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))["cells"]
NEEDS_WEIGHTS = "needs-weights"


def text_of(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def needs_weights(cell: dict[str, Any]) -> bool:
    return NEEDS_WEIGHTS in cell["metadata"].get("tags", [])


CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
PROSE = "\n".join(text_of(cell) for cell in CELLS if cell["cell_type"] == "markdown")
COMMANDS = [line for cell in CODE for line in re.findall(r'salun\("([^"]*)"\)', text_of(cell))]
COMMANDS += [line.removeprefix("salun ") for block in re.findall(r"```bash\n(.*?)```", PROSE, re.DOTALL)
             for line in block.splitlines()]  # fmt: skip


@pytest.mark.parametrize("cell", CODE, ids=lambda cell: cell["id"])
def test_cells_compile(cell: dict[str, Any]) -> None:
    compile(text_of(cell), cell["id"], "exec")


def test_no_output_is_kept() -> None:
    assert [cell["id"] for cell in CODE if cell["outputs"] or cell["execution_count"] is not None] == []
    assert FILE.stat().st_size < 40_000
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)


def test_what_needs_weights_says_so() -> None:
    assert len([cell for cell in CODE if needs_weights(cell)]) >= 4
    for cell in CODE:
        asks = re.search(r"stable-diffusion-v1-5|Van Gogh|van-gogh|cuda", text_of(cell)) is not None
        assert asks == needs_weights(cell) == text_of(cell).startswith("# Needs weights"), cell["id"]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_can_be_typed(line: str) -> None:
    words = shlex.split(line)
    name = next(name for name in (words[0], " ".join(words[:2])) if name in PROGRAMS)
    module = importlib.import_module(f"salun_diffusers.programs.{name.replace(' ', '_').replace('-', '_')}")
    parse(module.main.settings, words[len(name.split()) :])


def test_it_tells_the_ways_that_there_are() -> None:
    assert {line.split()[0] for line in COMMANDS} >= {"export", "patch", "studio"}
    assert "colab.research.google.com" in PROSE
    wheel = re.search(r"salun_diffusers-([\d.]+)-py3", PROSE)
    from salun_diffusers import __version__

    assert wheel is not None and wheel[1] == __version__


@pytest.mark.slow
def test_it_runs_from_the_first_cell_to_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel of its own, but for the cells that need weights."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(FILE, as_version=4)
    nbformat.validate(notebook)
    notebook.cells = [cell for cell in notebook.cells if not needs_weights(cell)]
    done = NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    told = "".join(output.get("text", "") for cell in done.cells for output in cell.get("outputs", []))
    assert "erased - " in told and "circle appears for its prompts: 100 % before, 0 % after" in told
    pictures = [output["data"]["image/png"] for cell in done.cells for output in cell.get("outputs", [])
                if "image/png" in output.get("data", {})]  # fmt: skip
    assert len(pictures) >= 6 and len(set(pictures)) >= 5
    assert (tmp_path / "without-circle" / "model_index.json").is_file()
    assert (tmp_path / "lora-circle" / "pytorch_lora_weights.safetensors").is_file()
