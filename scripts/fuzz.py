"""Give every reader files that were damaged on purpose: nothing may end in a traceback, and nothing wrong be accepted.

    python scripts/fuzz.py --cases 5000

Each case takes a good file, changes it by one of the mutators (of bytes, of JSON, of the JSON in a safetensors header),
and reads it. It may be refused in one line, or read. What is under a hash may be read only with the content that was
written; of the rest nothing can be said but that it was read. A case has a number, by which the seed makes it again.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fuzz_readers import Reader, readers

from salun_diffusers.arguments import ANY_SEED, setting
from salun_diffusers.errors import UserError
from salun_diffusers.programs.program import Program

SLOW, LARGE = 5.0, 1_000_000_000  # seconds a case, bytes that it may add to the process
_HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 2**70, 10**300, 0.5, "", "../../etc/passwd", "/etc/passwd", "a\0b", "\u202e", "x" * 5000,
    [], {}, [[]], [None], {"a": {"b": {}}}, ["../x"], float("nan"), float("inf"),
)  # fmt: skip


@dataclass(frozen=True)
class FuzzConfig:
    """Settings of the fuzzing."""

    cases: int = setting(5000, "Damaged files in all, shared by the readers.", minimum=1)
    seed: int = setting(0, "Seed of all damage.", minimum=0, maximum=ANY_SEED)
    only: tuple[str, ...] = setting((), "Readers to try; all by default.")


def flip(data: bytes, rng: random.Random) -> bytes:
    """One bit turned over."""
    if not data:
        return b"\1"
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    """The end is missing."""
    return data[: rng.randrange(len(data) + 1)]


def drop(data: bytes, rng: random.Random) -> bytes:
    """A piece of the middle is missing."""
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.randrange(1, 64) :]


def insert(data: bytes, rng: random.Random) -> bytes:
    """Some bytes too many."""
    start = rng.randrange(len(data) + 1)
    return data[:start] + rng.randbytes(rng.randrange(1, 64)) + data[start:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    """A piece stands there twice."""
    start = rng.randrange(len(data) + 1)
    piece = data[start : start + rng.randrange(1, 200)]
    return data[:start] + piece + data[start:]


def swap(data: bytes, rng: random.Random) -> bytes:
    """Something else altogether: a picture, a pickle's first bytes, nothing, deep JSON, another encoding."""
    return rng.choice(
        [
            b"",
            b"\x89PNG\r\n\x1a\n",
            b"\x80\x04\x95",
            b"[" * 50_000,
            b"{}",
            b"null",
            data.decode("latin-1").encode("utf-16"),
        ]
    )


def in_json(data: bytes, rng: random.Random) -> bytes:
    """One value of a JSON text is another, has gone, stands twice or under another name."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):  # The second mutator meets what the first one left.
        return flip(data, rng)
    places: list[tuple[Any, Any]] = []

    def look(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            look(node[key])

    look(content)
    if not places:
        return json.dumps(rng.choice(_HOSTILE)).encode()
    node, key = rng.choice(places)
    what = rng.randrange(4)
    if what == 0:
        del node[key]
    elif what == 1 and isinstance(node, dict):
        node[f"{key}x"] = node.pop(key)
    elif what == 2 and isinstance(node, dict):
        text = json.dumps(content)
        return text.replace(
            f"{json.dumps(str(key))}:", f"{json.dumps(str(key))}: 1, {json.dumps(str(key))}:", 1
        ).encode()
    else:
        node[key] = rng.choice(_HOSTILE)
    return json.dumps(content).encode()


def in_header(data: bytes, rng: random.Random) -> bytes:
    """The JSON in a safetensors header is changed, its length told truly or not."""
    size = int.from_bytes(data[:8], "little")
    if size > len(data):
        return flip(data, rng)
    header = in_json(data[8 : 8 + size], rng)
    told = len(header) if rng.random() < 0.8 else rng.choice([0, 2**40, 2**63, size])
    return told.to_bytes(8, "little") + header + data[8 + size :]


_OF_BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (flip, cut, drop, insert, repeat, swap)


def damaged(reader: Reader, data: bytes, rng: random.Random) -> bytes:
    """A good file's bytes after one mutator, or rarely two."""
    own = {"json": in_json, "safetensors": in_header}.get(reader.kind)
    for _ in range(1 if rng.random() < 0.9 else 2):
        data = own(data, rng) if own and rng.random() < 0.6 else rng.choice(_OF_BYTES)(data, rng)
    return data


def try_one(reader: Reader, folder: Path, data: bytes) -> str:
    """Read a damaged file, and say how that went: refused, same, read, WRONG, TRACEBACK, SLOW or LARGE."""
    reader.file(folder).write_bytes(data)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    try:
        content = reader.read(folder)
    except UserError as error:
        outcome = "TRACEBACK (line break)" if "\n" in str(error) else "refused"
    except Exception as error:
        outcome = f"TRACEBACK {type(error).__name__}: {str(error)[:100]!r}"
    else:
        same = content == reader.expected
        outcome = "same" if same else "WRONG" if reader.hashed else "read"
    if time.perf_counter() - started > SLOW:
        return "SLOW"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return "LARGE" if grown > LARGE else outcome


def fuzz(config: FuzzConfig, folder: Path, told: Callable[[str], object] = sys.stderr.write) -> dict[str, Counter[str]]:
    """Try all readers.

    Args:
        config: How often, and which.
        folder: An empty one, for the files.
        told: Gets a line for every case that must not be.

    Returns:
        Outcomes by reader.
    """
    chosen = [reader for reader in readers(folder) if not config.only or reader.name in config.only]
    if not chosen:
        raise UserError(f"--only knows {', '.join(reader.name for reader in readers(folder / 'again'))}.")
    found: dict[str, Counter[str]] = {}
    for number, reader in enumerate(chosen):
        outcomes = found.setdefault(reader.name, Counter())
        home = folder / reader.name
        good = reader.file(home).read_bytes()
        for case in range(number, config.cases, len(chosen)):
            rng = random.Random(f"{config.seed}/{reader.name}/{case}")
            place = folder / "case"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(home, place, symlinks=True)
            outcome = try_one(reader, place, damaged(reader, good, rng))
            outcomes[outcome.split()[0]] += 1
            if outcome.split()[0].isupper():
                told(f"{reader.name}, case {case}: {outcome}\n")
    return found


def table(found: dict[str, Counter[str]]) -> str:
    """Outcomes as Markdown."""
    columns = ("refused", "same", "read", "WRONG", "TRACEBACK", "SLOW", "LARGE")
    rows = [[name, sum(counts.values()), *(counts[column] for column in columns)] for name, counts in found.items()]
    rows.append(["all", *(sum(int(row[at]) for row in rows) for at in range(1, 2 + len(columns)))])
    lines = ["| reader | files | " + " | ".join(columns) + " |", "|---|" + "--:|" * (1 + len(columns))]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""])


def work(config: FuzzConfig, command: str) -> tuple[str, int]:
    """Fuzz and count; exit code 1 if anything happened that must not."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="salun-fuzz-") as folder:
        found = fuzz(config, Path(folder))
    bad = sum(counts[name] for counts in found.values() for name in counts if name.isupper())
    return table(found), 1 if bad else 0


main = Program("scripts/fuzz.py", FuzzConfig, work, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
