"""Print every dependency at its lower bound, for an environment that tests the bounds: ``name==bound`` a line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

TESTED_EXTRAS = ("8bit", "classification", "evaluation", "nudity")


def main() -> None:
    """Read pyproject.toml and print the pins."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tested = [*project["dependencies"], *(one for name in TESTED_EXTRAS for one in extras[name])]
    for requirement in dict.fromkeys(tested):
        found = re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", requirement)
        if found is None:
            raise SystemExit(f"error: {requirement!r} has no plain lower bound")
        print(f"{found[1]}=={found[2]}")


if __name__ == "__main__":
    main()
