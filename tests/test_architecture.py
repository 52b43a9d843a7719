"""The house rules that a machine can check; docs/architecture.md says why."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "salun_diffusers"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "pipeline" not in path.relative_to(PACKAGE).parts)
IDS = [str(path.relative_to(PACKAGE)) for path in MODULES]

# Lowest first. A room imports from itself and from lower floors; rooms on one floor know nothing of each other.
FLOORS = (
    ("errors",),
    ("seeds", "progress", "arguments", "accelerator"),
    ("files",),
    ("masks", "reports", "pipelines", "demo"),
    ("pictures", "adapters"),
    ("evaluation",),
    ("diffusion", "classification"),
    ("studio", "red_team"),
    ("programs",),
    ("__init__", "__main__"),
)


@cache
def imported(path: Path) -> tuple[str, ...]:
    """Names of the package's modules that a file imports, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                found.append(inside if file_of(inside) else str(node.module))
    return tuple(name for name in found if name.split(".")[0] == "salun_diffusers")


def file_of(module: str) -> Path | None:
    """The file of a module of this package."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def room_of(path: Path) -> str:
    """``diffusion`` of ``salun_diffusers/diffusion/run.py``, ``errors`` of ``salun_diffusers/errors.py``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor_of(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def edges() -> Iterator[tuple[Path, Path]]:
    """Every import within the package, from file to file."""
    for path in MODULES:
        for name in imported(path):
            target = file_of(name)
            assert target is not None, f"{path} imports {name}, which is no module"
            yield path, target


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """One circle of a graph, or an empty list."""
    state: dict[str, int] = {}
    way: list[str] = []

    def visit(node: str) -> list[str]:
        state[node] = 1
        way.append(node)
        for other in sorted(arrows.get(node, ())):
            if state.get(other) == 1:
                return [*way[way.index(other) :], other]
            if other not in state and (found := visit(other)):
                return found
        state[node] = 2
        way.pop()
        return []

    return next((found for node in sorted(arrows) if node not in state and (found := visit(node))), [])


def test_every_room_stands_on_a_floor() -> None:
    rooms = {room_of(path) for path in MODULES}
    assert rooms == {room for rooms in FLOORS for room in rooms}


def test_imports_point_downwards() -> None:
    """No exception: not for a function's own imports, nor for those of type checkers."""
    upward = [
        f"{source.relative_to(PACKAGE)} -> {target.relative_to(PACKAGE)}"
        for source, target in edges()
        if room_of(source) != room_of(target)
        and floor_of(room_of(source)) <= floor_of(room_of(target))
        # The package's own version and public names are no room.
        and room_of(target) != "__init__"
    ]
    assert upward == []


def test_no_file_imports_itself_by_way_of_others() -> None:
    arrows: dict[str, set[str]] = {}
    for source, target in edges():
        if room_of(target) != "__init__":
            arrows.setdefault(str(source.relative_to(PACKAGE)), set()).add(str(target.relative_to(PACKAGE)))
    assert circle(arrows) == []


def test_the_circle_that_is_looked_for_would_be_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


@pytest.mark.parametrize("path", MODULES, ids=IDS)
class TestEveryModule:
    def test_names_programs_outside_the_package_never(self, path):
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names = {str(node.module).split(".")[0] for node in tree if isinstance(node, ast.ImportFrom)}
        assert not names & {"scripts", "pipelines", "tests"}

    def test_is_named_by_what_it_defines(self, path):
        assert path.stem.strip("_") not in {"utils", "util", "helpers", "helper", "common", "misc", "tools", "base"}

    def test_is_short(self, path):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 330

    def test_has_functions_of_few_parameters(self, path):
        """Seven at most; the call of a diffusers pipeline has those that every diffusers pipeline has."""
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and not (room_of(path) == "pipelines" and node.name == "__call__"):
                names = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                own = names[1:] if names[:1] in (["self"], ["cls"]) else names
                assert len(own) <= 7, f"{node.name} has {len(own)}"

    def test_resolves_settings_once(self, path):
        """No second default: ``settings.x or 50`` stands for a decision that `resolve` has taken."""
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
                first = node.values[0]
                read = isinstance(first, ast.Attribute) and isinstance(first.value, ast.Name)
                number = isinstance(node.values[-1], ast.Constant) and isinstance(node.values[-1].value, int | float)
                assert not (read and number and first.value.id in ("config", "settings")), f"line {node.lineno}"

    def test_opens_no_pickle_and_runs_no_foreign_code(self, path):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"pickle", "cPickle", "dill", "joblib"}
            if isinstance(node, ast.Attribute) and node.attr in ("load", "save"):
                assert not (isinstance(node.value, ast.Name) and node.value.id == "torch"), f"line {node.lineno}"
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, f"line {node.lineno}"

    def test_says_what_it_is(self, path):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_tests_mirror_the_package() -> None:
    """A test file lies in the folder of the room that it tests, or at the top where it tests the house."""
    tests = Path(__file__).parent
    folders = {path.name for path in tests.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= {room for rooms in FLOORS for room in rooms} | {"scripts"}


def run(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_help_waits_for_nothing_heavy_and_changes_nothing():
    """Of every program, and of the list of them."""
    out = run(
        "import os, sys\n"
        "before = (dict(os.environ), list(sys.path))\n"
        "import salun_diffusers\n"
        "from salun_diffusers.__main__ import PROGRAMS, main\n"
        "assert (dict(os.environ), list(sys.path)) == before\n"
        "for name in ['', *PROGRAMS]:\n"
        "    try: assert main([*name.split(), '--help']) == 0\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'accelerate', 'huggingface_hub'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))\n"
    )
    assert "--pretrained_model_name_or_path" in out
    assert out.endswith("HEAVY []")


def test_public_names_are_what_they_say():
    out = run(
        "import inspect, salun_diffusers\n"
        "names = [name for name in dir(salun_diffusers) if name != '__version__']\n"
        "assert names == sorted(salun_diffusers.__all__), names\n"
        "import salun_diffusers.diffusion.erase, salun_diffusers.diffusion.run\n"
        "assert inspect.isfunction(salun_diffusers.erase)\n"
        "print(*[type(getattr(salun_diffusers, name)).__name__ for name in names])\n"
    )
    assert set(out.split()) <= {"type", "function", "ABCMeta", "_ProtocolMeta"}
