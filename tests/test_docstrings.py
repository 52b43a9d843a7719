"""The examples in docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import salun_diffusers


def test_examples() -> None:
    package = pkgutil.walk_packages(salun_diffusers.__path__, "salun_diffusers.")
    names = ["erasure_tables", *(module.name for module in package if "former" not in module.module_finder.path)]
    found = {name: doctest.testmod(importlib.import_module(name)) for name in names}
    assert sum(result.attempted for result in found.values()) > 10
    assert not [name for name, result in found.items() if result.failed]
