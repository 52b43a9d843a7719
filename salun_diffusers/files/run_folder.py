"""The folder of one run: its paths, what has been done in it, and how it is written."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from salun_diffusers.errors import Interrupted, UserError, tell
from salun_diffusers.files.base_card import is_card
from salun_diffusers.files.component_files import pipeline_files
from salun_diffusers.files.json_files import read_object
from salun_diffusers.files.kept_checkpoints import checkpoints, named_checkpoint
from salun_diffusers.files.output_places import require_writable
from salun_diffusers.files.whole_files import full_disk_is_told, partial_of, sha256_of, write_json

LOCK = ".lock"


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run.

    Args:
        root: The output directory.
        result: Name of the folder with what the run makes: a pipeline, or an adapter beside one.
    """

    root: Path
    result: str = "pipeline"

    @property
    def pipeline(self) -> Path:
        """The erased pipeline, or the adapter that erases."""
        return self.root / self.result

    @property
    def mask(self) -> Path:
        """The mask file."""
        return self.root / "mask.safetensors"

    @property
    def inclusion(self) -> Path:
        """The probabilities that scale updates or draw a mask for every step, if the run has any."""
        return self.root / "inclusion.safetensors"

    @property
    def patch(self) -> Path:
        """The patch file, if one was asked for."""
        return self.root / "patch.safetensors"

    @property
    def sparse(self) -> Path:
        """The sparse adapter, if one was asked for."""
        return self.root / "sparse"

    @property
    def work(self) -> Path:
        """Latent sets and saliency, kept so that an interrupted run goes on; safe to delete afterwards."""
        return self.root / "work"

    @property
    def samples(self) -> Path:
        """Pictures before and after."""
        return self.root / "samples"

    @property
    def finished(self) -> bool:
        """Whether a run ended here."""
        return (self.root / "report.json").exists()

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file, whole or not at all."""
        write_json(self.root / name, content)

    def stage_is_done(self, stage: str, mark: str) -> bool:
        """Whether `stage` ended here with the same fingerprint, and what it left is what it left then.

        A mark that cannot be read, a file that is gone or has other bytes: the stage is done anew.
        """
        try:
            record = read_object(self.work / f"{stage}.json")
            files = record["files"]
            same = record["fingerprint"] == mark and len(files) > 0
            return same and all(sha256_of(self.root / name) == files[name] for name in files)
        except (UserError, KeyError, TypeError, OSError):
            return False

    def mark_done(self, stage: str, mark: str, *files: Path) -> None:
        """Record that `stage` ended; call it last.

        Args:
            stage: Its name.
            mark: Fingerprint of what decides it.
            *files: What it left.
        """
        hashes = {path.relative_to(self.root).as_posix(): sha256_of(path) for path in files}
        write_json(self.work / f"{stage}.json", {"fingerprint": mark, "files": hashes})

    def kept(self) -> list[str]:
        """What a resumed run would not do again: finished stages, then checkpoints."""
        stages = sorted(self.work.glob("*.json"), key=lambda path: path.stat().st_mtime)
        return [*(path.stem for path in stages), *(path.name for path in checkpoints(self.root))]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep every other process out of the folder while the block runs.

        Raises:
            UserError: If another one is in it.
        """
        lock = self.root / LOCK
        try:
            with FileLock(lock, timeout=0):
                try:
                    yield
                finally:  # Whoever could not have the lock does not come here, and leaves the file to its owner.
                    lock.unlink(missing_ok=True)
        except Timeout as error:
            raise UserError(
                f"{self.root} is in use by another run; wait for its end or choose another folder."
            ) from error


