"""Put the parts of a check on a GPU into one file; `gpu_check.sh` makes them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from salun_diffusers.arguments import word
from salun_diffusers.programs.program import Program

BENCHMARKS = ("step", "memory", "end-to-end")


@dataclass(frozen=True)
class GpuCheckConfig:
    """Settings of the check."""

    parts: str = word("Folder of its parts.")
    result: str = word("The file to write.")


def tests_of(file: Path) -> dict[str, Any]:
    """How many tests passed, and the names of those that did not."""
    if not file.is_file():
        return {"passed": 0, "failed": ["no test was run"]}
    cases = list(ElementTree.parse(file).iter("testcase"))
    failed = [
        case.get("name", "") for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    return {"passed": len(cases) - len(failed), "failed": failed}


def work(config: GpuCheckConfig, command: str) -> tuple[str, int]:
    """Write the file; the exit code is 1 where a part is missing or a test failed."""
    parts = Path(config.parts)
    tests = tests_of(parts / "tests.xml")
    found = {name: parts / f"{name}.json" for name in BENCHMARKS}
    missing = [name for name, file in found.items() if not file.is_file()]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    content: dict[str, Any] = {
        "device": device,
        "torch": torch.__version__,
        "tests": tests,
        "missing": missing,
        **{name: json.loads(file.read_text()) for name, file in found.items() if name not in missing},
    }
    Path(config.result).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    faults = [*tests["failed"], *(f"benchmark {name}" for name in missing)]
    whole = content.get("end-to-end", {})
    if torch.cuda.is_available() and (whole.get("verdict"), whole.get("receipt")) != ("erased", True):
        faults.append(f"the demo: verdict {whole.get('verdict')!r}, receipt {whole.get('receipt')}")
    said = f"{tests['passed']} tests passed on {device}; {config.result}\n"
    return said + "".join(f"failed: {name}\n" for name in faults), 1 if faults or not tests["passed"] else 0


main = Program("scripts/gpu_check.py", GpuCheckConfig, work, __doc__ or "", interrupted="nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
