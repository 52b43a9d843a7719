"""The house rules that a machine can check (design.md §4, reference/style.md §3)."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "salun_diffusers"
MODULES = sorted(PACKAGE.rglob("*.py"))
PARTS = ("diffusion", "classification", "evaluation")
IDS = [str(path.relative_to(PACKAGE)) for path in MODULES]


def imported(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(name: str) -> str:
    """``diffusion`` of ``salun_diffusers.diffusion.latent_sets``; the module itself at the top of the package."""
    parts = name.split(".")
    return parts[1] if parts[0] == "salun_diffusers" and len(parts) > 1 else ""


@pytest.mark.parametrize("path", MODULES, ids=IDS)
class TestEveryModule:
    def test_imports_point_downwards(self, path):
        here = path.relative_to(PACKAGE).parts
        parts = {part_of(name) for name in imported(path)} - {""}
        if here == ("__init__.py",) or here == ("erase.py",):  # The public names, and the program.
            return
        assert "erase" not in parts
        if len(here) == 1:
            allowed = {"evaluation"} if here[0].startswith("report") else set()
            assert not parts & set(PARTS) - allowed
        if here[0] == "report.py" or here[0].startswith("report_"):
            used = {name for name in imported(path) if part_of(name) == "evaluation"}
            assert all(name.startswith("salun_diffusers.reports.measurement") for name in used)
        forbidden = {
            "diffusion": {"classification"},
            "classification": {"diffusion"},
            "evaluation": {"diffusion", "classification"},
        }
        assert not parts & forbidden.get(here[0], set())

    def test_names_programs_never(self, path):
        assert not {name.split(".")[0] for name in imported(path)} & {"scripts", "pipelines", "tests"}

    def test_is_named_by_what_it_defines(self, path):
        assert path.stem.strip("_") not in {"utils", "util", "helpers", "helper", "common", "misc", "tools", "base"}

    def test_is_short(self, path):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 330

    def test_opens_no_pickle_and_runs_no_foreign_code(self, path):
        assert not {name.split(".")[0] for name in imported(path)} & {"pickle", "cPickle", "dill", "joblib"}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in ("load", "save"):
                assert not (isinstance(node.value, ast.Name) and node.value.id == "torch"), f"line {node.lineno}"
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, f"line {node.lineno}"

    def test_says_what_it_is(self, path):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def run(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_and_help_wait_for_nothing_heavy_and_change_nothing():
    out = run(
        "import os, sys\n"
        "before = (dict(os.environ), list(sys.path))\n"
        "import salun_diffusers, salun_diffusers.diffusion.run\n"
        "assert (dict(os.environ), list(sys.path)) == before\n"
        "try: salun_diffusers.diffusion.run.main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'accelerate', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))\n"
    )
    assert "--pretrained_model_name_or_path" in out
    assert out.endswith("HEAVY []")
