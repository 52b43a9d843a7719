"""The table of planted errors fits the package, and the program tells what is noticed from what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import plant_errors
import pytest
from planted_errors import PLANTED, PlantedError

from salun_diffusers.errors import UserError

ROOT = Path(__file__).parents[2]


def test_every_text_is_there_exactly_once() -> None:
    plant_errors.check(PLANTED, ROOT)
    assert len(PLANTED) >= 60
    assert {error.file.split("/")[0] for error in PLANTED} == {
        "masks",
        "diffusion",
        "classification",
        "evaluation",
        "studio",
        "red_team",
        "adapters",
        "demo",
        "programs",
        "reports",
    }


def test_every_test_file_is_there() -> None:
    assert all((ROOT / "tests" / error.tests.split("::")[0].split(" ")[0]).is_file() for error in PLANTED)


def test_code_that_has_moved_stops_the_program() -> None:
    with pytest.raises(UserError, match="must hold 'no such text' exactly once, it is there 0 times"):
        plant_errors.check([replace(PLANTED[0], right="no such text")], ROOT)
    with pytest.raises(UserError, match="is in the table twice"):
        plant_errors.check([PLANTED[0], PLANTED[0]], ROOT)


def test_killed_and_survived(tmp_path: Path) -> None:
    """An error in a sum is noticed by the test of the sum, not by one of something else; the copy is whole again."""
    (tmp_path / "salun_diffusers").mkdir()
    (tmp_path / "salun_diffusers" / "__init__.py").touch()
    (tmp_path / "tests").mkdir()
    (tmp_path / "salun_diffusers" / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "tests" / "test_sum.py").write_text(
        "from salun_diffusers.sums import add\n\ndef test_sum():\n    assert add(1, 2) == 3\n"
    )
    (tmp_path / "tests" / "test_other.py").write_text("def test_nothing():\n    pass\n")
    error = PlantedError("sums.py", "a + b", "a - b", "test_sum.py")
    assert plant_errors.plant(tmp_path, error, 60) == "test_sum.py::test_sum"
    assert plant_errors.plant(tmp_path, replace(error, tests="test_other.py"), 60) == ""
    assert "a + b" in (tmp_path / "salun_diffusers" / "sums.py").read_text()
    with pytest.raises(UserError, match="pytest ended with"):
        plant_errors.plant(tmp_path, replace(error, tests="test_missing.py"), 60)
    page = plant_errors.table([error, error], ["test_sum.py::test_sum", ""], "python x", 3.0)
    assert "1 of 2 planted errors" in page and "**survived**" in page
