"""The tables of docs/costs.md, made from docs/results/memory.json, step.json and end_to_end.json.

    python scripts/cost_tables.py

Tables in the page stand between lines with their names and are written anew.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salun_diffusers.arguments import setting
from salun_diffusers.programs.program import Program

DOCS = Path(__file__).parent.parent / "docs"


@dataclass(frozen=True)
class CostTablesConfig:
    """Settings of the tables."""

    page: str = setting(str(DOCS / "costs.md"), "The page to write them into.")


def memory_table(figures: dict[str, Any]) -> str:
    """Gigabytes of each scenario's stages."""
    lines = [
        "| what | flags of `salun erase` | drawing | saliency | fine-tuning | throughout | most | at most |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in figures["scenarios"]:
        stages = [max(row["account"]["drawing"], row["account"]["decoding"])]
        stages += [row["account"][name] for name in ("saliency", "training", "static")]
        cells = " | ".join(f"{size / 1e9:.1f}" for size in stages)
        bar = f"{row['bar_gb']:g}" if row["bar_gb"] else ""
        lines.append(f"| {row['name']} | `{row['flags'].strip()}` | {cells} | {row['most_gb']:.1f} | {bar} |")
    return "\n".join(lines)


def step_table(figures: dict[str, Any]) -> str:
    """Seconds of a step both ways, and the mask's part."""
    lines = ["| step | seconds | times as fast | mask, gather, scatter, optimizer |", "|---|--:|--:|--:|"]
    lines.append(f"| official sequence, fp32 | {figures['official']['seconds']:.2f} | 1 | |")
    for name, row in figures["ours"].items():
        lines.append(f"| {name} | {row['seconds']:.2f} | {row['times_faster']:.1f} | {row['mask_share']:.0%} |")
    return "\n".join(lines)


def variant_table(figures: dict[str, Any]) -> str:
    """Seconds of one pass forward and backward."""
    lines = ["| one pass over both halves, forward and backward | seconds |", "|---|--:|"]
    lines += [f"| {name} | {row['seconds']:.2f} |" for name, row in figures["variants"].items()]
    return "\n".join(lines)


def end_to_end_table(figures: dict[str, Any]) -> str:
    """Seconds of each stage of the demo."""
    lines = ["| stage | seconds |", "|---|--:|"]
    lines += [f"| {name} | {seconds:.1f} |" for name, seconds in figures["stages"].items()]
    return "\n".join([*lines, f"| all of it, with imports | {figures['seconds']:.1f} |"])


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "memory": ("memory.json", memory_table),
    "step": ("step.json", step_table),
    "variants": ("step.json", variant_table),
    "end-to-end": ("end_to_end.json", end_to_end_table),
}


def with_tables(page: str) -> str:
    """A page whose tables are those of the results."""
    for name, (file, table) in TABLES.items():
        figures = json.loads((DOCS / "results" / file).read_text(encoding="utf-8"))
        machine = f"{figures['machine']['cpus']} CPUs, {figures['machine']['threads']} threads, torch"
        said = f"`python scripts/benchmark.py {' '.join(figures['command'])}` ({machine} {figures['machine']['torch']})"
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        block = f"{begin}\n{said}:\n\n{table(figures)}\n{end}"
        page = re.sub(f"{begin}.*?{end}", lambda _, block=block: block, page, flags=re.DOTALL)
    return page


def work(config: CostTablesConfig, command: str) -> str:
    """Write the tables into the page."""
    page = Path(config.page)
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
    return f"{page}\n"


main = Program("scripts/cost_tables.py", CostTablesConfig, work, __doc__ or "", interrupted="nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
