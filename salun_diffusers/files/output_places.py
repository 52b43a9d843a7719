"""Where a program may write: what cannot be is told before anything heavy is done."""

from __future__ import annotations

import os
from pathlib import Path

from salun_diffusers.errors import UserError
from salun_diffusers.files.pipeline_folder import components, model_index


def require_writable(folder: str | Path, flag: str) -> None:
    """Refuse a folder that cannot be made or written in; makes nothing.

    Raises:
        UserError: Naming the flag and what is in the way.
    """
    wanted = Path(folder).expanduser().absolute()
    existing = next(path for path in (wanted, *wanted.parents) if path.exists() or path.is_symlink())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        is_there = "is a file" if existing.exists() else "is a link to nowhere"
        reason = "may not be written to" if existing.is_dir() else is_there
        raise UserError(f"{flag} must be a folder that can be written; {wanted} cannot: {existing} {reason}.")


def require_outside_components(place: str | Path, base: Path, flag: str) -> None:
    """Refuse to write into a component of a pipeline: it would be another model then, to whatever knows its files.

    Beside `model_index.json` there is no harm: folders that are no component are none of the pipeline.

    Raises:
        UserError: Naming the flag and the component.
    """
    wanted = Path(place).expanduser().resolve()
    for component in components(model_index(base)):
        if wanted.is_relative_to((base / component).resolve()):
            raise UserError(
                f"{flag} must lie outside of the base's components, {place} is in {base / component}: what is "
                "written there would be part of the model."
            )
