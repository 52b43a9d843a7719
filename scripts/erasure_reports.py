"""The reports of `benchmark_erasure.py`: a folder with a file each, or one file with a line each."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from salun_diffusers.demo.vocabulary import SHAPES, STYLES
from salun_diffusers.errors import UserError

Rows = dict[tuple[str, str], dict[int, dict[str, Any]]]
"""The reports of every (concept, method), by seed."""


KINDS = {"shapes": SHAPES, "styles": STYLES, "digits": tuple(map(str, range(10)))}
"""Concepts that are summed up together, by what they are called."""

_METHOD = re.compile(r"(\w+)-([a-z_]+(?:\+difference)?)(?:-(0?\.\d+|1(?:\.0+)?))?")
_CELL = re.compile(r"([^-]+)-(.+)-(\d+)")


def method_parts(method: str) -> tuple[str, str, float] | None:
    """Recipe or objective, mask and ratio of ``WHAT-MASK`` or ``WHAT-MASK-RATIO``; None if it is neither.

    >>> method_parts("relabel-random"), method_parts("esd-saliency_ratio+difference-0.3"), method_parts("retrain")
    (('relabel', 'random', 0.5), ('esd', 'saliency_ratio+difference', 0.3), None)
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
