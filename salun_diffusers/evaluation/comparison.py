"""Several runs side by side: read their reports, and refuse what was not measured by one protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from salun_diffusers.errors import UserError, tell
from salun_diffusers.evaluation.record import FORMAT as RECORD_FORMAT
from salun_diffusers.evaluation.record import EvaluationRecord
from salun_diffusers.evaluation.sampling import Sampling, checked, require_same_sampling
from salun_diffusers.files.json_files import parse_json, read_bytes
from salun_diffusers.reports.measurement import Measurement
from salun_diffusers.reports.report import FORMAT as REPORT_FORMAT
from salun_diffusers.reports.report import EvaluationReport

_MOST_BYTES = 256 * 2**20
Key = tuple[str, str]
"""Group of a measurement, and its name with what exactly it was measured on: what shares a row."""


def key_of(item: Measurement) -> Key:
    """The row of a measurement: runs that forgot something else, or on other data, have rows of their own."""
    return item.group, f"{item.name} ({item.subject})" if item.subject else item.name


@dataclass
class Run:
    """One model in a comparison.

    Args:
        name: Heading of its column.
        source: What it was read from; runs before erasing of one source are one run.
        measured: Its numbers, in reading order.
        pictures: Folder of its pictures, where a report names one.
        explicit: Whether they may be shown as a coarse blur only.
        drawn: How the pictures of each measurement were drawn, as far as that is known.
    """

    name: str
    source: str
    measured: dict[Key, Measurement] = field(default_factory=dict)
    pictures: Path | None = None
    explicit: bool = False
    drawn: dict[Key, Sampling] = field(default_factory=dict)

    def accepts(self, measured: Sequence[Measurement]) -> bool:
        """Whether numbers do not contradict those that are there."""
        return all(self.measured.get(key_of(item), item).value == item.value for item in measured)

    def add(self, measured: Sequence[Measurement], pictures: Path | None, explicit: bool, drawn: Sampling) -> None:
        """Take numbers in, with the folder they were measured on and how its pictures were drawn."""
        self.measured |= {key_of(item): item for item in measured}
        self.drawn |= {key_of(item): drawn for item in measured}
        self.pictures = self.pictures or pictures
        self.explicit |= explicit


@dataclass(frozen=True)
class ComparisonTable:
    """Runs and the measurements that they share.

    Args:
        runs: Columns: those before erasing first.
        keys: Rows, grouped, in reading order.
    """

    runs: tuple[Run, ...]
    keys: tuple[Key, ...]

    def row(self, key: Key) -> list[Measurement | None]:
        """One measurement of every run."""
        return [run.measured.get(key) for run in self.runs]

    def example(self, key: Key) -> Measurement:
        """A measurement of the row, for its protocol and direction."""
        return next(item for item in self.row(key) if item is not None)

    def axis(self, groups: Sequence[str], wanted: str | None) -> Key | None:
        """The measurement of an axis: the one named, else the first of the groups in which two runs differ.

        Raises:
            UserError: If the named one was not measured, or on several things.
        """
        if wanted is not None:
            named = [key for key in self.keys if key[1] == wanted] or [
                key for key in self.keys if self.example(key).name == wanted
            ]
            if len(named) != 1:
                names = ", ".join(repr(name) for _, name in named or self.keys)
                raise UserError(f"An axis must be one of the measurements {names}; got {wanted!r}.")
            return named[0]
        for group in groups:
            for key in self.keys:
                if key[0] == group and len({item.value for item in self.row(key) if item is not None}) >= 2:
                    return key
        return None

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = [
            "| measured | " + " | ".join(run.name for run in self.runs) + " | |",
            "|---|" + "--:|" * len(self.runs) + "---|",
        ]
        arrows = {"lower": "↓", "higher": "↑", "neither": ""}
        names = Counter(name for _, name in self.keys)
        for key in self.keys:
            cells = ["–" if item is None else f"{item.text()} [{item.interval_text()}]" for item in self.row(key)]
            # An attack has both rates, pre-ASR and ASR.
            name = (key[1] if names[key[1]] == 1 else f"{key[0]}: {key[1]}").replace("|", "\\|")
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {arrows[self.example(key).direction]} |")
        return "\n".join(lines) + "\n"


def read_runs(words: Sequence[str], pictures_from: Sequence[str] = ()) -> list[Run]:
    """Read ``path`` or ``name=path``: a report's JSON file, or a folder with one or several of them.

    Args:
        words: Where the reports are.
        pictures_from: Folders whose pictures they may show, beside those of `shown_folder`.

    Raises:
        UserError: If a path holds no report, or two runs have one name.
    """
    before: list[Run] = []
    after: list[Run] = []
    for word in words:
        name, found, path = word.partition("=")
        if not found:
            name, path = "", word
        place = Path(path).expanduser()
        run = Run(name or (place.stem if place.is_file() else place.name), str(place))
        if any(run.name == other.name for other in after):
            raise UserError(f"Each run needs a name of its own, {run.name!r} stands there twice: write name=path.")
        home = place.parent if place.is_file() else place
        for content in _contents(place):
            try:
                _take_in(content, run, before, partial(shown_folder, home=home, more=pictures_from))
            except (TypeError, AttributeError) as error:
                raise UserError(f"{place} holds a report with a value of a wrong type ({error}).") from error
        after.append(run)
    for number, run in enumerate(before):
        run.name = "before" if len(before) == 1 else f"before {number + 1}"
    return [*before, *after]


def _contents(place: Path) -> list[EvaluationRecord | EvaluationReport]:
    """The reports in a file or folder."""
    files = [place] if place.is_file() else sorted(place.glob("*.json")) if place.is_dir() else []
    found: list[EvaluationRecord | EvaluationReport] = []
    for file in files:
        try:
            data: Any = parse_json(read_bytes(file, limit=_MOST_BYTES))
            kind = data.get("format") if isinstance(data, dict) else None
            if kind == RECORD_FORMAT:
                found.append(EvaluationRecord.from_json(data))
            elif kind == REPORT_FORMAT:
                found.append(EvaluationReport.from_json(data))
            elif place.is_file():
                raise ValueError("it is no report of this version")
        except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{file} cannot be read as a report ({error}); give report.json of an erasure, or what an "
                "evaluate_… program wrote."
            ) from error
    if not found:
        what = "holds no report" if place.exists() else "does not exist"
        raise UserError(
            f"{place} {what}; a report.json, or what `salun evaluate nudity`, `fid`, "
            "`alignment` or `objects` wrote, is required."
        )
    return found


def shown_folder(named: str, home: Path, more: Sequence[str] = ()) -> Path | None:
    """The folder of pictures that a report names, if a page may show it; one line says where it may not.

    Anybody can write a report, and the page may be published: links and steps up followed, the folder must lie below
    the working folder (where the programs write) or the report's own, stand beside the latter, or lie below a folder
    that the user named.

    Args:
        named: What the report says; empty for none.
        home: The report's folder.
        more: Folders that the user named.

    Raises:
        TypeError: If the report says no text.
    """
    if not named:
        return None
    try:
        folder, home = Path(named).resolve(), home.resolve()
        roots = [Path.cwd().resolve(), home, *(Path(root).expanduser().resolve() for root in more)]
        if folder.parent == home.parent or any(folder.is_relative_to(root) for root in roots):
            return folder if folder.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # No file has such a name, or links go round in a circle.
        pass
    tell(
        "note",
        f"pictures are not shown that a report in {home} says are in {named[:200]}: that is neither below the working "
        "folder nor beside the report; --pictures_from FOLDER allows it.",
    )
    return None


def _take_in(
    content: EvaluationRecord | EvaluationReport, run: Run, before: list[Run], shown: Callable[[str], Path | None]
) -> None:
    """Put a report's numbers into its run, and those before erasing into a run that they do not contradict."""
    if isinstance(content, EvaluationRecord):
        pictures, explicit, drawn, source = content.pictures, content.explicit, content.sampling, content.before
    else:
        pictures, explicit, drawn, source = "", False, _report_sampling(content), content.base
    drawn = checked(drawn)
    if isinstance(content, EvaluationRecord) and content.kind == "red_team":
        pictures = ""  # The pipeline that was attacked.
    run.add([*(pair.after for pair in content.comparisons), *content.measurements], shown(pictures), explicit, drawn)
    earlier = [pair.before for pair in content.comparisons]
    if not earlier:
        return
    home = next((known for known in before if known.source == source and known.accepts(earlier)), None)
    if home is None:
        home = Run("before", source)
        before.append(home)
    home.add(earlier, shown(source) if isinstance(content, EvaluationRecord) else None, explicit, drawn)


