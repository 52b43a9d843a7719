"""Erase every concept of the demo model, by several recipes, masks and seeds, and print one table.

    python scripts/benchmark_erasure.py --output_dir runs/benchmark

Each cell is one run of the main program, in this process; its report stays in `--output_dir`, and finished cells are
not run again, so the same command goes on where it stopped. The table pools the seeds of a row: UA is the share of
pictures for the concept's prompts in which the detector does not find it, RA the accuracy on everything else.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from salun_diffusers.arguments import parse, setting
from salun_diffusers.demo.vocabulary import SHAPES, STYLES
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.erase import run_erasure
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.measurement import wilson_interval


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of the benchmark."""

    model: str = setting("demo", "Base model.")
    concepts: tuple[str, ...] = setting((*SHAPES, *STYLES), "Concepts to erase, one run each.")
    recipes: tuple[str, ...] = setting(("frozen_teacher", "paper"), "Recipes to compare.")
    masks: tuple[str, ...] = setting(("saliency",), "Masks to compare: saliency, random, full.")
    seeds: tuple[str, ...] = setting(("0", "1", "2"), "Seeds.")
    num_validation_images: int = setting(14, "Pictures per prompt and seed.", minimum=1)
    output_dir: str = setting("runs/benchmark", "Where reports and table.md go.")


@dataclass(frozen=True)
class Cell:
    """One run."""

    concept: str
    recipe: str
    mask: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.concept}-{self.recipe}-{self.mask}-{self.seed}"


def cells(config: BenchmarkConfig) -> Iterator[Cell]:
    """All runs, seeds outermost: a table of fewer seeds is there early."""
    for seed in config.seeds:
        for concept in config.concepts:
            for mask in config.masks:
                for recipe in config.recipes:
                    yield Cell(concept, recipe, mask, int(seed))


def run_cell(cell: Cell, config: BenchmarkConfig, output: Path) -> None:
    """Run one cell and keep its report."""
    folder = output / f"{cell.name}.run"
    shutil.rmtree(folder, ignore_errors=True)
    run, _ = run_erasure(
        EraseConfig(
            concept=cell.concept,
            pretrained_model_name_or_path=config.model,
            recipe=cell.recipe,  # type: ignore[arg-type]
            mask=cell.mask,
            seed=cell.seed,
            num_validation_images=config.num_validation_images,
            output_dir=str(folder),
        )
    )
    (run.root / "report.json").replace(output / f"{cell.name}.json")
    (run.root / "report.html").replace(output / f"{cell.name}.html")
    shutil.rmtree(folder)
    gc.collect()


def summary(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Pool the seeds of one row."""
    shown = right_before = right_after = asked = kept = 0
    changes: dict[str, list[float]] = defaultdict(list)
    for report in reports:
        for pair in report["comparisons"]:
            before, after = pair["before"], pair["after"]
            if after["group"] == "concept":
                shown += round(after["value"] * after["n"])
                asked += after["n"]
            elif after["group"] == "retained":
                right_before += round(before["value"] * before["n"])
                right_after += round(after["value"] * after["n"])
                kept += after["n"]
            elif after["group"] == "retained, by prompt":
                changes[pair["name"]].append(after["value"] - before["value"])
    worst = min(changes, key=lambda name: float(np.mean(changes[name])))
    seconds = [report["timings"]["saliency and mask"] + report["timings"]["fine-tuning"] for report in reports]
    low, high = wilson_interval(asked - shown, asked)
    drifts = [item["value"] for report in reports for item in report["measurements"] if item["group"] == "drift"]
    return {
        "seeds": len(reports),
        "n": asked + kept,
        "ua": 1 - shown / asked,
        "ua_low": low,
        "ua_high": high,
        "ra_before": right_before / kept,
        "ra_after": right_after / kept,
        "worst": worst,
        "worst_change": float(np.mean(changes[worst])),
        "drift": float(np.mean(drifts)),
        "seconds": float(np.mean(seconds)),
    }


def table(config: BenchmarkConfig, output: Path) -> str:
    """Markdown table of all finished cells."""
    lines = [
        "| concept | recipe | mask | seeds (n) | UA [95 %] | RA before → after | worst of the others | drift "
        "| saliency + tuning |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    rows: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for cell in cells(config):
        path = output / f"{cell.name}.json"
        if path.exists():
            rows[cell.concept, cell.mask, cell.recipe].append(json.loads(path.read_text()))
    for concept in config.concepts:
        for (name, mask, recipe), reports in rows.items():
            if name != concept:
                continue
            row = summary(reports)
            lines.append(
                f"| {name} | {recipe} | {mask} | {row['seeds']} ({row['n']}) "
                f"| {row['ua']:.3f} [{row['ua_low']:.3f}, {row['ua_high']:.3f}] "
                f"| {row['ra_before']:.3f} → {row['ra_after']:.3f} | {row['worst']} {row['worst_change']:+.3f} "
                f"| {row['drift']:.4f} | {row['seconds']:.0f} s |"
            )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the missing cells, then print the table."""
    try:
        config = parse(BenchmarkConfig, description=__doc__ or "")
        output = Path(config.output_dir)
        output.mkdir(parents=True, exist_ok=True)
        todo = [cell for cell in cells(config) if not (output / f"{cell.name}.json").exists()]
        for number, cell in enumerate(todo, 1):
            started = time.perf_counter()
            run_cell(cell, config, output)
            sys.stderr.write(f"[{number}/{len(todo)}] {cell.name}: {time.perf_counter() - started:.0f} s\n")
            (output / "table.md").write_text(table(config, output), encoding="utf-8")
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: finished cells are kept; the same command goes on from there.\n")
        return 130
    print(table(config, output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
