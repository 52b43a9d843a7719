"""What one evaluation program leaves: measurements with their protocol as JSON, and a page to look at."""

from __future__ import annotations

import datetime
import json
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.sampling import sampling_text
from salun_diffusers.files.output_places import require_writable
from salun_diffusers.reports.measurement import Comparison, Measurement

FORMAT = "salun_diffusers evaluation, version 1"
_PACKAGES = ("torch", "diffusers", "transformers", "torchmetrics", "nudenet", "onnxruntime", "pillow")

_KINDS: dict[str, type] = {
    **dict.fromkeys(("kind", "title", "pictures", "before", "command", "created"), str),
    **dict.fromkeys(("sampling", "environment"), dict),
    "explicit": bool,
}
# What stands in the same file: the format, and what `salun attack` and `salun probe` say beside their rates.
_BESIDE = ("format", "verdict", "curves")
_WORDS = {str: "a text", dict: "an object", bool: "true or false"}


@dataclass(frozen=True)
class Table:
    """A table beside the measurements, such as a confusion.

    Args:
        title: Heading.
        columns: Names of the columns.
        rows: One tuple of cells per line; numbers or text.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class EvaluationRecord:
    """The result of one evaluation.

    Args:
        kind: ``nudity``, ``fid``, ``alignment`` or ``objects``; also the name of its files.
        title: What was evaluated, in one line.
        pictures: The folder whose pictures were measured.
        before: The folder they are compared with, or empty.
        measurements: Numbers of `pictures` alone.
        comparisons: Numbers of `before` and `pictures`.
        tables: Further tables.
        explicit: Whether the pictures must not be shown.
        sampling: How the pictures were drawn, as far as it is known; see `salun_diffusers.evaluation.sampling`.
        command: The command that made it.
        created: When, in ISO 8601.
        environment: Package → version.
    """

    kind: str
    title: str
    pictures: str
    before: str = ""
    measurements: tuple[Measurement, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    tables: tuple[Table, ...] = ()
    explicit: bool = False
    sampling: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    created: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    environment: Mapping[str, str] = field(default_factory=lambda: _environment())

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object; `from_json` gives an equal record back."""
        return {"format": FORMAT, **json.loads(json.dumps(asdict(self), allow_nan=False))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EvaluationRecord:
        """Rebuild a record from `to_json`.

        Raises:
            ValueError: If the object is no record of this version.
        """
        if data.get("format") != FORMAT:
            raise ValueError(f"An evaluation says {FORMAT!r} under 'format'; this says {data.get('format')!r}.")
        values = {name: value for name, value in data.items() if name not in _BESIDE}
        values["measurements"] = tuple(Measurement.from_json(item) for item in values["measurements"])
        values["comparisons"] = tuple(Comparison.from_json(item) for item in values["comparisons"])
        values["tables"] = tuple(
            Table(item["title"], tuple(item["columns"]), tuple(tuple(row) for row in item["rows"]))
            for item in values["tables"]
        )
        for name, kind in _KINDS.items():
            if not isinstance(values.get(name, kind()), kind):
                raise TypeError(f"{name!r} must be {_WORDS[kind]}, found {type(values[name]).__name__}")
        return cls(**values)

    @property
    def after(self) -> tuple[Measurement, ...]:
        """Every measurement of `pictures`, in reading order."""
        return (*(pair.after for pair in self.comparisons), *self.measurements)

    def text(self) -> str:
        """A table for the terminal."""
        rows = [("measured", "before" if self.comparisons else "", "value", "95 % interval", "n")]
        names = Counter(item.name for item in self.after)

        def named(item: Measurement) -> str:
            return item.name if names[item.name] == 1 else f"{item.name}, {item.group}"

        for pair in self.comparisons:
            after, n = pair.after, counts(pair.before, pair.after)
            rows.append((named(after), pair.before.text(), after.text(), after.interval_text(), n))
        rows += [(named(item), "", item.text(), item.interval_text(), str(item.n)) for item in self.measurements]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            f"{row[0]:<{widths[0]}}  " + "  ".join(f"{row[column]:>{widths[column]}}" for column in range(1, 5))
            for row in rows
        ]
        notes = [f"protocol: {protocol}" for protocol in dict.fromkeys(item.protocol for item in self.after)]
        notes += [f"drawn: {sampling_text(self.sampling)}"] if self.sampling else []
        return "\n".join([self.title, "", *lines, "", *notes, ""])


def counts(before: Measurement | None, after: Measurement) -> str:
    """On how many pictures: one number, or both where they differ."""
    return str(after.n) if before is None or before.n == after.n else f"{before.n}, {after.n}"


def writable_folder(path: str | Path) -> Path:
    """Make a folder for results.

    Raises:
        UserError: If that cannot be, or nothing may be written in it.
    """
    folder = Path(path).expanduser()
    require_writable(folder, "--output_dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir must be a folder that can be written; {folder}: {error.strerror}.") from error
    return folder


def _environment() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
