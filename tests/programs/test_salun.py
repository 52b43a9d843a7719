"""One command: every program by its name, the command as typed in its record, and the names of before."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from salun_diffusers import __version__
from salun_diffusers.__main__ import PROGRAMS, main
from salun_diffusers.programs.program import typed_command

ROOT = Path(__file__).parents[2]


class TestNames:
    def test_version(self, capsys):
        assert main(["--version"]) == 0
        assert capsys.readouterr().out == f"salun_diffusers {__version__}\n"

    @pytest.mark.parametrize(("words", "code"), [(["--help"], 0), ([], 2)])
    def test_lists_every_program(self, words, code, capsys):
        assert main(words) == code
        out = capsys.readouterr().out
        assert all(f"salun {name} " in out for name in PROGRAMS)

    @pytest.mark.parametrize("name", PROGRAMS)
    def test_help_of_each(self, name, capsys):
        with pytest.raises(SystemExit) as end:
            main([*name.split(), "--help"])
        assert end.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: salun {name} ")

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (
                ["erse"],
                "error: salun erse is unknown; one of erase, verify, patch, export, generate, evaluate, compare",
            ),
            (["evaluate"], "error: salun evaluate must be followed by one of nudity, fid, objects, alignment"),
            (["evaluate", "erase"], "error: salun evaluate must be followed by"),
            (["verify", "only-one"], "error: the following arguments are required: ERASED"),
        ],
    )
    def test_mistakes_are_told_in_one_line(self, words, line, capsys):
        assert main(words) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(line) and captured.err.count("\n") == 1 and captured.out == ""


class TestTypedCommand:
    """sys.argv and sys.orig_argv as Python sets them, for each way of starting a program."""

    @pytest.mark.parametrize(
        ("argv", "orig", "launched", "expected"),
        [
            ("/bin/salun erase --concept x", "python /bin/salun erase --concept x", {}, "salun erase --concept x"),
            ("/bin/salun-erase --concept x", "python /bin/salun-erase --concept x", {}, "salun-erase --concept x"),
            (
                "/lib/salun_diffusers/__main__.py erase --concept x",
                "python -m salun_diffusers erase --concept x",
                {},
                "python -m salun_diffusers erase --concept x",
            ),
            (
                "/lib/salun_diffusers/__main__.py erase --concept x",
                "/bin/python -u -m salun_diffusers erase --concept x",
                {"ACCELERATE_MIXED_PRECISION": "no", "WORLD_SIZE": "2"},
                "accelerate launch --num_processes 2 -m salun_diffusers erase --concept x",
            ),
            (
                "erase.py --concept x",
                "/bin/python erase.py --concept x",
                {"ACCELERATE_MIXED_PRECISION": "no"},
                "accelerate launch erase.py --concept x",
            ),
            ("a/erase.py --concept x", "python a/erase.py --concept x", {}, "python a/erase.py --concept x"),
            # Called from Python, with words of its own: the command that does the same.
            ("pytest tests -q", "python -m pytest tests -q", {}, "salun erase --concept x"),
            # As before, where the caller has put the words into sys.argv.
            ("erase.py --concept x", "python -m pytest tests -q", {}, "salun erase --concept x"),
        ],
    )  # fmt: skip
    def test_of_a_program(self, monkeypatch, argv, orig, launched, expected):
        for name in ("ACCELERATE_MIXED_PRECISION", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in launched.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.argv", argv.split())
        monkeypatch.setattr("sys.orig_argv", orig.split())
        assert typed_command("erase", ["--concept", "x"]) == expected

    def test_of_a_script(self, monkeypatch):
        monkeypatch.setattr("sys.argv", ["pytest"])
        assert typed_command("scripts/benchmark.py", ["step"]) == "python scripts/benchmark.py step"

    def test_words_are_quoted(self, monkeypatch):
        monkeypatch.setattr("sys.argv", ["/bin/salun", "erase", "--concept", "Van Gogh"])
        monkeypatch.setattr("sys.orig_argv", ["python", *sys.argv])
        assert typed_command("erase", ["--concept", "Van Gogh"]) == "salun erase --concept 'Van Gogh'"


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


class TestOtherNames:
    @pytest.mark.parametrize(
        "words", ["-m salun_diffusers verify", "-m salun_diffusers.verify", "-m salun_diffusers.patch", "erase.py"]
    )
    def test_start_the_same_programs(self, words, tmp_path):
        words = words.replace("erase.py", str(ROOT / "erase.py")).split()
        done = run(*words, "--help", folder=tmp_path)
        assert done.returncode == 0 and done.stdout.startswith("usage: salun "), done.stderr

    def test_a_former_name_is_no_module(self):
        with pytest.raises(ImportError, match="from salun_diffusers import erase"):
            runpy.run_module("salun_diffusers.erase")
        import salun_diffusers

        assert callable(salun_diffusers.erase) and salun_diffusers.erase.__module__ == "salun_diffusers.diffusion.erase"

    def test_shims_are_short(self):
        shims = [
            ROOT / "erase.py",
            *(path for path in (ROOT / "scripts").glob("*.py") if "`salun " in path.read_text()[:40]),
        ]
        assert len(shims) == 10
        assert all(len(path.read_text().splitlines()) <= 8 for path in shims)