def fingerprint(**parts: Any) -> str:
    """SHA-256 of everything that a stage's output depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def identity_of(folder: Path) -> str:
    """A fingerprint of a pipeline folder: the SHA-256 of every file that erasing reads, which model cards are not."""
    digest = hashlib.sha256()
    for file in pipeline_files(folder):
        if not file.is_pickle and (file.component or not (file.is_weights or is_card(file.name))):
            digest.update(file.name.encode())
            digest.update(bytes.fromhex(sha256_of(file.path)))
    return digest.hexdigest()


def check_output(output_dir: str | None, resume: str | None, identity: str | None = None) -> None:
    """Refuse an output folder or checkpoint that cannot be used; makes nothing.

    Args:
        output_dir: As for `open_run`.
        resume: As for `open_run`.
        identity: As for `open_run`; None while it is not yet known.

    Raises:
        UserError: If the folder holds something else or another run, or cannot be written, or the checkpoint is
            missing or damaged.
    """
    if output_dir is not None and not output_dir.strip():
        raise UserError("--output_dir must name a folder, it is blank; without the flag, runs/ gets a new one.")
    root = _named_root(output_dir, resume)
    require_writable(root or Path("runs"), "--output_dir")
    if root is not None and root.is_dir():
        known = _identity(root)
        if resume is None and (known or any(root.iterdir())):
            raise UserError(
                f"--output_dir must be empty or new, {root} is not; choose another, or go on with the run in it by "
                "--resume_from_checkpoint latest."
            )
        # A run that is killed while it writes its record leaves nothing else.
        own = {partial_of(root / "run.json"), root / LOCK}
        foreign = any(path not in own for path in root.iterdir())
        if resume is not None and known is None and foreign:
            raise UserError(f"{root} is no run of this program: it has no run.json to resume from.")
        if identity is not None and known not in (None, identity):
            raise UserError(
                f"{root} belongs to a run of another base model, seed or set of prompts (see its config.json); "
                "resuming needs the same."
            )
    if resume not in (None, "latest"):
        named_checkpoint(root or Path("runs"), str(resume))


def open_run(output_dir: str | None, concept: str, details: str, *, resume: str | None, identity: str) -> RunFolder:
    """Find or make the folder of a run; never write over another one.

    Args:
        output_dir: The user's choice, or None for ``runs/NNNN-<concept>-<details>``.
        concept: Name of the concept.
        details: What else the name should say.
        resume: ``latest``, a checkpoint folder, or None for a new run.
        identity: Fingerprint of the configuration; with ``latest`` and no `output_dir`, the newest run that has it and
            is not finished goes on.

    Raises:
        UserError: If the folder holds something else, belongs to a run with other settings, or cannot be written.
    """
    check_output(output_dir, resume, identity)
    root = _named_root(output_dir, resume)
    if root is None and resume == "latest":
        root = _unfinished(identity)
        if root is None:
            tell("note", "no unfinished run of these settings lies in runs/, so a new one is begun.")
    try:
        if root is None:
            root = _make_numbered(Path("runs"), f"{concept}-{details}")
        root.mkdir(parents=True, exist_ok=True)
        run = RunFolder(root)
        run.write_json("run.json", {"format": "salun_diffusers.run", "version": 1, "identity": identity})
    except OSError as error:
        where = root or Path("runs")
        raise UserError(f"--output_dir must be a folder that can be written; {where}: {error.strerror}.") from error
    return run


def _identity(root: Path) -> str | None:
    """Fingerprint of the run in a folder, or None where there is no run."""
    record = root / "run.json"
    if not record.is_file():
        return None
    identity = read_object(record).get("identity")
    if not isinstance(identity, str):
        raise UserError(f"{record} is damaged: it names no identity; choose another --output_dir.")
    return identity


def _named_root(output_dir: str | None, resume: str | None) -> Path | None:
    """The folder that the user named, if only as the one that a checkpoint lies in."""
    if output_dir is not None:
        return Path(output_dir).expanduser()
    if resume not in (None, "latest") and len(Path(str(resume)).parts) > 1:
        return Path(str(resume)).expanduser().parent
    return None


def _numbered() -> list[Path]:
    return sorted(path for path in Path("runs").glob("[0-9][0-9][0-9][0-9]-*") if path.is_dir())


def _unfinished(identity: str) -> Path | None:
    for path in reversed(_numbered()):
        if _identity(path) == identity and not RunFolder(path).finished:
            return path
    return None


def _make_numbered(parent: Path, name: str) -> Path:
    """Make the next free ``NNNN-name``; a run that starts at the same moment gets another number."""
    slug = re.sub(r"[\W_]+", "-", name.lower()).encode()[:80].decode(errors="ignore").strip("-")
    earlier = _numbered()
    number = int(earlier[-1].name[:4]) + 1 if earlier else 0
    parent.mkdir(exist_ok=True)
    while True:
        if not any(parent.glob(f"{number:04d}-*")):
            try:
                (parent / f"{number:04d}-{slug}").mkdir()
            except FileExistsError:
                pass
            else:
                return parent / f"{number:04d}-{slug}"
        number += 1


@contextmanager
def under_way(run: RunFolder) -> Iterator[None]:
    """Tell what a run keeps that stops before its end.

    Raises:
        Interrupted: After Ctrl-C.
        UserError: If the disk is full.
    """
    try:
        with full_disk_is_told(f"a file of {run.root}"):
            yield
    except KeyboardInterrupt as stop:
        raise Interrupted(run.root, run.kept()) from stop
