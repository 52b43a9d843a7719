"""A run that erased something small, to be looked at."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from salun_diffusers.evaluation.drawing_pipeline import load_pipeline
from salun_diffusers.programs.erase import main
from salun_diffusers.studio.easel import Asked, Easel
from salun_diffusers.studio.opened import Drawing, opened
from salun_diffusers.studio.shown import Where

ROOT = Path(__file__).parents[2]
WATCHED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background jobs are born deaf to it.
notes = int(sys.argv.pop(1))
def watch(event, arguments):
    if event == "open" and not isinstance(arguments[0], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        os.write(notes, os.fsencode(arguments[0]) + b"\\n")
sys.addaudithook(watch)
from salun_diffusers.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
"""The program, noting each file that any code of its process opens to write."""


@dataclass
class Served:
    """A page, and what its process has opened to write."""

    address: str
    notes: Path
    process: subprocess.Popen[str]

    def written(self) -> list[str]:
        return [name for name in self.notes.read_text().splitlines() if name != os.devnull]


@pytest.fixture(scope="session")
def erased_run(small_run: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder; a patch lies in it, too."""
    folder = tmp_path_factory.mktemp("studio") / "run"
    assert main(small_run(output_dir=folder, save_patch=True, learning_rate=0.02)) == 0
    return folder


@pytest.fixture(scope="session")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of the same shape with other weights."""
    from tiny_models import build_pipeline

    folder = build_pipeline(tmp_path_factory.mktemp("models") / "other")
    pipe = plain(folder)
    with torch.no_grad():
        next(pipe.unet.parameters()).add_(1.0)
    pipe.unet.save_pretrained(folder / "unet")
    return folder


@pytest.fixture
def easel(erased_run: Path) -> Iterator[Easel]:
    """At the base of the run."""
    with opened([str(erased_run)], Where(), Drawing(num_inference_steps=2)) as (made, _):
        yield made


@pytest.fixture(scope="session")
def drawn_plainly() -> Callable[[Path, Asked], Image.Image]:
    """A picture as the folder by itself draws it, loaded as anybody loads it."""
    pipes: dict[Path, Any] = {}

    def drawn(folder: Path, asked: Asked) -> Image.Image:
        if folder not in pipes:
            pipes[folder] = plain(folder)
        pipe = pipes[folder]
        given = {"class_labels": [asked.prompt]} if hasattr(pipe, "labels") else {"prompt": [asked.prompt]}
        generator = [torch.Generator().manual_seed(asked.seed)]
        return pipe(
            **given, generator=generator, guidance_scale=asked.guidance, num_inference_steps=asked.steps
        ).images[0]  # fmt: skip

    return drawn


def plain(folder: Path) -> Any:
    """A pipeline, loaded."""
    return load_pipeline(folder, device=torch.device("cpu"), dtype=torch.float32, variant=None, scheduler=None)


@pytest.fixture(scope="session")
def served(erased_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page of a run, served by the program as it is typed; in a home and a folder that are empty."""
    home = tmp_path_factory.mktemp("home")
    notes = tmp_path_factory.mktemp("notes") / "written"
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "HOME": str(home), "TMPDIR": str(home)}
    with notes.open("wb") as file:
        words = [sys.executable, "-c", WATCHED, str(file.fileno()), "studio", str(erased_run), "--port", "0"]
        process = subprocess.Popen(
            words, cwd=home, env=environment, pass_fds=[file.fileno()], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
    with process:
        line = process.stdout.readline()
        found = re.search(r"^studio +(http://127\.0\.0\.1:\d+/)\n$", line)
        assert found, (line, process.communicate(timeout=60))
        yield Served(found[1], notes, process)
        process.kill()
