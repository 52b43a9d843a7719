"""Erase every concept of an embedded model, by several methods and seeds, and print tables.

    python scripts/benchmark_erasure.py --output_dir runs/benchmark
    python scripts/benchmark_erasure.py --model digits --concepts 7 --output_dir runs/benchmark-digits --methods \
        frozen_teacher-saliency paper-saliency paper-full ascent-full finetune-full l1_sparse-full esd-full retrain

A method is WHAT-MASK or WHAT-MASK-RATIO: a recipe or an objective, a mask, and the share of weights in it (0.5 if it is
not said); `+difference` behind a mask weighs its states so (`--saliency_weighting`); `paper-full` is random labelling
without a mask (RL), `relabel` the default recipe. `retrain` trains a model that never saw the concept, which takes as
long as training the embedded one; its folder is kept. With `--retrain_shared_steps` the first steps see no concept of a
whole group (five shapes, or two styles) and are taken once for all of it. Each other cell is one run of the main
program, in this process; its report stays in `--output_dir`, beside what the base model drew for several of them
(`generated/`, of no use when all is done). Finished cells are not run again, so the same command goes on where it
stopped, and two processes may share a folder if their concepts, methods or seeds differ, or their groups where steps
are shared: afterwards the command that names all of them prints all. UA is the share of pictures for the concept's
prompts in which the detector does not find it, RA the accuracy on everything else, CRA that of the same pictures' other
trait (their shapes where styles go, their styles where shapes go), FD the Fréchet distance of the retained pictures to
real ones of the same kinds (renders; handwritten digits) on the detector's features, biased upwards alike before and
after.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from erasure_references import RETRAIN_STEPS, Course, distances, retrain
from erasure_tables import Rows, against_saliency, by_concept, by_method, method_parts, plot_ratios

from salun_diffusers.arguments import setting
from salun_diffusers.demo.vocabulary import SHAPES, STYLES
from salun_diffusers.diffusion.config import EraseConfig, ObjectiveName, Recipe
from salun_diffusers.diffusion.request import MADE_MASKS, accept
from salun_diffusers.diffusion.run import run_erasure
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.image_folder import decoded
from salun_diffusers.files.whole_files import write_text
from salun_diffusers.programs.program import Program

GROUPS = {"demo": {"shapes": SHAPES, "styles": STYLES}, "digits": {"digits": tuple(map(str, range(10)))}}
CONCEPTS = {model: tuple(concept for group in groups.values() for concept in group) for model, groups in GROUPS.items()}
PICTURES = {"demo": 14, "digits": 100}


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of the benchmark."""

    model: Literal["demo", "digits"] = setting("demo", "Base model.")
    concepts: tuple[str, ...] = setting((), "Concepts to erase, one run each; by default all of the model's.")
    methods: tuple[str, ...] = setting(
        ("frozen_teacher-saliency", "paper-saliency"),
        "Methods to compare, each WHAT-MASK or WHAT-MASK-RATIO; or `retrain`.",
    )
    seeds: tuple[str, ...] = setting(("0", "1", "2"), "Seeds.")
    num_validation_images: int | None = setting(
        None, "Pictures per prompt and seed; by default 14 of demo, 100 of digits.", minimum=1
    )
    retrain_steps: int | None = setting(
        None, "Optimizer steps of `retrain`; by default 12,600 of demo, 2,000 of digits.", minimum=1
    )
    retrain_shared_steps: int = setting(
        0, "How many of those, of demo, see none of several concepts and are taken once for all of them.", minimum=0
    )
    retrain_mixed_precision: Literal["no", "bf16"] = setting("no", "Precision of the steps of `retrain`.")
    output_dir: str = setting("runs/benchmark", "Where reports and table.md go.")

    @property
    def course(self) -> Course:
        """How `retrain` trains, with the model's default number of steps."""
        steps = self.retrain_steps or RETRAIN_STEPS[self.model]
        return Course(steps, self.retrain_shared_steps, self.retrain_mixed_precision)


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
        recipes, objectives = get_args(Recipe), get_args(ObjectiveName)
        what, mask, ratio = method_parts(self.method) or ("", "", 0.5)
        mask, _, weighting = mask.partition("+")
        if self.method != "retrain" and (what not in (*recipes, *objectives) or mask not in MADE_MASKS):
            raise UserError(
                f"--methods takes WHAT-MASK or WHAT-MASK-RATIO, with WHAT one of {', '.join((*recipes, *objectives))}, "
                f"MASK one of {', '.join(MADE_MASKS)} and RATIO such as 0.3; got {self.method!r}."
            )
        common = EraseConfig(
            concept=self.concept,
            pretrained_model_name_or_path=config.model,
            seed=self.seed,
            num_validation_images=config.num_validation_images or PICTURES[config.model],
            output_dir=str(folder),
            generated_data_dir=str(folder.parent / "generated"),
            strength_points=0,
        )
        if self.method == "retrain":
            return common
        common = replace(common, mask=mask, mask_ratio=ratio)
        if weighting:
            common = replace(common, saliency_weighting=weighting)  # type: ignore[arg-type]
        if what in recipes:
            return replace(common, recipe=what)  # type: ignore[arg-type]
        return replace(common, objective=what)  # type: ignore[arg-type]


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
    training = cell.method == "retrain"  # It goes on from its checkpoint, and what took hours is kept.
    if training:
        folder = output / f"{cell.name}-{config.course.name}.run"
    else:
        shutil.rmtree(folder, ignore_errors=True)
    # An erasure's folder must be new; an interrupted training's is not, and the settings need not name it.
    settings = cell.erase_config(config, output / f"{cell.name}.run-to-be" if training else folder)
    request = accept(settings)
    if training:
        report, pictures = retrain(request, config.course, folder)
    else:
        run, _ = run_erasure(request, command="")
        report = json.loads((run.root / "report.json").read_text())
        (run.root / "report.html").replace(output / f"{cell.name}.html")
        pictures = {
            when: [one for batch in decoded(sorted(run.samples.glob(f"retain-*-{when}.png")), 64) for one in batch]
            for when in ("before", "after")
        }
    report["fd"] = distances(pictures, config.model, request.concept)
    write_text(output / f"{cell.name}.json", json.dumps(report, indent=1))
    if not training:
        shutil.rmtree(folder)
    gc.collect()


