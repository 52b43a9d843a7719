"""The README's commands are commands, its flags exist, its Python compiles, its files are there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from salun_diffusers.arguments import parse
from salun_diffusers.classification.config import TrainConfig, UnlearnConfig
from salun_diffusers.diffusion.concepts import resolve
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.presets.classes import class_concept
from salun_diffusers.diffusion.presets.known import find_concept, presets

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    line
    for language, block in BLOCKS
    if language in ("", "bash")
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [shlex.split(line)[1] for line in COMMANDS if line.startswith("make ")]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", makefile, flags=re.MULTILINE), target


ERASE = [line for line in COMMANDS if re.search(r"erase\.py|salun_diffusers\.erase", line)]


@pytest.mark.parametrize("line", ERASE)
def test_erase_commands_are_valid(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keep.txt").write_text("a painting by Monet\n")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    start = next(i for i, word in enumerate(words) if word.endswith(("erase.py", "salun_diffusers.diffusion.run")))
    config = parse(EraseConfig, words[start + 1 :])
    if config.pretrained_model_name_or_path == "digits":
        concept = class_concept(config, {"id2label": dict(enumerate("0123456789"))})
    else:
        concept = find_concept(config)
    assert resolve(config, concept).learning_rate is not None


def test_there_are_erase_commands() -> None:
    assert len(ERASE) >= 3


PROGRAMS = [line for line in COMMANDS if re.search(r"scripts/(generate_images|evaluate_\w+|compare)\.py", line)]


@pytest.mark.parametrize("line", PROGRAMS)
def test_evaluation_commands_are_valid(line: str, script: Callable[[str], ModuleType]) -> None:
    words = shlex.split(line)
    start = next(i for i, word in enumerate(words) if word.startswith("scripts/"))
    parse(_config_of(script(Path(words[start]).stem)), words[start + 1 :])


def _config_of(module: ModuleType) -> type:
    """The settings of a program."""
    own = (value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__)
    return next(value for value in own if getattr(value, "__name__", "").endswith("Config"))


@pytest.mark.parametrize("block", [block for language, block in BLOCKS if language == "python"])
def test_python_compiles(block: str) -> None:
    compile(block, "README.md", "exec")


def test_every_preset_is_named() -> None:
    for name in presets():
        assert f"`{name}`" in README


def test_flags_named_in_the_text_exist(script: Callable[[str], ModuleType]) -> None:
    programs = [
        *ROOT.glob("scripts/evaluate_*.py"),
        ROOT / "scripts" / "generate_images.py",
        ROOT / "scripts" / "benchmark_erasure.py",
        ROOT / "scripts" / "compare.py",
        ROOT / "scripts" / "train_ddpm.py",
        ROOT / "scripts" / "train_demo_model.py",
    ]
    configs = [EraseConfig, TrainConfig, UnlearnConfig, *(_config_of(script(path.stem)) for path in programs)]
    fields = {name for config in configs for name in config.__dataclass_fields__}
    flags = set(re.findall(r"`?--([a-z_]+)", README))
    known = fields | {"help", "mask", "json", "output_dir", "num_images", "multi_gpu", "num_processes", "anchor"}
    assert flags <= known, flags - known


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
