"""The papers' classifier experiments, one command each; tables and plots go to --output_dir.

    python scripts/benchmark_classification.py --experiment full_stack
    python scripts/benchmark_classification.py --preset salun-table1 --scenarios random-0.1 random-0.5

full_stack   all methods: UA, RA, TA, MIA, gap, time; a class, random 10 % and 50 %
ratios       gap to Retrain for random 10 to 50 %
sensitivity  spread of the gap over the hyper-parameter grid of IU, RL and GA, with and without the saliency mask
masks        RL under saliency masks and random ones of equal density per tensor, density 0.1 to 0.9; a class, 10 %
instances    L2UL, both goals: 4 to 128 pictures, with and without adversarial pictures and importance

Every cell is kept as a file and not run again: the same command goes on where it stopped, and several may share a
folder if they do different scenarios. Each method's settings are chosen from a grid of eight by the mean gap to
Retrain on three seeds that no table contains.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from classification_experiments import (
    TUNING_SEEDS,
    Cell,
    Laboratory,
    Mean,
    grid,
    grids,
    mean_of,
)

from salun_diffusers.arguments import setting
from salun_diffusers.classification.classifier import NormStats
from salun_diffusers.classification.methods import default_mask
from salun_diffusers.classification.presets import TRAINING, TrainingPreset, filled
from salun_diffusers.errors import UserError
from salun_diffusers.files.whole_files import write_text
from salun_diffusers.programs.program import Program

_START = ("dataset", "model", "epochs")
_DENSITIES = tuple(round(0.1 * step, 1) for step in range(1, 10))
_COUNTS = (4, 8, 16, 32, 64, 128)
_L2UL_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
_L2UL_ATTACK = (("copies", 20), ("attack_steps", 30), ("step_size", 0.3), ("epochs", 200))
_L2UL_SWITCHES = {
    "alone": (("adversarial", False), ("importance", False)),
    "+ adversarial": (("adversarial", True), ("importance", False)),
    "+ importance": (("adversarial", False), ("importance", True)),
    "+ both": (("adversarial", True), ("importance", True)),
}
# Each goal with what it is tried with beside the rates. The relabelling loss is bounded and can stand beside the
# adversarial pictures at full weight.
_L2UL_GOALS: dict[str, tuple[tuple[tuple[str, Any], ...], tuple[NormStats, ...]]] = {
    "misclassify": ((("goal", "misclassify"), ("weighting", "batch_size"), ("holding", 1.0)), ("update",)),
    "relabel": ((("goal", "relabel"), ("weighting", "sum"), ("holding", 1.0)), ("update", "freeze")),
}


@dataclass(frozen=True)
class BenchmarkConfig:
    """Settings of the benchmark."""

    experiment: Literal["full_stack", "ratios", "sensitivity", "masks", "instances"] = setting(
        "full_stack", "Which experiment."
    )
    preset: TrainingPreset = setting(
        "small", "small: a small net on digits; salun-table1: ResNet-18 on CIFAR-10 as in SalUn's Table 1."
    )
    dataset: str | None = setting(None, "Data set; cifar10 needs the network.")
    model: str | None = setting(None, "Network.")
    epochs: int | None = setting(None, "Epochs of the starting models and of Retrain.", minimum=1)
    scenarios: tuple[str, ...] = setting(("class", "random-0.1", "random-0.5"), "Forget sets of full_stack.")
    methods: tuple[str, ...] = setting((), "Methods of full_stack and ratios; by default all that have a grid.")
    seeds: tuple[str, ...] = setting(("0", "1", "2", "3", "4"), "Seeds.")
    output_dir: str = setting("runs/classification", "Where models, cells, tables and plots go.")


def column(rows: list[dict[str, Any]], name: str) -> Mean:
    """One quantity of several runs; of one that failed there is none."""
    return mean_of(math.inf if "failed" in row else row[name] for row in rows)


def with_runs(mean: Mean) -> str:
    """A mean in a table without a column for the number of runs: it says so where some failed."""
    return f"{mean.percent} (n = {mean.runs})" if mean.failed and mean.ran else mean.percent


def over_seeds(lab: Laboratory, like: Cell, seeds: list[int]) -> list[dict[str, Any]]:
    """The results of a cell under each seed, and their gaps."""
    rows = []
    for seed in seeds:
        cell = replace(like, seed=seed)
        started = time.perf_counter()
        result = lab.run(cell)
        result["gap"] = lab.gap(cell)
        took = time.perf_counter() - started
        if took > 0.5:
            sys.stderr.write(f"{cell.name}: {took:.1f} s\n")
        rows.append(result)
    return rows


def full_stack(lab: Laboratory, config: BenchmarkConfig, seeds: list[int]) -> Iterator[str]:
    """(a): one table per scenario."""
    for scenario in config.scenarios:
        yield f"\n### {scenario}, {len(seeds)} seeds\n"
        yield "| method | mask | norm stats | n | UA | RA | TA | MIA | gap | seconds | mask seconds | settings |"
        yield "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|---|"
        lines: list[tuple[str, str, Literal["update", "freeze"]]] = [("retrain", "full", "update")]
        lines += [(method, default_mask(method), "update") for method in config.methods]
        if "salun" in config.methods:
            lines.append(("salun", "saliency", "freeze"))
        for method, mask, norm in lines:
            settings = () if method == "retrain" else lab.tuned(scenario, method, mask)
            cell = Cell(scenario, method, 0, mask, settings=settings, norm_stats=norm)
            rows = over_seeds(lab, cell, seeds)
            names = ("unlearning_accuracy", "retain_accuracy", "test_accuracy", "mia", "gap")
            means = [column(rows, name) for name in names]
            times = [column(rows, name) for name in ("seconds", "mask_seconds")]
            # A cell that ran has no gap where Retrain failed.
            cells = [means[0].runs, *(mean.percent if mean.ran == means[0].ran else with_runs(mean) for mean in means)]
            cells += [f"{mean.value:.2f}" if mean.ran else "failed" for mean in times]
            chosen = ", ".join(f"{name} {value}" for name, value in settings)
            yield f"| {method} | {mask} | {norm} | {' | '.join(cells)} | {chosen} |"


def ratios(lab: Laboratory, config: BenchmarkConfig, seeds: list[int]) -> Iterator[str]:
    """(b): gap against forget ratio, settings as tuned at 10 %."""
    shares = (0.1, 0.2, 0.3, 0.4, 0.5)
    yield f"\n### Gap to Retrain by forget ratio, n = {len(seeds)} seeds, settings as tuned at 10 %\n"
    yield "| method | " + " | ".join(f"{100 * share:.0f} %" for share in shares) + " |"
    yield "|---|" + "--:|" * len(shares)
    curves = {}
    for method in config.methods:
        mask = default_mask(method)
        settings = lab.tuned("random-0.1", method, mask)
        cells = [Cell(f"random-{share}", method, 0, mask, settings=settings) for share in shares]
        curves[method] = [column(over_seeds(lab, cell, seeds), "gap") for cell in cells]
        yield f"| {method} | " + " | ".join(map(with_runs, curves[method])) + " |"
    plot(lab.folder / "ratios.png", [100 * share for share in shares], {"average gap (%)": curves}, "forget ratio (%)")


def sensitivity(lab: Laboratory, config: BenchmarkConfig, seeds: list[int]) -> Iterator[str]:
    """(c): how much the gap varies over the same grid, with and without the mask."""
    yield f"\n### Spread of the gap over eight settings, random 10 %, {len(seeds)} seeds each\n"
    yield "| method | mask | runs | smallest gap | median | largest | deviation over settings |"
    yield "|---|---|--:|--:|--:|--:|--:|"
    for method in ("iu", "rl", "ga"):
        for mask in ("full", "saliency"):
            tried = [
                column(over_seeds(lab, Cell("random-0.1", method, 0, mask, settings=settings), seeds), "gap")
                for settings in grid(method, config.preset)
            ]
            runs = replace(
                tried[0], ran=sum(mean.ran for mean in tried), failed=sum(mean.failed for mean in tried)
            ).runs
            # A setting of which no run came to an end has no gap, and is counted among those that failed.
            means = sorted(mean.value for mean in tried if mean.ran)
            spread = mean_of(means).deviation
            values = (means[0], statistics.median(means), means[-1]) if means else ()
            cells = [f"{100 * value:.2f}" for value in values] or ["failed"] * 3
            cells.append("–" if spread is None else f"{100 * spread:.2f}")
            yield f"| {method} | {mask} | {runs} | " + " | ".join(cells) + " |"


def masks(lab: Laboratory, config: BenchmarkConfig, seeds: list[int]) -> Iterator[str]:
    """(d): where the mask lies, at equal density of every tensor."""
    for scenario in ("class", "random-0.1"):
        settings = lab.tuned(scenario, "salun", "saliency")
        yield f"\n### Gap of RL under masks, {scenario}, n = {len(seeds)} seeds; settings as tuned for SalUn at 0.5\n"
        yield "| mask | " + " | ".join(map(str, _DENSITIES)) + " |"
        yield "|---|" + "--:|" * len(_DENSITIES)
        curves = {}
        for mask in ("saliency", "random_like", "magnitude"):
            cells = [Cell(scenario, "salun", 0, mask, density, settings) for density in _DENSITIES]
            curves[mask] = [column(over_seeds(lab, cell, seeds), "gap") for cell in cells]
            yield f"| {mask} | " + " | ".join(map(with_runs, curves[mask])) + " |"
        plot(lab.folder / f"masks-{scenario}.png", list(_DENSITIES), {"average gap (%)": curves}, "mask ratio")


def tuned_l2ul(lab: Laboratory, goal: str, switches: tuple[tuple[str, Any], ...]) -> Cell:
    """A variant of L2UL as it forgets most and costs least: the largest 1 - D_f + D_r + test, 16 tuning pictures."""
    extra, norms = _L2UL_GOALS[goal]
    shared = (*switches, *_L2UL_ATTACK)

    def score(cell: Cell) -> float:
        found = [lab.run(replace(cell, seed=seed)) for seed in TUNING_SEEDS]
        return sum(
            -math.inf if "failed" in row else row["retain_accuracy"] + row["test_accuracy"] - row["forget_accuracy"]
            for row in found
        )

    tried = [
        Cell("instances-16", "l2ul", 0, settings=(*shared, ("learning_rate", rate), *extra), norm_stats=norm)
        for norm in norms
        for rate in _L2UL_RATES
    ]
    return max(tried, key=score)


def instances(lab: Laboratory, config: BenchmarkConfig, seeds: list[int]) -> Iterator[str]:
    """(e): L2UL without the retain set."""
    names = ("forget_accuracy", "retain_accuracy", "test_accuracy")
    for goal in _L2UL_GOALS:
        yield f"\n### L2UL, goal {goal}, {len(seeds)} seeds; accuracy in percent\n"
        yield "| forget | variant | learning rate | norm | n | D_f | D_r | test | seconds |"
        yield "|--:|---|--:|---|--:|--:|--:|--:|--:|"
        curves: dict[str, dict[str, list[Mean]]] = {
            name: {variant: [] for variant in _L2UL_SWITCHES} for name in ("forget_accuracy", "test_accuracy")
        }
        chosen = {variant: tuned_l2ul(lab, goal, switches) for variant, switches in _L2UL_SWITCHES.items()}
        for count in _COUNTS:
            for variant, cell in chosen.items():
                found = [lab.run(replace(cell, scenario=f"instances-{count}", seed=seed)) for seed in seeds]
                about = f"{dict(cell.settings)['learning_rate']:g} | {cell.norm_stats}"
                for name, panel in curves.items():
                    panel[variant].append(column(found, name))
                means, took = [column(found, name) for name in names], column(found, "seconds")
                cells = [
                    means[0].runs,
                    *(mean.percent for mean in means),
                    f"{took.value:.1f}" if took.ran else "failed",
                ]
                yield f"| {count} | {variant} | {about} | {' | '.join(cells)} |"
        panels = {f"{name.replace('_', ' ')} (%)": panel for name, panel in curves.items()}
        plot(lab.folder / f"instances-{goal}.png", list(_COUNTS), panels, "pictures to forget")


def plot(path: Path, x: list[float], panels: dict[str, dict[str, list[Mean]]], label: str) -> None:
    """Mean curves with a band of one deviation where there is one; one panel for each measured quantity.

    A curve of which a point failed altogether is left out.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7 * len(panels), 4), layout="constrained")
    for axes, (quantity, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for number, (name, points) in enumerate(curves.items()):
            if not all(mean.ran for mean in points):
                continue
            colour, marker = colormaps["tab10"](number % 10), "os^D"[number // 3 % 4]
            low = [100 * max(mean.value - (mean.deviation or 0.0), 0.0) for mean in points]
            high = [100 * (mean.value + (mean.deviation or 0.0)) for mean in points]
            axes.plot(x, [100 * mean.value for mean in points], marker=marker, color=colour, label=name)
            axes.fill_between(x, low, high, alpha=0.12, color=colour, linewidth=0)
        axes.set_xlabel(label)
        axes.set_ylabel(quantity)
        if axes.lines:
            axes.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=120)


EXPERIMENTS = {
    "full_stack": full_stack,
    "ratios": ratios,
    "sensitivity": sensitivity,
    "masks": masks,
    "instances": instances,
}


def work(config: BenchmarkConfig, command: str) -> str:
    """Run the missing cells and return the table.

    Raises:
        UserError: If a method or a seed is none.
    """
    known = grids(config.preset)
    wanted = {name: TRAINING[config.preset][name] for name in _START}
    config = filled(replace(config, methods=config.methods or tuple(known)), wanted)
    for method in config.methods:
        if method not in known:
            raise UserError(f"--methods knows {', '.join(known)}; got {method!r}.")
    if not all(seed.isdecimal() for seed in config.seeds):
        raise UserError(f"--seeds must be whole numbers, got {' '.join(config.seeds)}.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = {name: getattr(config, name) for name in _START}
    lab = Laboratory(Path(config.output_dir), **start, device=device, preset=config.preset)
    lab.folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    lines = list(EXPERIMENTS[config.experiment](lab, config, [int(seed) for seed in config.seeds]))
    table = "\n".join(lines) + "\n"
    write_text(lab.folder / f"{config.experiment}.md", table)
    sys.stderr.write(f"took {time.perf_counter() - started:.0f} s; tables and plots in {lab.folder}\n")
    return table


main = Program(
    "scripts/benchmark_classification.py", BenchmarkConfig, work, __doc__ or "", left_open="as --preset has it"
)


if __name__ == "__main__":
    sys.exit(main())
