"""Compare hard masks with soft thresholds on the embedded models and on a classifier of digits.

    python scripts/soft_thresholds.py --output runs/soft_thresholds.json

Arms: `hard`, the mask of the largest scores; `proximal`, SalUn-soft, every weight and the smaller changes taken back;
`drawn`, a mask drawn once by probability; `redrawn`, one for every step; `continuous`, updates scaled by the
probability. Everything else is each model's own default. UA is the share of pictures for the concept's prompts in
which the detector does not find it (of the classifier: forget pictures that are not recognised), RA the accuracy on
everything else, moved the share of all weights that differ from the base. Rows in the file are not run again.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from erasure_tables import summary

from salun_diffusers.arguments import setting
from salun_diffusers.errors import UserError
from salun_diffusers.files.output_places import require_writable
from salun_diffusers.files.whole_files import write_json
from salun_diffusers.programs.program import Program

Model = Literal["demo", "digits", "classifier"]
ARMS: dict[str, dict[str, Any]] = {
    "hard": {},
    "proximal": {"soft_threshold": "proximal", "mask": "full"},
    "drawn": {"soft_threshold": "probabilistic"},
    "redrawn": {"soft_threshold": "probabilistic", "mask_draws": "step"},
    "continuous": {"soft_threshold": "continuous"},
}


@dataclass(frozen=True)
class SoftConfig:
    """Settings of the comparison."""

    models: tuple[str, ...] = setting(get_args(Model), "Which of demo, digits, classifier.")
    arms: tuple[str, ...] = setting(tuple(ARMS), f"Which of {', '.join(ARMS)}.")
    seeds: tuple[str, ...] = setting(("0", "1"), "Seeds.")
    demo_concept: str = setting("star", "What the demo forgets.")
    digit: str = setting("7", "What the other two forget.")
    num_validation_images: int = setting(8, "Pictures per prompt of demo; ten times as many of digits.", minimum=1)
    max_train_steps: int | None = setting(
        None, "Optimizer steps of demo and digits; by default the preset's.", minimum=1
    )
    output: str = setting("docs/results/soft_thresholds.json", "JSON file of all rows.")


def work(config: SoftConfig, command: str) -> str:
    """Run what is missing and return the table."""
    for name, known in (("models", get_args(Model)), ("arms", tuple(ARMS))):
        for word in getattr(config, name):
            if word not in known:
                raise UserError(f"--{name} must be of {', '.join(known)}, got {word!r}.")
    for seed in config.seeds:
        if not seed.isdecimal():
            raise UserError(f"--seeds must be whole numbers, got {seed!r}.")
    output = Path(config.output)
    require_writable(output.parent, "--output's folder")
    rows: list[dict[str, Any]] = json.loads(output.read_text())["rows"] if output.exists() else []
    done = {(row["model"], row["concept"], row["arm"], row["seed"]) for row in rows}
    with tempfile.TemporaryDirectory() as place:
        for seed in map(int, config.seeds):
            for model in config.models:
                for arm in config.arms:
                    concept = config.demo_concept if model == "demo" else config.digit
                    if (model, concept, arm, seed) in done:
                        continue
                    started = time.perf_counter()
                    run = unlearned if model == "classifier" else erased
                    row = run(model, concept, ARMS[arm], seed, (Path(place), config))
                    told = {"model": model, "concept": concept, "arm": arm, "seed": seed}
                    rows.append({**told, **row, "command": command})
                    write_json(
                        output, {"format": "salun_diffusers soft thresholds, version 1", "arms": ARMS, "rows": rows}
                    )
                    sys.stderr.write(f"{model} {arm} {seed}: {time.perf_counter() - started:.0f} s\n")
                    gc.collect()
    return table(rows)


def erased(model: str, concept: str, arm: dict[str, Any], seed: int, common: tuple[Path, SoftConfig]) -> dict[str, Any]:
    """Erase a concept from an embedded model, and read the report."""
    from salun_diffusers.diffusion.config import EraseConfig
    from salun_diffusers.diffusion.request import accept
    from salun_diffusers.diffusion.run import run_erasure

    place, config = common
    pictures = config.num_validation_images
    asked = EraseConfig(
        concept=concept, pretrained_model_name_or_path=model, seed=seed, output_dir=str(place / "run"),
        generated_data_dir=str(place / "generated"),
        num_validation_images=pictures if model == "demo" else 10 * pictures,
        max_train_steps=config.max_train_steps, **arm,
    )  # fmt: skip
    run, _ = run_erasure(accept(asked), command="")
    report = json.loads((run.root / "report.json").read_text())
    shutil.rmtree(run.root)
    found = summary([report])
    return {
        "ua": found["ua"],
        "ua_interval": [found["ua_low"], found["ua_high"]],
        "ra_before": found["ra_before"],
        "ra": found["ra_after"],
        "cra": found["cra_after"],
        "drift": found["drift"],
        "pictures": found["n"],
        "steps": report["config"]["max_train_steps"],
        "may_move": report["mask"]["density"],
        "moved": report["receipt"]["moved_share"],
        "seconds": found["seconds"],
    }


def unlearned(
    model: str, concept: str, arm: dict[str, Any], seed: int, common: tuple[Path, SoftConfig]
) -> dict[str, Any]:
    """Have a small classifier of digits forget a class by relabelling, and read the report."""
    from salun_diffusers.classification.config import TrainConfig, UnlearnConfig
    from salun_diffusers.classification.run import run_unlearning
    from salun_diffusers.classification.train import run_training

    place, _ = common
    trained = place / f"classifier-{seed}"
    if not trained.exists():
        run_training(TrainConfig(output_dir=str(trained), seed=seed))
    asked = UnlearnConfig(model=str(trained), forget_class=concept, output_dir=str(place / "run"), seed=seed, **arm)
    started = time.perf_counter()
    run, _ = run_unlearning(asked)
    seconds = time.perf_counter() - started
    report = json.loads((run.root / "report.json").read_text())
    shutil.rmtree(run.root)
    after = {pair["name"]: pair["after"] for pair in report["comparisons"]}
    before = {pair["name"]: pair["before"] for pair in report["comparisons"]}
    forget, retain, test = (
        next(name for name in after if name.startswith(word)) for word in ("forget", "retain", "test")
    )
    return {
        "ua": 1 - after[forget]["value"],
        "ra_before": before[retain]["value"],
        "ra": after[retain]["value"],
        "ta": after[test]["value"],
        "pictures": after[forget]["n"] + after[retain]["n"],
        "may_move": report["mask"]["density"],
        "moved": report["receipt"]["moved_share"],
        "seconds": seconds,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A row of Markdown for each model and arm: means over the seeds."""
    lines = ["| model | arm | seeds | UA | RA | may move | moved |", "|---|---|--:|--:|--:|--:|--:|"]
    for model, arm in dict.fromkeys((row["model"], row["arm"]) for row in rows):
        found = [row for row in rows if (row["model"], row["arm"]) == (model, arm)]
        means = [sum(row[name] for row in found) / len(found) for name in ("ua", "ra", "may_move", "moved")]
        lines.append(f"| {model} | {arm} | {len(found)} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    return "\n".join(lines) + "\n"


main = Program("scripts/soft_thresholds.py", SoftConfig, work, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
