"""What each artefact of an erasure keeps of it: the pipeline, its patch, a trained LoRA, a LoRA of the difference.

    python scripts/benchmark_adapters.py --output_dir runs/adapters --json docs/results/adapters.json

Each concept and seed is erased four times: by masks of half and a tenth of the weights, whose patches are exact, and by
LoRA of two ranks beside the base; of the first, LoRA of two ranks are made by singular values. All are measured on the
same prompts and seeds. UA is the share of pictures for the concept's prompts in which the detector does not find it, RA
how often everything else is right, CRA how often that other trait of the same pictures is (their styles where shapes
go), drift how far retained pictures moved, bytes what has to be passed on to whoever has the base. Runs that are done
are not done again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from erasure_tables import summary

from salun_diffusers.adapters.lora_folder import RECORD
from salun_diffusers.arguments import setting
from salun_diffusers.errors import UserError
from salun_diffusers.files.json_files import read_object
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.files.whole_files import write_json
from salun_diffusers.programs.erase import main as erase
from salun_diffusers.programs.export_lora import main as export
from salun_diffusers.programs.program import Program

_DENOISER = "unet/diffusion_pytorch_model*.safetensors"


@dataclass(frozen=True)
class AdaptersConfig:
    """What is erased and compared."""

    concepts: tuple[str, ...] = setting(("circle",), "Presets of the embedded model.")
    seeds: tuple[str, ...] = setting(("0",), "Seeds.")
    ratios: tuple[str, ...] = setting(("0.5", "0.1"), "Mask ratios of whole erasures; of the first LoRA are made, too.")
    ranks: tuple[str, ...] = setting(("4", "16"), "Ranks of LoRA.")
    model: str = setting("demo", "Base model.")
    num_validation_images: int = setting(14, "Pictures per prompt of the reports.", minimum=1)
    output_dir: str = setting("runs/adapters", "Folder of the runs.")
    json: str = setting("", "File for the rows, beside the table that is printed.")


@dataclass(frozen=True)
class ArtefactRow:
    """One artefact of one erasure, as rates in [0, 1].

    Args:
        concept: What was erased.
        seed: Of the run.
        artefact: Such as ``LoRA 4``.
        bytes: Of its file.
        ua: How often the concept is not found for its prompts.
        ra: How often everything else is right.
        cra: How often the other trait of the same pictures is.
        drift: How far retained pictures moved, in pixels.
        lacks: Share of ‖Δθ‖² that it lacks of the whole erasure; None of one that was trained by itself.
    """

    concept: str
    seed: str
    artefact: str
    bytes: int
    ua: float
    ra: float
    cra: float | None
    drift: float
    lacks: float | None = None


def rows_of(config: AdaptersConfig, concept: str, seed: str) -> Iterator[ArtefactRow]:
    """Erase a concept in all ways, as far as that has not been done, and measure what is left."""
    root = Path(config.output_dir) / f"{concept}-{seed}"
    common = ["--concept", concept, "--pretrained_model_name_or_path", config.model, "--seed", seed]
    common += ["--num_validation_images", str(config.num_validation_images), "--strength_points", "0"]
    common += ["--generated_data_dir", f"{root}/generated"]
    for number, ratio in enumerate(config.ratios):
        run = _run(root / f"ratio-{ratio}", [*common, "--mask_ratio", ratio, "--save_patch"])
        figures = _figures(read_object(run.root / "report.json"))
        whole = sum(file.stat().st_size for file in run.pipeline.glob(_DENOISER))
        yield ArtefactRow(concept, seed, f"pipeline, ratio {ratio}", whole, **figures, lacks=0.0)
        yield ArtefactRow(concept, seed, f"patch, ratio {ratio}", run.patch.stat().st_size, **figures, lacks=0.0)
        for rank in config.ranks if number == 0 else ():
            folder = root / f"svd-{rank}"
            if not folder.is_dir() and export([str(run.root), str(folder), "--rank", rank]):
                raise UserError(f"The LoRA of {run.root} could not be made; see above.")
            yield _of_export(concept, seed, rank, read_object(folder / RECORD))
    for rank in config.ranks:
        run = _run(root / f"lora-{rank}", [*common, "--adapter", "lora", "--rank", rank])
        size = read_object(run.pipeline / RECORD)["bytes"]
        yield ArtefactRow(concept, seed, f"LoRA {rank}", size, **_figures(read_object(run.root / "report.json")))


def _run(root: Path, words: Sequence[str]) -> RunFolder:
    """A finished run."""
    run = RunFolder(root, "adapter" if "--adapter" in words else "pipeline")
    if not run.finished:
        resumed = ["--resume_from_checkpoint", "latest"] if root.is_dir() else []
        if code := erase([*words, "--output_dir", str(root), *resumed]):
            raise UserError(f"The erasure in {root} ended with code {code}; see above.")
    return run


def _figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """UA, RA, CRA and drift of a report."""
    found = summary([dict(report)])
    return {"ua": found["ua"], "ra": found["ra_after"], "cra": found["cra_after"], "drift": found["drift"]}


def _of_export(concept: str, seed: str, rank: str, record: Mapping[str, Any]) -> ArtefactRow:
    """The row of a LoRA of a difference, by the rates in its record."""
    rates = {row["group"]: row["lora"] for row in record.get("rates", ())}
    drift = {row["group"]: row["lora"] for row in record.get("drift", ())}
    if "concept" not in rates:
        raise UserError(f"The LoRA of rank {rank} of {concept} has no rates in its record: a detector is required.")
    return ArtefactRow(
        concept, seed, f"LoRA {rank} of the difference", record["bytes"], 1 - rates["concept"], rates["retained"],
        rates.get("retained across"), drift["drift"], record["error"],
    )  # fmt: skip


def markdown(rows: Sequence[ArtefactRow]) -> str:
    """A line for each artefact, means over concepts and seeds."""
    lines = ["| artefact | bytes | UA | RA | CRA | drift | lacks of ‖Δθ‖² |", "|---|--:|--:|--:|--:|--:|--:|"]
    for artefact in dict.fromkeys(row.artefact for row in rows):
        mine = [row for row in rows if row.artefact == artefact]
        across, lacks = ([v for row in mine if (v := getattr(row, name)) is not None] for name in ("cra", "lacks"))
        lines.append(
            f"| {artefact} | {fmean(row.bytes for row in mine):,.0f} | {fmean(row.ua for row in mine):.3f} "
            f"| {fmean(row.ra for row in mine):.3f} | {f'{fmean(across):.3f}' if across else '–'} "
            f"| {fmean(row.drift for row in mine):.4f} | {f'{fmean(lacks):.1%}' if lacks else '–'} |"
        )
    return "\n".join(lines) + "\n"


def work(config: AdaptersConfig, command: str) -> str:
    """Run what is missing; write and return the table."""
    rows = []
    for seed in config.seeds:
        for concept in config.concepts:
            rows += rows_of(config, concept, seed)
            if config.json:
                table = {"command": command, "rows": [asdict(row) for row in rows]}
                write_json(Path(config.json).expanduser(), table, indent=1)
    return markdown(rows)


main = Program("scripts/benchmark_adapters.py", AdaptersConfig, work, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
