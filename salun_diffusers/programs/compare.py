"""Put several runs side by side: one table, one page.

    salun compare ours=runs/evaluation esd=runs/evaluation-esd

Each REPORT is report.json of an erasure, what an evaluate_… program, `salun attack` or `salun probe` wrote, or a folder
with several of them; numbers before erasing become a column of their own. Measurements of one name must have been made
by one protocol.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from salun_diffusers.arguments import setting, word
from salun_diffusers.evaluation.comparison import compare_runs, read_runs
from salun_diffusers.evaluation.record import writable_folder
from salun_diffusers.files.output_places import require_writable
from salun_diffusers.files.whole_files import full_disk_is_told, write_text
from salun_diffusers.programs.program import Program

_RETAINED = (
    "retained",
    "retained across",
    "retained, at equal seed",
    "retained, against another seed",
    "fidelity",
    "alignment",
    "drift",
)


@dataclass(frozen=True)
class CompareConfig:
    """Settings of the comparison."""

    reports: tuple[str, ...] = word("Reports as path or name=path.")
    forget_axis: str | None = setting(None, "Measurement of the horizontal axis; by default the concept's first.")
    retain_axis: str | None = setting(
        None,
        "Measurement of the vertical axis; by default what is retained, else fidelity.",
    )
    num_prompts: int = setting(8, "Prompts in the grid at most.", minimum=0)
    pictures_from: tuple[str, ...] = setting(
        (), "Folders whose pictures may be shown, beside those below the working folder or beside a report."
    )
    output_dir: str = setting("runs/comparison", "Where comparison.html and comparison.json go.")


def work(config: CompareConfig, command: str) -> str:
    """Compare and write."""
    require_writable(config.output_dir, "--output_dir")
    table = compare_runs(read_runs(config.reports, config.pictures_from))
    axes = (
        table.axis(("concept",), config.forget_axis),
        table.axis(_RETAINED, config.retain_axis),
    )
    folder = writable_folder(config.output_dir)
    from salun_diffusers.evaluation.comparison_page import comparison_page, same_seed_grid

    page = comparison_page(table, axes, same_seed_grid(table.runs, prompts=config.num_prompts), command)
    numbers = {run.name: [item.to_json() for item in run.measured.values()] for run in table.runs}
    content = {"format": "salun_diffusers comparison, version 1", "command": command, "runs": numbers}
    with full_disk_is_told(f"a file of {folder}"):
        write_text(folder / "comparison.html", page)
        write_text(folder / "comparison.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return f"{table.markdown()}\nreport    {folder / 'comparison.html'}\n"


main = Program("compare", CompareConfig, work, __doc__ or "")
