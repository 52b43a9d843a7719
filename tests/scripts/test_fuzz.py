"""Damaged files end in one line or are read; what is under a hash is read as it was written, or not at all."""

from __future__ import annotations

import random
from pathlib import Path

import fuzz
import pytest
from fuzz_readers import Reader

from salun_diffusers.errors import UserError


def bad(found: dict) -> dict:
    return {name: {k: n for k, n in counts.items() if k.isupper()} for name, counts in found.items() if counts}


@pytest.mark.parametrize("cases", [500, pytest.param(5000, marks=pytest.mark.slow)])
def test_no_reader_ends_in_a_traceback_or_takes_something_wrong(tmp_path: Path, cases: int) -> None:
    told: list[str] = []
    found = fuzz.fuzz(fuzz.FuzzConfig(cases=cases), tmp_path, told.append)
    assert told == []
    assert not any(bad(found).values())
    assert sum(sum(counts.values()) for counts in found.values()) == cases
    # The mutators do their work: most files are refused, some get through every reader that has no hash.
    assert sum(counts["refused"] for counts in found.values()) > cases / 3


class TestItWouldBeSeen:
    """Each kind of fault, planted in a reader of its own."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        (tmp_path / "a").write_text("good")
        return tmp_path

    def outcome(self, folder: Path, read, hashed: bool = False) -> str:
        reader = Reader("a", "a", "bytes", read, hashed)
        reader.expected = "good"
        return fuzz.try_one(reader, folder, b"evil").split()[0]

    def test_a_traceback(self, file: Path) -> None:
        assert self.outcome(file, lambda home: {}["x"]) == "TRACEBACK"

    def test_two_lines(self, file: Path) -> None:
        def read(home: Path) -> None:
            raise UserError("one\ntwo")

        assert self.outcome(file, read) == "TRACEBACK"

    def test_something_wrong(self, file: Path) -> None:
        assert self.outcome(file, lambda home: (home / "a").read_text(), hashed=True) == "WRONG"
        assert self.outcome(file, lambda home: (home / "a").read_text()) == "read"
        assert self.outcome(file, lambda home: "good", hashed=True) == "same"

    def test_something_slow(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fuzz, "SLOW", -1.0)
        assert self.outcome(file, lambda home: "good") == "SLOW"

    def test_the_same_seed_gives_the_same_damage(self) -> None:
        reader, data = Reader("a", "a", "json", lambda home: None), b'{"a": [1, 2, {"b": null}], "c": "text"}'
        first, second = ([fuzz.damaged(reader, data, random.Random(n)) for n in range(200)] for _ in range(2))
        assert first == second and len(set(first)) > 100
