"""What is imported is declared, what is declared is imported, and every lower bound can be tested."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "salun_diffusers"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {name: set(required) for name, required in PROJECT["optional-dependencies"].items() if name != "dev"}
IMPORTED_AS = {"pillow": "PIL", "scikit-learn": "sklearn", "scikit-image": "skimage", "pre-commit": "pre_commit",
               "pytest-xdist": "xdist"}  # fmt: skip
BY_TRANSFORMERS = {"timm"}  # Its wrapper of timm's networks imports them.
WITH_TORCH = {"triton"}  # Beside torch's builds for GPUs on Linux; one module needs it, and is imported where it is.
TOOLS = {"ipykernel", "mypy", "pre_commit", "ruff", "xdist"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def package_of(requirement: str) -> str:
    """The name that a requirement is imported by."""
    found = re.match(r"[A-Za-z0-9_.-]+", requirement)
    assert found is not None
    return IMPORTED_AS.get(found[0].lower(), found[0])


def packages(requirements: set[str] | list[str]) -> set[str]:
    return {package_of(requirement) for requirement in requirements}


CORE = packages(PROJECT["dependencies"])
OPTIONAL = {name: packages(required) for name, required in EXTRAS.items()}
ANY_EXTRA = set[str]().union(*OPTIONAL.values())
DEV = packages(PROJECT["optional-dependencies"]["dev"])


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Foreign packages that a file imports, and whether it does so whenever it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    later = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        for name in _modules(node):
            top = name.split(".")[0]
            if top and top not in sys.stdlib_module_names and top != "salun_diffusers":
                yield top, id(node) not in later


def _modules(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield str(node.module)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "import_module":
        for part in ast.walk(node.args[0]):  # `import_module("a.b")`, or the text that an f-string begins with
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and part.value[0].isalpha():
                yield part.value


def test_what_the_package_imports_is_declared_and_nothing_else() -> None:
    imported = {package for path in MODULES for package, _ in imports(path)}
    assert imported == (CORE | ANY_EXTRA | WITH_TORCH) - BY_TRANSFORMERS


def test_what_modules_need_to_be_imported_is_in_the_core() -> None:
    needed = {package for path in MODULES for package, at_once in imports(path) if at_once}
    assert needed <= CORE | WITH_TORCH, needed - CORE


def test_one_module_needs_triton() -> None:
    users = {path.name: at_once for path in MODULES for package, at_once in imports(path) if package in WITH_TORCH}
    assert users == {"bit_kernels.py": True}
    others = [path.read_text(encoding="utf-8") for path in MODULES if path.name != "bit_kernels.py"]
    assert [
        line for text in others for line in text.splitlines() if line.startswith("from salun_diffusers.masks.bit_k")
    ] == []


def test_what_is_optional_has_its_extra_named_where_it_is_imported() -> None:
    for path in MODULES:
        optional = {package for package, _ in imports(path)} - CORE - WITH_TORCH
        named = re.findall(r"salun-diffusers\[([a-z0-9-]+)\]", path.read_text(encoding="utf-8"))
        lacking = optional - set[str]().union(*(OPTIONAL[extra] for extra in named))
        assert not lacking, f"{path} names the extras {named}, which have no {lacking}"


def test_what_tests_and_scripts_import_is_installed_by_dev() -> None:
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    own = {path.stem for path in files}
    imported = {package for path in files for package, _ in imports(path)} - own
    assert imported <= CORE | DEV, imported - CORE - DEV
    unused = DEV - imported - ANY_EXTRA - TOOLS - WITH_TORCH
    assert not unused


def test_every_bound_of_the_core_is_tested(
    script: Callable[[str], ModuleType], capsys: pytest.CaptureFixture[str]
) -> None:
    script("floor_requirements").main()
    pins = capsys.readouterr().out.splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+==[0-9.]+", pin) for pin in pins)
    assert {pin.replace("==", ">=") for pin in pins} >= set(PROJECT["dependencies"])
    assert len({package_of(pin) for pin in pins}) == len(pins), "a package has two bounds"
    extras = OPTIONAL["8bit"] | OPTIONAL["classification"] | OPTIONAL["evaluation"]
    assert {package_of(pin) for pin in pins} == CORE | extras
