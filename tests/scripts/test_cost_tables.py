"""The page of costs and the README say what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).parents[2] / "docs" / "costs.md"


def test_the_tables_of_the_pages_are_those_of_the_results(script: Callable[[str], ModuleType]) -> None:
    pages = [page.read_text(encoding="utf-8") for page in (PAGE, PAGE.parents[1] / "README.md")]
    tables = script("cost_tables")
    assert [tables.with_tables(page) for page in pages] == pages
    assert all(f"<!-- {name} -->" in "".join(pages) for name in tables.TABLES)


def test_every_bar_is_met(script: Callable[[str], ModuleType]) -> None:
    figures = json.loads((PAGE.parent / "results" / "memory.json").read_text(encoding="utf-8"))
    assert script("benchmark_memory").bars(figures) == []
    assert sum(row["bar_gb"] is not None for row in figures["scenarios"]) == 4
    figures["scenarios"][1]["most_gb"] = 16.5
    assert script("benchmark_memory").bars(figures) == ["bf16, ratio 0.5"]
    for found in figures["validation"].values():
        assert abs(found["account"] / found["allocator"] - 1) < 0.02


def test_a_page_is_written_anew(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    page = tmp_path / "costs.md"
    page.write_text("Before.\n<!-- step -->\nold\n<!-- end of step -->\nAfter.\n")
    assert script("cost_tables").main(["--page", str(page)]) == 0
    said = page.read_text()
    assert said.startswith("Before.\n<!-- step -->\n`python scripts/benchmark.py step") and said.endswith("After.\n")
    assert "old" not in said and "| official sequence, fp32 |" in said