def _report_sampling(report: EvaluationReport) -> Sampling:
    """What an erasure's settings say of its pictures; nothing of an unlearnt classifier's."""
    steps, guidance = report.config.get("num_inference_steps"), report.config.get("guidance_scale")
    scheduler = report.config.get("drawn_by")
    known = {
        "scheduler": scheduler if isinstance(scheduler, dict) and "class" in scheduler else None,
        "num_inference_steps": steps,
        "guidance": None if guidance is None else [guidance],
    }
    return {name: value for name, value in known.items() if value is not None}


def compare_runs(runs: Sequence[Run]) -> ComparisonTable:
    """Put runs side by side.

    Raises:
        UserError: If there are fewer than two, or a measurement was made by two protocols or on pictures that are known
            to have been drawn differently.
    """
    if len(runs) < 2:
        raise UserError("At least two runs are required, before and after or two reports; got one.")
    first: dict[Key, tuple[str, Measurement]] = {}
    drawn: dict[Key, tuple[str, Sampling]] = {}
    for run in runs:
        for key, item in run.measured.items():
            name, known = first.setdefault(key, (run.name, item))
            if (known.protocol, known.kind, known.direction) != (item.protocol, item.kind, item.direction):
                raise UserError(
                    f"{key[1]!r} does not compare: {name} was measured by “{known.protocol}”, {run.name} by "
                    f"“{item.protocol}”. Measure both by one protocol."
                )
            if sampling := run.drawn.get(key):
                require_same_sampling(key[1], drawn.setdefault(key, (run.name, sampling)), (run.name, sampling))
    order = list(dict.fromkeys(group for group, _ in first))
    return ComparisonTable(tuple(runs), tuple(sorted(first, key=lambda key: order.index(key[0]))))
