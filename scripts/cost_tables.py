"""The tables of docs/costs.md and the README's, made from docs/results/.

    python scripts/cost_tables.py
    python scripts/cost_tables.py --page README.md

Tables in a page stand between lines with their names and are written anew.
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
_COMMON = "--mixed_precision bf16 --gradient_checkpointing --generation_batch_size 4"
_SHORT = {"bf16, ratio 0.5": "1.x", "micro-batches of 1, offload": "1.x", "XL, 8-bit Adam, ratio 0.1": "XL"}


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
        most = max(row["account"].values())
        cells = " | ".join(f"{size / 1e9:.1f}" for size in stages)
        bar = f"{row['bar_gb']:g}" if row["bar_gb"] else ""
        lines.append(f"| {row['name']} | `{row['flags'].strip()}` | {cells} | {most / 1e9:.1f} | {bar} |")
    return "\n".join(lines)


def short_table(figures: dict[str, Any]) -> str:
    """The most that three scenarios take; the flags that all of them have are left out."""
    lines = ["| Stable Diffusion | and with | GB at most |", "|---|---|--:|"]
    for row in figures["scenarios"]:
        if row["name"] in _SHORT:
            flags = row["flags"].replace(_COMMON, "").strip()
            told = f"`{flags}`" if flags else "no other flag"
            lines.append(f"| {_SHORT[row['name']]} | {told} | {row['most_gb']:.1f} |")
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
    lines += [f"| {name} | {row['seconds']:.3g} |" for name, row in figures["variants"].items()]
    return "\n".join(lines)


def end_to_end_table(figures: dict[str, Any]) -> str:
    """Seconds of each stage of the demo."""
    lines = ["| stage | seconds |", "|---|--:|"]
    lines += [f"| {name} | {seconds:.1f} |" for name, seconds in figures["stages"].items()]
    return "\n".join([*lines, f"| all of it, with imports | {figures['seconds']:.1f} |"])


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "memory": ("memory.json", memory_table),
    "readme": ("memory.json", short_table),
    "step-full": ("step_full.json", step_table),
    "step": ("step.json", step_table),
    "variants": ("step_full.json", variant_table),
    "gpu-step": ("gpu_step.json", step_table),
    "gpu-variants": ("gpu_step.json", variant_table),
    "end-to-end": ("end_to_end.json", end_to_end_table),
}


def with_tables(page: str) -> str:
    """A page whose tables are those of the results."""
    for name, (file, table) in TABLES.items():
        if f"<!-- {name} -->" not in page:
            continue
        figures = json.loads((DOCS / "results" / file).read_text(encoding="utf-8"))
        machine = f"{figures['machine']['cpus']} CPUs, {figures['machine']['threads']} threads, torch"
        if figures["machine"].get("gpu"):
            machine = f"{figures['machine']['gpu']}, torch"
        said = f"`python scripts/benchmark.py {' '.join(figures['command'])}` ({machine} {figures['machine']['torch']})"
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        heading = "" if name == "readme" else f"{said}:\n\n"
        block = f"{begin}\n{heading}{table(figures)}\n{end}"
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
