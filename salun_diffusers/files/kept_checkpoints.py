"""The checkpoints of a run: which there are, and whether one is what was written, without loading any."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.json_files import read_object
from salun_diffusers.files.whole_files import check_whole, sha256_of

TENSORS, STATE = "state.safetensors", "state.json"


def checkpoints(root: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [path for path in root.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def latest_checkpoint(root: Path) -> Path | None:
    """The checkpoint of a run with the highest step, if there is one."""
    return next(reversed(checkpoints(root)), None)


def whole_checkpoint(root: Path, before: Path | None = None) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint with the highest step that is as it was written, and its plain values; None where none is.

    Args:
        root: The run's folder.
        before: Only those of fewer steps than this one count.
    """
    known = checkpoints(root)
    for path in reversed(known if before not in known else known[: known.index(before)]):
        try:
            return path, read_state(path)
        except UserError:
            continue
    return None


def named_checkpoint(root: Path, name: str) -> Path:
    """The checkpoint folder of a run, by name or path.

    Raises:
        UserError: If there is none, or it is damaged; an older one that is whole is named then.
    """
    path = root / Path(name).name
    if not path.is_dir():
        found = ", ".join(item.name for item in checkpoints(root)) or "none"
        raise UserError(f"--resume_from_checkpoint: {path} does not exist; checkpoints there: {found}.")
    if not any(path.glob("*.safetensors")):
        raise UserError(f"--resume_from_checkpoint: {path} is no checkpoint of this program; it holds no safetensors.")
    try:
        _read(path)
    except (OSError, ValueError) as error:
        older = whole_checkpoint(root, before=path)
        way_out = f"{older[0].name} before it is whole" if older else "no older one is whole"
        raise UserError(f"--resume_from_checkpoint: {path} is damaged ({one_line(error, 160)}); {way_out}.") from error
    return path


def read_state(folder: Path) -> dict[str, Any]:
    """The plain values of a checkpoint, sure to be as they were written, and its tensors likewise.

    Raises:
        UserError: If a file of the checkpoint is missing, damaged, or not as it was written; the message names the
            folder.
    """
    try:
        return _read(folder)
    except (OSError, ValueError) as error:
        raise damaged(folder, error) from error


def _read(folder: Path) -> dict[str, Any]:
    check_whole(folder / TENSORS)
    state = read_object(folder / STATE)
    if state.pop("sha256", None) != seal(state, sha256_of(folder / TENSORS)):
        raise UserError("its hash is another")
    return state


def damaged(folder: Path, error: Exception) -> UserError:
    """What is told of a checkpoint that cannot be used."""
    return UserError(f"The checkpoint {folder} is damaged ({one_line(error, 160)}); delete it to start over.")


def seal(values: Mapping[str, Any], tensors: str) -> str:
    """SHA-256 over the plain values of a state and the hash of its tensors."""
    return hashlib.sha256(json.dumps([tensors, dict(values)], sort_keys=True).encode()).hexdigest()
