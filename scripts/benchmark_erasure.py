"""Erase every concept of an embedded model, by several methods and seeds, and print one table.

    python scripts/benchmark_erasure.py --output_dir runs/benchmark
    python scripts/benchmark_erasure.py --model digits --concepts 7 --output_dir runs/benchmark-digits --methods \
        frozen_teacher-saliency paper-saliency paper-full ascent-full finetune-full l1_sparse-full esd-full retrain

A method is WHAT-MASK: a recipe or an objective, and a mask; `paper-full` is random labelling without a mask (RL).
`retrain` trains a digits model that never saw the class, which takes as long as training the embedded one. Each cell is
one run of the main program, in this process; its report stays in `--output_dir`, beside what the base model drew for
several of them (`generated/`, of no use when all is done). Finished cells are not run again, so the same command goes
on where it stopped, and two processes may share a folder if their concepts, methods or seeds differ. The table pools
the seeds of a row: UA is the share of pictures for the concept's prompts in which the detector does not find it, RA the
accuracy on everything else.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image

from salun_diffusers.arguments import setting
from salun_diffusers.demo.vocabulary import SHAPES, STYLES
from salun_diffusers.diffusion.config import EraseConfig, ObjectiveName, Recipe
from salun_diffusers.diffusion.request import accept
from salun_diffusers.disk import write_text
from salun_diffusers.erase import run_erasure
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.image_folder import decoded
from salun_diffusers.evaluation.measurement import wilson_interval
from salun_diffusers.program import run_program

CONCEPTS = {"demo": (*SHAPES, *STYLES), "digits": tuple(map(str, range(10)))}
PICTURES = {"demo": 14, "digits": 100}
MASKS = ("saliency", "random", "magnitude", "full")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of the benchmark."""

    model: Literal["demo", "digits"] = setting("demo", "Base model.")
    concepts: tuple[str, ...] = setting((), "Concepts to erase, one run each; by default all of the model's.")
    methods: tuple[str, ...] = setting(
        ("frozen_teacher-saliency", "paper-saliency"), "Methods to compare, each WHAT-MASK; or `retrain` (digits)."
    )
    seeds: tuple[str, ...] = setting(("0", "1", "2"), "Seeds.")
    num_validation_images: int | None = setting(
        None, "Pictures per prompt and seed; by default 14 of demo, 100 of digits.", minimum=1
    )
    retrain_steps: int = setting(2_000, "Optimizer steps of `retrain`.", minimum=1)
    output_dir: str = setting("runs/benchmark", "Where reports and table.md go.")


@dataclass(frozen=True)
class Cell:
    """One run."""

    concept: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.concept}-{self.method}-{self.seed}"

    def erase_config(self, config: BenchmarkConfig, folder: Path) -> EraseConfig:
        """The settings of the run.

        Raises:
            UserError: If there is no such method or seed.
        """
        what, _, mask = self.method.partition("-")
        recipes, objectives = get_args(Recipe), get_args(ObjectiveName)
        if self.method != "retrain" and (what not in (*recipes, *objectives) or mask not in MASKS):
            raise UserError(
                f"--methods takes WHAT-MASK, with WHAT one of {', '.join((*recipes, *objectives))} and MASK one of "
                f"{', '.join(MASKS)}; got {self.method!r}."
            )
        common = EraseConfig(
            concept=self.concept,
            pretrained_model_name_or_path=config.model,
            seed=self.seed,
            num_validation_images=config.num_validation_images or PICTURES[config.model],
            output_dir=str(folder),
            generated_data_dir=str(folder.parent / "generated"),
        )
        if self.method == "retrain":
            return common
        if what in recipes:
            return replace(common, mask=mask, recipe=what)  # type: ignore[arg-type]
        return replace(common, mask=mask, objective=what)  # type: ignore[arg-type]


def cells(config: BenchmarkConfig) -> Iterator[Cell]:
    """All runs, seeds outermost: a table of fewer seeds is there early."""
    for seed in config.seeds:
        for concept in config.concepts or CONCEPTS[config.model]:
            for method in config.methods:
                if not seed.isdecimal():
                    raise UserError(f"--seeds must be whole numbers, got {seed!r}.")
                yield Cell(concept, method, int(seed))


def run_cell(cell: Cell, config: BenchmarkConfig, output: Path) -> None:
    """Run one cell and keep its report."""
    folder = output / f"{cell.name}.run"
    shutil.rmtree(folder, ignore_errors=True)
    settings = cell.erase_config(config, folder)
    if cell.method == "retrain":
        report, pictures = retrain(accept(settings).config, config.retrain_steps, folder)
    else:
        run, _ = run_erasure(settings)
        report = json.loads((run.root / "report.json").read_text())
        (run.root / "report.html").replace(output / f"{cell.name}.html")
        pictures = {
            when: [one for batch in decoded(sorted(run.samples.glob(f"retain-*-{when}.png")), 64) for one in batch]
            for when in ("before", "after")
        }
    if config.model == "digits":
        report["fd"] = {when: distance(drawn, cell.concept) for when, drawn in pictures.items()}
    write_text(output / f"{cell.name}.json", json.dumps(report, indent=1))
    shutil.rmtree(folder)
    gc.collect()


