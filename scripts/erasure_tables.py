"""Tables and plots of `benchmark_erasure.py`: what many reports say together.

    python scripts/erasure_tables.py docs/results/retrain.jsonl
    python scripts/erasure_tables.py runs/benchmark --jsonl runs/benchmark.jsonl

prints the tables of reports that are there already: folders of the benchmark, or files with a report a line.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from salun_diffusers.arguments import setting, word
from salun_diffusers.demo.vocabulary import SHAPES, STYLES
from salun_diffusers.errors import UserError
from salun_diffusers.files.whole_files import write_text
from salun_diffusers.programs.program import Program
from salun_diffusers.reports.measurement import mean_interval, wilson_interval

Rows = dict[tuple[str, str], dict[int, dict[str, Any]]]
"""The reports of every (concept, method), by seed."""


KINDS = {"shapes": SHAPES, "styles": STYLES, "digits": tuple(map(str, range(10)))}
"""Concepts that are summed up together, by what they are called."""

_METHOD = re.compile(r"(\w+)-([a-z]+)(?:-(0?\.\d+|1(?:\.0+)?))?")
_CELL = re.compile(r"([^-]+)-(.+)-(\d+)")


def method_parts(method: str) -> tuple[str, str, float] | None:
    """Recipe or objective, mask and ratio of ``WHAT-MASK`` or ``WHAT-MASK-RATIO``; None if it is neither.

    >>> method_parts("relabel-random"), method_parts("esd-saliency-0.3"), method_parts("retrain")
    (('relabel', 'random', 0.5), ('esd', 'saliency', 0.3), None)
    """
    match = _METHOD.fullmatch(method)
    return (match[1], match[2], float(match[3] or 0.5)) if match else None


def read_reports(places: Sequence[Path]) -> Rows:
    """The reports that lie in folders of `benchmark_erasure.py`, or in files with one a line.

    A file of a folder is named CONCEPT-METHOD-SEED.json; a line says these three itself, before what such a file holds.

    Raises:
        UserError: If there is no such place, it holds no report, or two of them hold the same one.
    """
    rows: Rows = defaultdict(dict)
    for place in places:
        found = list(_of_folder(place) if place.is_dir() else _of_lines(place))
        if not found:
            raise UserError(f"{place} holds no report: a folder of CONCEPT-METHOD-SEED.json is required, or a .jsonl.")
        for concept, method, seed, report in found:
            if seed in rows[concept, method]:
                raise UserError(f"{place} holds {concept}-{method}-{seed} once more: name every report once.")
            rows[concept, method][seed] = report
    order = [concept for concepts in KINDS.values() for concept in concepts]
    return dict(sorted(rows.items(), key=lambda row: order.index(row[0][0]) if row[0][0] in order else len(order)))


def _of_folder(folder: Path) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    for path in sorted(folder.glob("*.json")):
        if match := _CELL.fullmatch(path.stem):
            yield match[1], match[2], int(match[3]), json.loads(path.read_text(encoding="utf-8"))


def _of_lines(file: Path) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{file} must hold one JSON object a line; it cannot be read ({error}).") from error
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or not {"concept", "method", "seed"} <= line.keys():
            raise UserError(f"Line {number} of {file} must be an object with concept, method and seed.")
        report = {name: value for name, value in line.items() if name not in ("concept", "method", "seed")}
        yield line["concept"], line["method"], line["seed"], report


def in_lines(rows: Rows) -> str:
    """The same reports, one a line and compact."""
    lines = [
        {"concept": concept, "method": method, "seed": seed, **report}
        for (concept, method), reports in rows.items()
        for seed, report in sorted(reports.items())
    ]
    return "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)


def by_seed(rows: Rows) -> Rows:
    """Every report as a row of its own."""
    return {
        (concept, f"{method}, seed {seed}"): {seed: report}
        for (concept, method), reports in rows.items()
        for seed, report in sorted(reports.items())
    }


def summary(reports: Collection[dict[str, Any]]) -> dict[str, Any]:
    """Pool the pictures of several reports."""
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
        "cra_after": right_across / kept_across if kept_across else None,
        "worst": worst,
        "worst_change": float(np.mean(changes[worst])),
        "became": ", ".join(f"{name} {count / asked:.0%}" for name, count in became.most_common(2)),
        "drift": float(np.mean(drifts)),
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
        row = summary(reports.values())
        lines.append(
            f"| {concept} | {method} | {row['seeds']} ({row['n']}) "
            f"| {row['ua']:.3f} [{row['ua_low']:.3f}, {row['ua_high']:.3f}] "
            f"| {row['ra_before']:.3f} → {row['ra_after']:.3f} | {_across(row)} "
            f"| {row['worst']} {row['worst_change']:+.3f} | {row['became']} "
            f"| {row['drift']:.4f} | {_distances(row)} | {row['seconds']:.0f} s |"
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
    for (concept, method), found in rows.items():
        if concept in concepts:
            reports[method][concept] = list(found.values())
    lines = [
        f"| method | {name} (runs, n) | UA [95 %] | lowest | change of RA [95 %] | CRA after | worst single fall "
        "| drift [95 %] | FD before → after | seconds |",
        "|---|---|---|--:|---|--:|--:|---|---|--:|",
    ]
    for method, of in reports.items():
        pooled = summary([report for found in of.values() for report in found])
        single = {concept: [summary([report]) for report in found] for concept, found in of.items()}
        runs = [row for seeds in single.values() for row in seeds]
        worst = min(runs, key=lambda row: float(row["worst_change"]))
        changes = [[row["ra_after"] - row["ra_before"] for row in seeds] for seeds in single.values()]
        drifts = [[row["drift"] for row in seeds] for seeds in single.values()]
        lines.append(
            f"| {method} | {len(of)} ({len(runs)}, {pooled['n']}) "
            f"| {pooled['ua']:.3f} [{pooled['ua_low']:.3f}, {pooled['ua_high']:.3f}] "
            f"| {min(row['ua'] for row in runs):.2f} "
            f"| {interval(changes)} | {_across(pooled)} | {worst['worst']} {worst['worst_change']:+.2f} "
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
        values: For each concept those of its seeds.
    """
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
            curves[f"{what}-{mask}"][ratio] += [summary([report]) for report in reports.values()]
    curves = {name: points for name, points in curves.items() if len(points) > 1}  # type: ignore[assignment]
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
