"""Tables and plots of `benchmark_erasure.py`: what many reports say together.

    python scripts/erasure_tables.py docs/results/retrain.jsonl
    python scripts/erasure_tables.py runs/benchmark --jsonl runs/benchmark.jsonl

prints the tables of reports that are there already: folders of the benchmark, or files with a report a line.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from erasure_reports import KINDS, Rows, by_seed, in_lines, method_parts, read_reports

from salun_diffusers.arguments import setting, word
from salun_diffusers.errors import UserError
from salun_diffusers.files.whole_files import write_text
from salun_diffusers.programs.program import Program
from salun_diffusers.reports.intervals import mean_interval, wilson_interval


def ran(reports: Collection[dict[str, Any]]) -> list[dict[str, Any]]:
    """The reports of runs that came to an end; one that failed says ``failed`` and why."""
    return [report for report in reports if "failed" not in report]


def number_of(reports: Collection[dict[str, Any]]) -> str:
    """How many runs came to an end, and how many failed: ``2, 1 failed``."""
    good = len(ran(reports))
    return f"{good}, {len(reports) - good} failed" if good < len(reports) else str(good)


def summary(reports: Collection[dict[str, Any]]) -> dict[str, Any]:
    """Pool the pictures of several reports, none of which failed.

    Raises:
        UserError: If nobody looked for the concept in their pictures.
    """
    shown = right_before = right_after = asked = kept = right_across = kept_across = 0
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
            elif after["group"] == "retained across":
                right_across += round(after["value"] * after["n"])
                kept_across += after["n"]
            elif after["group"] == "retained, by prompt":
                changes[pair["name"]].append(after["value"] - before["value"])
        for item in report["measurements"]:
            if item["group"] == "became":
                became[item["name"].removeprefix("became ")] += round(item["value"] * item["n"])
    if not asked:
        raise UserError("A report has no rate of its concept: only runs with a detector go into these tables.")
    worst = min(changes, key=lambda name: float(np.mean(changes[name]))) if changes else ""
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
        "ra_before": right_before / kept if kept else math.nan,
        "ra_after": right_after / kept if kept else math.nan,
        "cra_after": right_across / kept_across if kept_across else None,
        "worst": worst,
        "worst_change": float(np.mean(changes[worst])) if changes else math.nan,
        "became": ", ".join(f"{name} {count / asked:.0%}" for name, count in became.most_common(2)),
        "drift": float(np.mean(drifts)) if drifts else math.nan,
        "fd_before": float(np.mean([pair["before"] for pair in distances])) if distances else None,
        "fd_after": float(np.mean([pair["after"] for pair in distances])) if distances else None,
        "seconds": float(np.mean(seconds)),
    }


def by_concept(rows: Rows) -> str:
    """A row for every concept and method, its seeds pooled; UA has its 95 % Wilson interval."""
    lines = [
        "| concept | method | seeds (n) | UA [95 %] | RA before → after | CRA after | worst of the others | became "
        "| drift | FD before → after | saliency + tuning |",
        "|---|---|---|---|---|--:|---|---|---|---|---|",
    ]
    for (concept, method), reports in rows.items():
        good = ran(reports.values())
        if not good:
            lines.append(f"| {concept} | {method} | {number_of(reports.values())} |" + " failed |" * 8)
            continue
        row = summary(good)
        lines.append(
            f"| {concept} | {method} | {number_of(reports.values())} ({row['n']}) "
            f"| {row['ua']:.3f} [{row['ua_low']:.3f}, {row['ua_high']:.3f}] "
            f"| {_number(row['ra_before'])} → {_number(row['ra_after'])} | {_across(row)} "
            f"| {row['worst']} {_number(row['worst_change'], '+.3f')} | {row['became']} "
            f"| {_number(row['drift'], '.4f')} | {_distances(row)} | {row['seconds']:.0f} s |"
        )
    return "\n".join(lines) + "\n"


def by_method(rows: Rows, name: str, concepts: Sequence[str]) -> str:
    """A row for every method, over all runs on some concepts; a run is one concept under one seed.

    UA pools the pictures of all runs and has their 95 % Wilson interval; `lowest` is the run with the lowest UA. The
    change of RA and the drift are means with the `interval` of other concepts, which one of pooled pictures is not.

    Args:
        rows: All reports.
        name: What the concepts are called together.
        concepts: Which of them the table is about.
    """
    reports: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(dict)
    failed: Counter[str] = Counter()
    for (concept, method), found in rows.items():
        if concept in concepts:
            reports[method][concept] = list(found.values())
            failed[method] += len(found) - len(ran(found.values()))
    lines = [
        f"| method | {name} (runs, n) | UA [95 %] | lowest | change of RA [95 %] | CRA after | worst single fall "
        "| drift [95 %] | FD before → after | seconds |",
        "|---|---|---|--:|---|--:|--:|---|---|--:|",
    ]
    for method, found_of in reports.items():
        of = {concept: good for concept, found in found_of.items() if (good := ran(found))}
        lost = f", {failed[method]} failed" if failed[method] else ""
        if not of:
            lines.append(f"| {method} | 0 (0{lost}) |" + " failed |" * 8)
            continue
        pooled = summary([report for found in of.values() for report in found])
        single = {concept: [summary([report]) for report in found] for concept, found in of.items()}
        runs = [row for seeds in single.values() for row in seeds]
        worst = min(runs, key=lambda row: float(row["worst_change"]))
        changes = [[row["ra_after"] - row["ra_before"] for row in seeds] for seeds in single.values()]
        drifts = [[row["drift"] for row in seeds] for seeds in single.values()]
        lines.append(
            f"| {method} | {len(of)} ({len(runs)}{lost}, {pooled['n']}) "
            f"| {pooled['ua']:.3f} [{pooled['ua_low']:.3f}, {pooled['ua_high']:.3f}] "
            f"| {min(row['ua'] for row in runs):.2f} "
            f"| {interval(changes)} | {_across(pooled)} | {worst['worst']} {_number(worst['worst_change'], '+.2f')} "
            f"| {interval(drifts)} | {_distances(pooled)} | {pooled['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def against_saliency(rows: Rows) -> str:
    """What other masks change: the mean difference to the saliency mask over runs that differ in the mask alone.

    Differences are mask minus saliency, of the same concept and seed; their mean has the `interval` of concepts.
    """
    found: dict[tuple[str, str, float, str], dict[int, dict[str, Any]]] = {}
    for (concept, method), reports in rows.items():
        if parts := method_parts(method):
            found[(*parts, concept)] = reports
    pairs: dict[tuple[str, str, float], dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for (what, mask, ratio, concept), reports in found.items():
        # Without a mask there is no ratio: it is held against the saliency mask of the usual half.
        base = found.get((what, "saliency", ratio, concept), {}) if mask != "saliency" else {}
        for seed in sorted(reports.keys() & base.keys()):
            if len(ran([reports[seed], base[seed]])) < 2:
                continue
            other, saliency = summary([reports[seed]]), summary([base[seed]])
            pairs[what, mask, ratio][concept].append(
                {key: other[key] - saliency[key] for key in ("ua", "ra_after", "drift")}
            )
    lines = [
        "| objective | mask | ratio | pairs | difference of UA | of RA after | of drift |",
        "|---|---|--:|--:|---|---|---|",
    ]
    for (what, mask, ratio), differences in pairs.items():
        columns = [
            interval([[pair[key] for pair in of] for of in differences.values()]) for key in ("ua", "ra_after", "drift")
        ]
        share = "–" if mask == "full" else f"{ratio:g}"
        number = sum(map(len, differences.values()))
        lines.append(f"| {what} | {mask} | {share} | {number} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n" if pairs else ""


def tables(rows: Rows) -> str:
    """Every table that some reports can fill."""
    texts = [by_concept(rows)]
    for name, concepts in KINDS.items():
        if len({concept for concept, _ in rows if concept in concepts}) > 1:
            texts.append(by_method(rows, name, concepts))
    return "\n".join(filter(None, [*texts, against_saliency(rows)]))


def interval(values: Sequence[Sequence[float]]) -> str:
    """``mean [low, high]``: what another concept would give, with 95 % confidence; of one value, the value.

    Seeds of one concept are more alike than concepts are, so they are averaged first and the concepts' means taken as
    independent; of one concept alone the seeds are.

    >>> interval([[1.0, 3.0], [4.0], [6.0]]), interval([[1.0, 3.0]]), interval([[1.0]])
    ('4.000 [-0.968, 8.968]', '2.000 [-10.706, 14.706]', '1.000')

    Args:
        values: For each concept those of its seeds; what was not measured is NaN, and left out.
    """
    values = [good for seeds in values if (good := [value for value in seeds if math.isfinite(value)])]
    if not values:
        return "–"
    units = [sum(seeds) / len(seeds) for seeds in values] if len(values) > 1 else values[0]
    if len(units) < 2:
        return f"{units[0]:z.3f}"
    mean, low, high = mean_interval(units)
    return f"{mean:z.3f} [{low:z.3f}, {high:z.3f}]"


def plot_ratios(rows: Rows, path: Path) -> None:
    """UA, RA and drift against the mask ratio, a curve for each mask; nothing if no method has two ratios.

    Args:
        rows: All reports; a method that names its ratio ends in it, one that does not has 0.5.
        path: Picture to write.
    """
    curves: dict[str, dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for (_, method), reports in rows.items():
        parts = method_parts(method)
        if parts and parts[1] != "full":
            what, mask, ratio = parts
            curves[f"{what}-{mask}"][ratio] += [summary([report]) for report in ran(reports.values())]
    curves = {  # A ratio of which no run came to an end has no point.
        name: kept for name, points in curves.items() if len(kept := {at: of for at, of in points.items() if of}) > 1
    }  # type: ignore[assignment]
    if not curves:
        return
    from matplotlib.figure import Figure

    panels = {"UA": "ua", "accuracy on all else": "ra_after", "drift": "drift"}
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (label, key) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for (name, points), marker in zip(sorted(curves.items()), "os^Dv", strict=False):
            ratios = sorted(points)
            means = np.array([np.mean([row[key] for row in points[ratio]]) for ratio in ratios])
            spread = np.array([np.std([row[key] for row in points[ratio]]) for ratio in ratios])
            (line,) = axes.plot(ratios, means, marker=marker, label=name)
            axes.fill_between(ratios, means - spread, means + spread, alpha=0.12, color=line.get_color(), linewidth=0)
        axes.set_xlabel("mask ratio")
        axes.set_ylabel(label)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=120)


def _number(value: float, form: str = ".3f") -> str:
    """A number, or a dash for what was not measured."""
    return f"{value:{form}}" if math.isfinite(value) else "–"


def _across(row: dict[str, Any]) -> str:
    return "–" if row["cra_after"] is None else f"{row['cra_after']:.3f}"


def _distances(row: dict[str, Any]) -> str:
    return "" if row["fd_after"] is None else f"{row['fd_before']:.2f} → {row['fd_after']:.2f}"


@dataclass(frozen=True)
class TablesConfig:
    """Settings of the tables."""

    reports: tuple[str, ...] = word("Folders of scripts/benchmark_erasure.py, or .jsonl files with a report a line.")
    each_seed: bool = setting(False, "A row for every seed, in place of one for all seeds of a concept and method.")
    jsonl: str | None = setting(None, "Also write all reports to this file, one a line.")


def work(config: TablesConfig, command: str) -> str:
    """Read, and print the tables."""
    rows = read_reports([Path(place) for place in config.reports])
    if config.jsonl:
        Path(config.jsonl).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(config.jsonl), in_lines(rows))
    return by_concept(by_seed(rows)) if config.each_seed else tables(rows)


main = Program("scripts/erasure_tables.py", TablesConfig, work, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
