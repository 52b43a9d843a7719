"""The folder of one run: its paths, what has been done in it, and how it is written."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salun_diffusers.base_model import components, is_pickle, model_index
from salun_diffusers.checkpoint import replace_folder
from salun_diffusers.errors import UserError


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run.

    Args:
        root: The output directory.
    """

    root: Path

    @property
    def pipeline(self) -> Path:
        """The erased pipeline."""
        return self.root / "pipeline"

    @property
    def mask(self) -> Path:
        """The mask file."""
        return self.root / "mask.safetensors"

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
        partial = self.root / f".{name}.partial"
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(self.root / name)

    def stage_is_done(self, stage: str, mark: str) -> bool:
        """Whether `stage` ended here with the same fingerprint."""
        path = self.work / f"{stage}.json"
        return path.exists() and json.loads(path.read_text()).get("fingerprint") == mark

    def mark_done(self, stage: str, mark: str) -> None:
        """Record that `stage` ended; call it last, after the stage's files are complete."""
        self.work.mkdir(parents=True, exist_ok=True)
        partial = self.work / f".{stage}.partial"
        partial.write_text(json.dumps({"fingerprint": mark}))
        partial.replace(self.work / f"{stage}.json")


def fingerprint(**parts: Any) -> str:
    """SHA-256 of everything that a stage's output depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def identity_of(folder: Path) -> str:
    """A fingerprint of a pipeline folder: the SHA-256 of every file that erasing reads."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not is_pickle(path) and not path.relative_to(folder).parts[0].startswith("."):
            digest.update(str(path.relative_to(folder)).encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


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
    if output_dir is None:
        root = _numbered(Path("runs"), concept, details, resume is not None, identity)
    else:
        root = Path(output_dir).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--output_dir must be a folder that can be written; {root}: {error.strerror}.") from error
    occupied = any(path.name != "run.json" for path in root.iterdir())
    record = root / "run.json"
    known = json.loads(record.read_text())["identity"] if record.exists() else None
    if resume is None and (occupied or known):
        raise UserError(
            f"--output_dir must be empty or new, {root} is not; choose another, or go on with the run in it by "
            "--resume_from_checkpoint latest."
        )
    if resume is not None and known is not None and known != identity:
        raise UserError(
            f"{root} belongs to a run with other settings (see its config.json); resuming needs the same command."
        )
    if resume is not None and known is None and occupied:
        raise UserError(f"{root} is no run of this program: it has no run.json to resume from.")
    run = RunFolder(root)
    run.write_json("run.json", {"format": "salun_diffusers.run", "version": 1, "identity": identity})
    return run


def _numbered(parent: Path, concept: str, details: str, resume: bool, identity: str) -> Path:
    numbered = sorted(path for path in parent.glob("[0-9][0-9][0-9][0-9]-*") if path.is_dir())
    if resume:
        for path in reversed(numbered):
            record = path / "run.json"
            known = json.loads(record.read_text())["identity"] if record.exists() else None
            if known == identity and not RunFolder(path).finished:
                return path
    number = int(numbered[-1].name[:4]) + 1 if numbered else 0
    slug = re.sub(r"[^a-z0-9]+", "-", f"{concept}-{details}".lower()).strip("-")[:80]
    return parent / f"{number:04d}-{slug}"


@contextmanager
def full_disk_is_told(what: str) -> Iterator[None]:
    """Turn a full disk into one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"The disk is full: {what} could not be written, and nothing half-written was left.") from error
    except Exception as error:  # safetensors reports a full disk in a type and text of its own.
        if "No space left" not in str(error):
            raise
        raise UserError(f"The disk is full: {what} could not be written, and nothing half-written was left.") from error


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse to start what cannot be stored.

    Raises:
        UserError: If fewer than `needed` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"{what} needs about {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free.")


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def write_pipeline(base: Path, target: Path, denoiser: Any, *, name: str, save: Mapping[str, Any]) -> None:
    """Write an erased pipeline: the denoiser anew, everything else byte for byte from the base.

    The folder appears under its final name only when it is complete. Pickles are left behind.

    Args:
        base: The base pipeline.
        target: The folder to make.
        denoiser: A diffusers model.
        name: Name of its component folder.
        save: Keyword arguments for its `save_pretrained`.

    Raises:
        UserError: If the disk is full.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    index = model_index(base)
    try:
        with full_disk_is_told("the erased pipeline"):
            partial.mkdir(parents=True)
            for component in components(index):
                source = base / component
                if component != name and source.is_dir():
                    shutil.copytree(source, partial / component, ignore=_pickles)
            for path in base.iterdir():
                if path.is_file() and not is_pickle(path):
                    shutil.copy(path, partial / path.name)
            denoiser.save_pretrained(partial / name, **save)
            # The weights are new, the configuration is the base's, to the byte.
            shutil.copy(base / name / "config.json", partial / name / "config.json")
            replace_folder(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _pickles(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if is_pickle(Path(name))]