def retrain(settings: EraseConfig, steps: int, folder: Path) -> tuple[dict[str, Any], dict[str, list[Image.Image]]]:
    """Train digits without the class, and measure it as an erased model is measured."""
    from train_ddpm import TrainDDPMConfig, train

    from salun_diffusers.base_model import EMBEDDED
    from salun_diffusers.diffusion.drawn import Generate, kept_in
    from salun_diffusers.diffusion.families.ddpm import ClassConditionalDDPM
    from salun_diffusers.diffusion.validation import Samples, draw_samples, measure
    from salun_diffusers.evaluation.detectors import make_detector
    from salun_diffusers.run_folder import identity_of

    concept = accept(settings).concept
    started = time.perf_counter()
    never_saw = train(
        TrainDDPMConfig(exclude_class=concept.name, output_dir=str(folder), max_train_steps=steps, seed=settings.seed)
    )
    seconds = time.perf_counter() - started
    drawn: dict[str, tuple[Samples, Samples]] = {}
    for when, place in (("before", EMBEDDED["digits"]), ("after", never_saw)):
        family = ClassConditionalDDPM(place, device=torch.device("cpu"))
        generate: Generate = family.generate
        if when == "before":
            shared = Path(str(settings.generated_data_dir))
            generate = kept_in(shared, generate, pipeline=identity_of(place), precision="no")
        forget, retain = (
            draw_samples(family, generate, prompts, settings, when, True)
            for prompts in (concept.forget_evaluation, concept.retain_evaluation)
        )
        drawn[when] = forget, retain
    comparisons, measurements = measure(
        concept, make_detector(concept.detector), drawn["before"], drawn["after"], "retrain"
    )
    report = {
        "comparisons": [
            {"name": pair.name, "before": pair.before.to_json(), "after": pair.after.to_json()} for pair in comparisons
        ],
        "measurements": [item.to_json() for item in measurements],
        "timings": {"saliency and mask": 0.0, "fine-tuning": seconds},
    }
    return report, {when: [one for row in pair[1].pictures for one in row] for when, pair in drawn.items()}


def distance(pictures: Sequence[Image.Image], forgotten: str) -> float:
    """Fréchet distance to the real digits of all other classes, on the features of the digit classifier."""
    from salun_diffusers.evaluation.feature_extractors import make_extractor
    from salun_diffusers.evaluation.fidelity import frechet_distance
    from salun_diffusers.picture_sources import load_pictures

    extract = make_extractor("digits", device=torch.device("cpu"))
    real = load_pictures("digits")[0].resized(32)
    kept = real.pixels[real.labels != real.class_names.index(forgotten)]
    reference = [Image.fromarray(pixels[0].numpy()) for pixels in kept]
    return frechet_distance(extract(pictures), extract(reference))


def summary(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Pool the seeds of one row."""
    shown = right_before = right_after = asked = kept = 0
    changes: dict[str, list[float]] = defaultdict(list)
    became: Counter[str] = Counter()
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
        for item in report["measurements"]:
            if item["group"] == "became":
                became[item["name"].removeprefix("became ")] += round(item["value"] * item["n"])
    worst = min(changes, key=lambda name: float(np.mean(changes[name])))
    seconds = [report["timings"]["saliency and mask"] + report["timings"]["fine-tuning"] for report in reports]
    low, high = wilson_interval(asked - shown, asked)
    drifts = [item["value"] for report in reports for item in report["measurements"] if item["group"] == "drift"]
    distances = [report["fd"] for report in reports if "fd" in report]
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
        "became": ", ".join(f"{name} {count / asked:.0%}" for name, count in became.most_common(2)),
        "drift": float(np.mean(drifts)),
        "fd_before": float(np.mean([pair["before"] for pair in distances])) if distances else None,
        "fd_after": float(np.mean([pair["after"] for pair in distances])) if distances else None,
        "seconds": float(np.mean(seconds)),
    }


def table(config: BenchmarkConfig, output: Path) -> str:
    """Markdown table of all finished cells."""
    digits = config.model == "digits"
    lines = [
        "| concept | method | seeds (n) | UA [95 %] | RA before → after | worst of the others | became | drift "
        + ("| FD before → after " if digits else "")
        + "| saliency + tuning |",
        "|---|---|---|---|---|---|---|---" + ("|---" if digits else "") + "|---|",
    ]
    rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for cell in cells(config):
        path = output / f"{cell.name}.json"
        if path.exists():
            rows[cell.concept, cell.method].append(json.loads(path.read_text()))
    order = [*(config.concepts or CONCEPTS[config.model]), *config.methods]
    for (concept, method), reports in sorted(rows.items(), key=lambda row: [*map(order.index, row[0])]):
        row = summary(reports)
        lines.append(
            f"| {concept} | {method} | {row['seeds']} ({row['n']}) "
            f"| {row['ua']:.3f} [{row['ua_low']:.3f}, {row['ua_high']:.3f}] "
            f"| {row['ra_before']:.3f} → {row['ra_after']:.3f} | {row['worst']} {row['worst_change']:+.3f} "
            f"| {row['became']} | {row['drift']:.4f} "
            + (f"| {row['fd_before']:.2f} → {row['fd_after']:.2f} " if digits else "")
            + f"| {row['seconds']:.0f} s |"
        )
    return "\n".join(lines) + "\n"


def work(config: BenchmarkConfig, command: str) -> str:
    """Run the missing cells and return the table.

    Raises:
        UserError: If a cell cannot be run; known before the first one is.
    """
    output = Path(config.output_dir)
    todo = [cell for cell in cells(config) if not (output / f"{cell.name}.json").exists()]
    for cell in todo:
        accept(cell.erase_config(config, output / f"{cell.name}.run-to-be"))
        if cell.method == "retrain" and config.model != "digits":
            raise UserError("--methods retrain needs --model digits: only those pictures are at hand.")
    output.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(todo, 1):
        started = time.perf_counter()
        run_cell(cell, config, output)
        sys.stderr.write(f"[{number}/{len(todo)}] {cell.name}: {time.perf_counter() - started:.0f} s\n")
        write_text(output / "table.md", table(config, output))
    return table(config, output)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; finished cells are kept when it is interrupted."""
    return run_program(BenchmarkConfig, work, arguments, file=__file__, description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
