"""Runs a program as several processes, as torchrun would; starting each costs another import of torch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def run_two(program: Path, *words: str, **environment: str) -> tuple[str, ...]:
    """Run `program` as ranks 0 and 1 of a CPU group, one thread each; both must succeed. Returns what each printed."""
    return run_many(2, program, *words, **environment)


def run_many(count: int, program: Path, *words: str, **environment: str) -> tuple[str, ...]:
    """Run `program` as so many ranks of a CPU group, one thread each; all must succeed. Returns what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        **environment,
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, str(program), *words], env={**os.environ, **common, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in map(str, range(count))
    ]  # fmt: skip
    try:
        printed = []
        for rank in ranks:
            shown, errors = rank.communicate(timeout=240)
            assert rank.returncode == 0, errors[-3000:]
            printed.append(shown)
        return tuple(printed)
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
