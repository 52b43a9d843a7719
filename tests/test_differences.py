"""docs/differences.md lists every deliberate difference from the official code, and no other."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `")]


def told() -> Counter[str]:
    """How many paragraphs each module has."""
    package = ROOT / "salun_diffusers"
    found: Counter[str] = Counter()
    for path in package.rglob("*.py"):
        count = len(re.findall(r"^ *Differs from the official code\b", path.read_text("utf-8"), re.MULTILINE))
        found[str(path.relative_to(package))] += count
    return +found


def test_every_paragraph_has_its_row() -> None:
    assert Counter(row[0].strip("`") for row in ROWS) == told()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]} {row[1][:40]}")
def test_a_row_says_both_sides(row: list[str]) -> None:
    _, here, there = row
    assert here and there and here != there


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("diffusion/trainer.py", "dropout"), ("diffusion/trainer.py", "clips all gradients"),
        ("diffusion/batches.py", "T - 1 - t"), ("diffusion/batches.py", "shuffled"),
        ("diffusion/presets/stable_diffusion.py", "EMA"), ("diffusion/presets/shapes.py", "of its own"),
        ("diffusion/presets/classes.py", "of its own"),
    ],
)  # fmt: skip
def test_what_readers_of_the_official_code_will_look_for(module: str, words: str) -> None:
    assert any(words in " ".join(row[1:]) for row in ROWS if row[0] == f"`{module}`")
