"""A finished run as something to make more of: where its result lies, and what it was asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salun_diffusers.errors import UserError
from salun_diffusers.files.json_files import read_object
from salun_diffusers.files.run_folder import RunFolder


@dataclass(frozen=True)
class RunSource:
    """A run's folder and its record.

    Args:
        root: The folder.
        record: Its ``config.json``.
    """

    root: Path
    record: Mapping[str, Any]

    @classmethod
    def found(cls, name: str) -> RunSource | None:
        """The run in a folder; None where the name is that of a pipeline, or of nothing here.

        Raises:
            UserError: If there is a run that has no result, or no record that can be read.
        """
        root = Path(name).expanduser()
        if not (root / "run.json").is_file():
            return None
        run = cls(root, read_object(root / "config.json") if (root / "config.json").is_file() else {})
        if run.pipeline is None and run.adapter is None:
            raise UserError(
                f"{name} is a run without a result: it has neither pipeline/ nor adapter/. Let it end first, by "
                f"--output_dir {name} --resume_from_checkpoint latest."
            )
        return run

    @property
    def pipeline(self) -> Path | None:
        """The erased pipeline; None of a run that made an adapter."""
        folder = RunFolder(self.root).pipeline
        return folder if (folder / "model_index.json").is_file() else None

    @property
    def adapter(self) -> Path | None:
        """The adapter; None of a run that made a pipeline."""
        folder = RunFolder(self.root, "adapter").pipeline
        return folder if folder.is_dir() else None

    def told(self, name: str) -> str | None:
        """A text of the record; None where it says none."""
        value = self.record.get(name)
        return value if isinstance(value, str) else None


def named_by(run: str) -> str:
    """The base that a run's record names: the word that was typed, which meant a place where it was typed."""
    return f"the base that {run} names (another place of it: --base)"


@contextmanager
def told_of(base: str) -> Iterator[None]:
    """Say of a base that is not to be had which one it is.

    Args:
        base: Such as ``--base``, or what `named_by` says.

    Raises:
        UserError: That of the block, which begins with it.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{base} cannot be used: {error}") from error
