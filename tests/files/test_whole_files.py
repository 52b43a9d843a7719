"""A file or folder has its name only when it is whole, and the mode that the umask gives, whatever wrote it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from salun_diffusers.errors import UserError
from salun_diffusers.files.stored_weights import write_tensors
from salun_diffusers.files.whole_files import (
    full_disk_is_told,
    partial_of,
    whole_file,
    whole_folder,
    write_json,
    write_text,
)


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestModes:
    """Expected: 0o666 less the umask, as a file of one's own has."""

    def test_of_tensors(self, tmp_path: Path, umask: int) -> None:
        write_tensors(tmp_path / "a.safetensors", {"w": torch.ones(3)})
        assert mode(tmp_path / "a.safetensors") == 0o666 & ~umask

    def test_of_text(self, tmp_path: Path, umask: int) -> None:
        write_text(tmp_path / "a.txt", "a")
        assert mode(tmp_path / "a.txt") == 0o666 & ~umask

    def test_of_a_folder_whose_writer_hides_its_files(self, tmp_path: Path, umask: int) -> None:
        with whole_folder(tmp_path / "a") as partial:
            (partial / "deep").mkdir()
            for name in ("one", "deep/two"):
                (partial / name).write_text("x")
                (partial / name).chmod(0o600)
        assert {mode(tmp_path / "a" / name) for name in ("one", "deep/two")} == {0o666 & ~umask}

    def test_a_link_in_a_folder_leaves_what_it_points_at(self, tmp_path: Path) -> None:
        (tmp_path / "private").write_text("x")
        (tmp_path / "private").chmod(0o600)
        with whole_folder(tmp_path / "a") as partial:
            (partial / "link").symlink_to(tmp_path / "private")
        assert mode(tmp_path / "private") == 0o600


class TestWholeOrNotAtAll:
    def test_a_file_that_fails_leaves_the_old_one(self, tmp_path: Path) -> None:
        write_json(tmp_path / "a.json", [1])
        with pytest.raises(RuntimeError), whole_file(tmp_path / "a.json") as partial:
            partial.write_text("half")
            raise RuntimeError
        assert (tmp_path / "a.json").read_text() == "[\n  1\n]\n"
        assert [path.name for path in tmp_path.iterdir()] == ["a.json"]

    def test_a_folder_that_fails_leaves_the_old_one(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "old").touch()
        with pytest.raises(RuntimeError), whole_folder(tmp_path / "a") as partial:
            (partial / "new").touch()
            raise RuntimeError
        assert [path.name for path in tmp_path.rglob("*")] == ["a", "old"]

    def test_a_folder_replaces_the_old_one_whole(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "old").touch()
        with whole_folder(tmp_path / "a") as partial:
            (partial / "new").touch()
            assert (tmp_path / "a" / "old").exists(), "the old one stays until the new one is whole"
        assert [path.name for path in tmp_path.rglob("*")] == ["a", "new"]

    def test_what_a_killed_writer_left_is_written_over(self, tmp_path: Path) -> None:
        partial_of(tmp_path / "a").mkdir()
        (partial_of(tmp_path / "a") / "half").touch()
        with whole_folder(tmp_path / "a") as partial:
            (partial / "new").touch()
        assert [path.name for path in tmp_path.rglob("*")] == ["a", "new"]

    def test_two_processes_that_share_a_file_write_apart(self, tmp_path: Path) -> None:
        with whole_file(tmp_path / "a", shared=True) as mine:
            assert mine != partial_of(tmp_path / "a") and str(os.getpid()) in mine.name
            mine.touch()


class TestPowerLoss:
    """What the disk was told to hold, in order: contents before a name promises them, then the name."""

    @pytest.fixture
    def flushed(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
        """Names behind the descriptors that were flushed, and whether the final name was there then."""
        seen: list[tuple[str, bool]] = []
        flush = os.fsync

        def fsync(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            place = path if path.is_dir() else path.parent
            seen.append((path.name, any((up / "final").exists() for up in (place, *place.parents))))
            flush(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        return seen

    def test_of_a_file(self, tmp_path: Path, flushed: list[tuple[str, bool]]) -> None:
        write_text(tmp_path / "final", "x")
        assert flushed == [(".final.partial", False), (tmp_path.name, True)]

    def test_of_a_folder(self, tmp_path: Path, flushed: list[tuple[str, bool]]) -> None:
        """Its files, the names in it and in folders of it, then its own name in the folder above."""
        with whole_folder(tmp_path / "final") as partial:
            (partial / "deep").mkdir()
            (partial / "one").write_text("x")
            (partial / "deep" / "two").write_text("x")
        *before, last = flushed
        assert sorted(before) == sorted((name, False) for name in ("one", "two", "deep", ".final.partial"))
        assert last == (tmp_path.name, True)

    def test_of_a_folder_that_replaces_another(self, tmp_path: Path, flushed: list[tuple[str, bool]]) -> None:
        (tmp_path / "final").mkdir()
        with whole_folder(tmp_path / "final") as partial:
            (partial / "one").write_text("x")
        assert flushed[-1] == (tmp_path.name, True) and ("one", True) in flushed


def test_a_full_disk_is_told_to_programs_that_resume_nothing():
    """`salun mask plot` was advised a flag of `salun erase`, which it refuses."""
    with pytest.raises(UserError, match="the same command again, `salun erase` with") as told, full_disk_is_told("m"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(told.value).startswith("The disk is full: m could not be written.")
