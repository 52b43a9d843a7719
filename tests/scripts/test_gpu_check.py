"""The check on a GPU, rehearsed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def test_parts_become_one_file_and_faults_are_named(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = (
        '<testcase name="good"/><testcase name="bad"><failure/></testcase><testcase name="worse"><error/></testcase>'
    )
    for name in ("step", "memory", "end-to-end"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"of": name}))
    check = script("gpu_check").main
    (tmp_path / "tests.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert check([str(tmp_path), str(tmp_path / "all.json")]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == ["failed: bad", "failed: worse"]
    (tmp_path / "tests.xml").write_text('<testsuites><testcase name="good"/></testsuites>')
    assert check([str(tmp_path), str(tmp_path / "all.json")]) == 0
    found = json.loads((tmp_path / "all.json").read_text())
    assert found["tests"] == {"passed": 1, "failed": []} and found["end-to-end"] == {"of": "end-to-end"}
    (tmp_path / "memory.json").unlink()
    assert check([str(tmp_path), str(tmp_path / "all.json")]) == 1
    assert json.loads((tmp_path / "all.json").read_text())["missing"] == ["memory"]


@pytest.mark.slow
def test_the_rehearsal_runs_everything(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), "--rehearse", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["tests"]["passed"] >= 8 and found["tests"]["failed"] == [] and found["missing"] == []
    assert found["step"]["ours"] and found["memory"]["scenarios"] and found["end-to-end"]["stages"]
