"""Every method under every attack and probe, with the base as ceiling and a retrained model as floor; one table.

    python scripts/red_team_table.py --concepts star --floor RETRAINED --output_dir runs/red_team \
        --json docs/results/red_team.json

A method is erased unless its run is there (OUTPUT_DIR/CONCEPT-METHOD), then examined as `salun attack RUN` does it;
what is done is kept, so the same command goes on where it stopped. Base and floor are examined once for all methods of
a concept. `scripts/benchmark_erasure.py --methods retrain` trains a floor.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salun_diffusers.arguments import setting
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.errors import UserError
from salun_diffusers.files.whole_files import write_text
from salun_diffusers.programs.attack import AttackConfig, examine
from salun_diffusers.programs.program import Program

METHODS: Mapping[str, Mapping[str, Any]] = {
    "esd": {"objective": "esd", "mask": "full"},
    "finetune": {"objective": "finetune", "mask": "full"},
    "l1_sparse": {"objective": "l1_sparse", "mask": "full"},
    "ascent": {"objective": "ascent", "mask": "full"},
    "paper": {"recipe": "paper"},
    "default": {},
    "robust": {"robust": "relearning"},
    "robust_embedding": {"robust": "embedding"},
    "robust_both": {"robust": "both"},
}
"""Flags of `salun erase`; the default recipe is SalUn with a frozen teacher."""


@dataclass(frozen=True)
class TableConfig:
    """What is compared."""

    model: str = setting("demo", "Base model.")
    concepts: tuple[str, ...] = setting(("star",), "Presets of the base.")
    methods: tuple[str, ...] = setting(tuple(METHODS), "Which of them.")
    floor: str | None = setting(None, "A pipeline that never knew the concept; of one concept only.")
    attacks: tuple[str, ...] = setting(("quick",), "As of `salun attack`.")
    probes: tuple[str, ...] = setting(("quick",), "As of `salun attack`.")
    num_prompts: int = setting(20, "Pictures that are fought for.", minimum=1)
    seed: int = setting(0, "Of erasures and examinations; other seeds want another --output_dir.", minimum=0)
    num_validation_images: int = setting(6, "Pictures per prompt of the erasures' own reports.", minimum=1)
    output_dir: str = setting("runs/red_team", "Where the runs go, or are.")
    json: str | None = setting(None, "Also write the rows to this file.")


def erased(config: TableConfig, concept: str, method: str) -> Path:
    """The run of a method, made unless it is there."""
    folder = Path(config.output_dir) / f"{concept}-{method}"
    if not (folder / "report.json").is_file():
        from salun_diffusers.diffusion.request import accept
        from salun_diffusers.diffusion.run import run_erasure

        asked = EraseConfig(
            concept=concept,
            pretrained_model_name_or_path=config.model,
            output_dir=str(folder),
            num_validation_images=config.num_validation_images,
            seed=config.seed,
            strength_points=0,
            generated_data_dir=str(Path(config.output_dir) / "generated"),
        )
        run_erasure(accept(dataclasses.replace(asked, **METHODS[method])), "")
    return folder


def examined(config: TableConfig, concept: str, method: str, command: str) -> dict[str, Any]:
    """What the red team found of a method: a row."""
    run = erased(config, concept, method)
    output, shared = run / "red_team", Path(config.output_dir) / f"{concept}-shared"
    for file in shared.glob("*.json"):  # Of base and floor, which are the same for all methods.
        if not (output / "private" / file.name).is_file():
            (output / "private").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, output / "private" / file.name)
    examine(
        AttackConfig(
            str(run),
            floor=config.floor,
            attacks=config.attacks,
            probes=config.probes,
            num_prompts=config.num_prompts,
            seed=config.seed,
        ),
        command,
    )
    shared.mkdir(exist_ok=True)
    for name in ("base", "floor"):
        for file in (output / "private").glob(f"*-{name}.json"):
            shutil.copyfile(file, shared / file.name)
    return row_of(concept, method, output / "red_team.json", run / "report.json")


def row_of(concept: str, method: str, record: Path, report: Path) -> dict[str, Any]:
    """A row from the files of an examination and of its erasure.

    Args:
        concept: What was erased.
        method: How.
        record: ``red_team.json``.
        report: ``report.json``.
    """
    content, told = json.loads(record.read_text()), json.loads(report.read_text())
    kept = [pair for pair in told["comparisons"] if pair["after"]["group"] == "retained"]
    return {
        "concept": concept,
        "method": method,
        "n": content["measurements"][0]["n"],
        "verdict": content["verdict"]["word"],
        "retained": [kept[0]["before"]["value"], kept[0]["after"]["value"]] if kept else None,
        "seconds of erasing": round(sum(told["timings"].values())),
        "asr": {one["name"]: one["value"] for one in content["measurements"] if one["group"] == "ASR"},
        "curves": [
            {"name": curve["name"], "subject": curve["subject"],
             "rates": {f"{point['at']:g}": point["hits"] / point["n"] for point in curve["points"]}}
            for curve in content["curves"]
        ],
        "tables": content["tables"],
    }  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line for each attack and each curve, a column for each method."""
    methods = [f"{row['concept']}, {row['method']}" for row in rows]
    lines = ["| | " + " | ".join(methods) + " |", "|---|" + "--:|" * len(methods)]
    names = list(dict.fromkeys(name for row in rows for name in row["asr"]))
    for name in names:
        cells = [f"{row['asr'][name]:.0%}" if name in row["asr"] else "" for row in rows]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    curves = list(dict.fromkeys((one["name"], one["subject"]) for row in rows for one in row["curves"]))
    for name, subject in curves:
        found = [
            next((one["rates"] for one in row["curves"] if (one["name"], one["subject"]) == (name, subject)), {})
            for row in rows
        ]
        cells = [", ".join(f"{at}: {rate:.0%}" for at, rate in one.items()) for one in found]
        if subject != "erased":  # Mostly the same in all rows; what trains a run's own weights is not.
            cells = [cells[0], *("″" if cell == cells[0] else cell for cell in cells[1:])]
        lines.append(f"| {name}, {subject} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def work(config: TableConfig, command: str) -> str:
    """Erase, examine, and print the table."""
    for method in config.methods:
        if method not in METHODS:
            raise UserError(f"--methods takes some of {', '.join(METHODS)}, got {method!r}.")
    if config.floor is not None and len(config.concepts) > 1:
        raise UserError(f"--floor never knew one concept, got {len(config.concepts)}; run them one after the other.")
    rows = []
    for concept in config.concepts:
        for method in config.methods:
            rows.append(examined(config, concept, method, command))
            if config.json:
                write_text(Path(config.json), json.dumps({"command": command, "rows": rows}, indent=1) + "\n")
    return table(rows)


main = Program("scripts/red_team_table.py", TableConfig, work, __doc__ or "")

if __name__ == "__main__":
    sys.exit(main())
