"""The kernels compile for GPUs that are not here; tests/masks/test_selected_weights.py runs them, interpreted."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

from salun_diffusers.masks.packed_bits import ones_before, pack

COMPILE = """
import inspect
import warnings
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from salun_diffusers.masks import bit_kernels
warnings.simplefilter("ignore")
for kernel, last in ((bit_kernels._take, "out"), (bit_kernels._put, "values")):
    for dtype in ("fp32", "fp16", "bf16"):
        names = {"flat": "*" + dtype, "packed": "*u8", "starts": "*i32", last: "*" + dtype, "size": "i32"}
        if "constexprs" in inspect.signature(ASTSource).parameters:
            source = ASTSource(kernel, {**names, "block": "constexpr"}, constexprs={"block": bit_kernels.BLOCK})
        else:  # Triton 3.2
            source = ASTSource(kernel, names, constants={"block": bit_kernels.BLOCK})
        for capability in (75, 80, 90):
            compiled = compile(source, target=GPUTarget("cuda", capability, 32))
            print(kernel.__name__, dtype, capability, len(compiled.asm["cubin"]) > 1000)
"""
FALLBACK = """
import torch
from salun_diffusers.masks import bit_kernels
print(bit_kernels.kernels_run(torch.device("cpu")))
"""


def said(program: str, **environment: str) -> tuple[list[str], str]:
    words = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]) + os.pathsep + os.environ.get("PYTHONPATH", "")}
    words.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, env={**words, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines(), done.stderr


def test_ranks_at_the_blocks() -> None:
    """Of 25 positions, every third from 0 on; blocks of one byte begin at 0, 8, 16, 24."""
    flags = torch.arange(25) % 3 == 0
    found = ones_before(pack(flags), 1)
    assert found.tolist() == [0, 3, 6, 8] and found.dtype == torch.int32


if find_spec("triton"):  # It has builds for Linux alone.

    def test_the_kernels_compile_for_gpus() -> None:
        lines, _ = said(COMPILE)
        assert len(lines) == 18 and all(line.endswith("True") for line in lines)

    def test_the_trial_says_whether_they_run() -> None:
        """Interpreted they run here, and as GPU code they do not, which is told and no error."""
        assert said(FALLBACK, TRITON_INTERPRET="1")[0] == ["True"]
        lines, told = said(FALLBACK)
        assert lines == ["False"] and told.startswith("note: Triton runs no kernel on cpu (")