def failed(cell: Cell, config: BenchmarkConfig, output: Path, error: UserError) -> dict[str, Any]:
    """What stands for the report of a run that did not come to an end."""
    settings: dict[str, Any] = {"num_validation_images": config.num_validation_images or PICTURES[config.model]}
    if cell.method == "retrain":
        settings |= config.course.settings
    else:
        shutil.rmtree(output / f"{cell.name}.run", ignore_errors=True)
    return {"failed": str(error), "config": settings}


def finished(config: BenchmarkConfig, output: Path) -> dict[str, dict[str, Any]]:
    """Reports of the cells that are done, by name.

    Raises:
        UserError: If one was made under other settings, so that a table would mix them.
    """
    found = {}
    for cell in cells(config):
        path = output / f"{cell.name}.json"
        if not path.exists():
            continue
        found[cell.name] = report = json.loads(path.read_text())
        asked = {"num_validation_images": config.num_validation_images or PICTURES[config.model]}
        if cell.method == "retrain":
            asked |= config.course.settings
        for name, value in asked.items():
            if (made := report["config"].get(name, "unknown")) != value:
                raise UserError(
                    f"{path} was made with --{name} {made}, now {value} is asked for: take another --output_dir, "
                    f"or --{name} {made}."
                )
    return found


def tables(config: BenchmarkConfig, output: Path) -> str:
    """Markdown of all finished cells; also draws `ratios.png` where there are several mask ratios."""
    rows: Rows = {}
    done = finished(config, output)
    for concept in config.concepts or CONCEPTS[config.model]:
        for method in config.methods:
            names = {int(seed): Cell(concept, method, int(seed)).name for seed in config.seeds}
            reports = {seed: done[name] for seed, name in names.items() if name in done}
            if reports:
                rows[concept, method] = reports
    text = by_concept(rows)
    for name, group in GROUPS[config.model].items():
        if len({concept for concept, _ in rows if concept in group}) > 1:
            text += "\n" + by_method(rows, name, group)
    plot_ratios(rows, output / "ratios.png")
    contrasts = against_saliency(rows)
    return f"{text}\n{contrasts}" if contrasts else text


def work(config: BenchmarkConfig, command: str) -> str:
    """Run the missing cells and return the table.

    Raises:
        UserError: If a cell cannot be run, or a finished one had other settings; known before the first one is run.
    """
    output = Path(config.output_dir)
    if config.retrain_shared_steps >= (config.course.steps if config.model == "demo" else 1):
        raise UserError(
            f"--retrain_shared_steps must be below --retrain_steps {config.course.steps}, and is for --model demo "
            f"only; got {config.retrain_shared_steps} of {config.model}."
        )
    done = finished(config, output)
    todo = [cell for cell in cells(config) if cell.name not in done]
    for cell in todo:
        accept(cell.erase_config(config, output / f"{cell.name}.run-to-be"))
    output.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(todo, 1):
        started = time.perf_counter()
        try:
            run_cell(cell, config, output)
        except UserError as error:  # A run that diverged is a result, too; the others go on.
            write_text(output / f"{cell.name}.json", json.dumps(failed(cell, config, output, error), indent=1))
        sys.stderr.write(f"[{number}/{len(todo)}] {cell.name}: {time.perf_counter() - started:.0f} s\n")
        write_text(output / "table.md", tables(config, output))
    return tables(config, output)


main = Program("scripts/benchmark_erasure.py", BenchmarkConfig, work, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
