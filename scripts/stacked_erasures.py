"""Erase concepts one after the other, each from what the erasure before it left, and see where it breaks.

    python scripts/stacked_erasures.py --output_dir runs/stacked
    python scripts/stacked_erasures.py --output_dir runs/stacked --concepts star heart moon

Each erasure is `salun erase` into a folder of its own, number and name of the concept. The same command goes on where
it was stopped. Its table, curve.json and curve.md, has a row for each: what is left of the concept, the most that is
left of one erased before it, and how often what has not been erased is right.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from salun_diffusers.arguments import setting
from salun_diffusers.errors import UserError
from salun_diffusers.files.json_files import read_object
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.files.whole_files import write_json, write_text
from salun_diffusers.programs.erase import main as erase
from salun_diffusers.programs.program import Program

# Each becomes another shape; in this order that one has not been erased yet, except for the last.
ORDER = ("star", "heart", "moon", "flower", "ring", "arrow", "triangle", "cross", "circle", "square")


@dataclass(frozen=True)
class StackConfig:
    """What is erased, in which order."""

    output_dir: str = setting("runs/stacked", "Folder of the runs and of the table.")
    concepts: tuple[str, ...] = setting(ORDER, "Presets, in their order.")
    base: str = setting("demo", "Model that the first is erased from.")
    num_validation_images: int = setting(16, "Pictures per prompt of the reports.", minimum=1)
    seed: int = setting(0, "Seed of every run.", minimum=0, maximum=2**31 - 1)


@dataclass(frozen=True)
class StackRow:
    """One erasure of the stack, as rates in [0, 1].

    Args:
        erased: How many concepts are gone, should be.
        concept: The last of them.
        left: How often it is still found in pictures of its prompts.
        worst_earlier: The most that any concept erased before is found in pictures of its own; None for the first.
        right_before: Of prompts for what has not been erased, how many were right before this erasure.
        right: How many are right after it; None where nothing is left.
        verdict: Of the run.
    """

    erased: int
    concept: str
    left: float
    worst_earlier: float | None
    right_before: float | None
    right: float | None
    verdict: str


def row_of(report: dict[str, Any], erased: Sequence[str]) -> StackRow:
    """A run's row.

    Args:
        report: Its report.json.
        erased: All concepts erased so far, this one last.

    Raises:
        UserError: If nobody looked for the concept.
    """
    pairs = [*report["comparisons"]]
    own = next((pair["after"]["value"] for pair in pairs if pair["after"]["group"] == "concept"), None)
    if own is None:
        raise UserError(f"The report on {erased[-1]} has no rate of its concept: a detector is required.")
    before = [pair["after"]["value"] for pair in pairs if pair["after"]["group"] == "erased earlier"]
    kept = [
        pair
        for pair in pairs
        if pair["after"]["group"] == "retained, by prompt" and not set(pair["name"].split()) & set(erased)
    ]
    early, late = (
        sum(pair[side]["value"] for pair in kept) / len(kept) if kept else None for side in ("before", "after")
    )
    return StackRow(len(erased), erased[-1], own, max(before, default=None), early, late, report["verdict"])


def markdown(rows: Sequence[StackRow]) -> str:
    """The rows as a table, in percent."""

    def percent(rate: float | None) -> str:
        return "–" if rate is None else f"{100 * rate:.1f} %"

    lines = [
        "| erased | the last | left of it | most left of an earlier one | others right, before → after | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        rates = f"{percent(row.right_before)} → {percent(row.right)}"
        lines.append(
            f"| {row.erased} | {row.concept} | {percent(row.left)} | {percent(row.worst_earlier)} | {rates} | "
            f"{row.verdict} |"
        )
    return "\n".join(lines) + "\n"


def work(config: StackConfig, command: str) -> str:
    """Erase, one after the other."""
    root, base = Path(config.output_dir), config.base
    rows: list[StackRow] = []
    for number, name in enumerate(config.concepts, 1):
        run = RunFolder(root / f"{number:02d}-{name}")
        if not run.finished:
            words = ["--concept", name, "--pretrained_model_name_or_path", base, "--output_dir", str(run.root)]
            words += ["--num_validation_images", str(config.num_validation_images), "--seed", str(config.seed)]
            words += ["--strength_points", "0"]
            if run.root.is_dir():
                words += ["--resume_from_checkpoint", "latest"]
            if code := erase(words):
                raise UserError(f"The erasure of {name} in {run.root} ended with code {code}; see above.")
        rows.append(row_of(read_object(run.root / "report.json"), config.concepts[:number]))
        base = str(run.pipeline)
        write_json(root / "curve.json", {"rows": json.loads(json.dumps([asdict(row) for row in rows])), "by": command})
        write_text(root / "curve.md", markdown(rows))
    return markdown(rows)


main = Program("scripts/stacked_erasures.py", StackConfig, work, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
