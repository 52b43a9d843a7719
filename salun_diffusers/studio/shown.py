"""What is looked at: erased models and the base that all of them were made of, found and checked before any drawing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from salun_diffusers.errors import UserError
from salun_diffusers.files.component_files import check_complete
from salun_diffusers.files.pipeline_folder import EMBEDDED, denoiser_folder, locate, model_index
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.files.run_source import named_by, told_of
from salun_diffusers.files.single_file import find_model
from salun_diffusers.files.stored_weights import stored_weights
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.patch import WeightPatch, patch_folder
from salun_diffusers.masks.receipt import MaskReceipt, compare
from salun_diffusers.reports.report import BlockRow
from salun_diffusers.studio.records import RunRecord, read_record


@dataclass(frozen=True)
class Where:
    """Where models come from.

    Args:
        base: Name of the base, as `find_model` takes it; empty for what the runs say.
        base_revision: Of the base on the hub.
        revision: Of erased models on the hub.
        base_variant: Of the base's weight files.
        variant: Of the erased models' weight files.
        cache_dir: The hub's cache.
        explicit: ``auto``, ``yes`` or ``no``: whether the models draw explicit pictures.
    """

    base: str = ""
    base_revision: str | None = None
    revision: str | None = None
    base_variant: str | None = None
    variant: str | None = None
    cache_dir: str | None = None
    explicit: str = "auto"


@dataclass(frozen=True)
class Erased:
    """One erased model.

    Args:
        name: Heading of its pictures.
        folder: Its pipeline folder.
        variant: Of its weight files.
        receipt: What moved, and where it was allowed to.
        masked: Whether a mask says where it was allowed to.
        record: What its run wrote of itself; of a bare folder empty.
        explicit: Whether its pictures may be explicit, whatever the prompt.
    """

    name: str
    folder: Path
    variant: str | None
    receipt: MaskReceipt
    masked: bool
    record: RunRecord
    explicit: bool

    @property
    def blocks(self) -> tuple[BlockRow, ...]:
        """Per block the share that the mask selects, and the share that moved."""
        return tuple(
            BlockRow(row.block, row.weights, row.selected / row.weights, row.moved / row.weights)
            for row in self.receipt.blocks
        )


@dataclass(frozen=True)
class Shown:
    """All that is looked at.

    Args:
        base_name: The base, as it was named.
        base: Its folder.
        where: How the models were found.
        erased: What was made of it, at least one.
    """

    base_name: str
    base: Path
    where: Where
    erased: tuple[Erased, ...]

    @property
    def prompts(self) -> tuple[str, ...]:
        """Prompts that the runs know: of what was forgotten first."""
        return tuple(dict.fromkeys(prompt for one in self.erased for prompt in one.record.prompts))


@contextmanager
def shown(words: Sequence[str], where: Where) -> Iterator[Shown]:
    """Find the models and check that they belong together; patches are put onto the base in a folder for the while.

    Args:
        words: Run folders, pipeline folders, patch files or hub ids.
        where: The base, and how to find it.

    Yields:
        The models.

    Raises:
        UserError: If one is missing or none, or is not made of the base.
    """
    records = [_record_of(word) for word in words]
    if where.base_variant is None and not where.base:  # The base is that of the runs, as they know it.
        where = replace(where, base_variant=next((one.text("variant") for one in records if one.base), None))
    base_name, base = _base(words, records, where)
    check_complete(base, where.base_variant)
    with ExitStack() as scratch:
        found = [
            _erased(*_folder(word, record, base, where, scratch), record, base, where)
            for word, record in zip(words, records, strict=True)
        ]
        yield Shown(base_name, base, where, tuple(_with_own_names(found)))


def _record_of(word: str) -> RunRecord:
    """What is written beside a pipeline; empty where nothing is."""
    place = Path(word).expanduser()
    if word in EMBEDDED or not place.is_dir():
        return RunRecord(name=word if word in EMBEDDED else place.stem)
    run = RunFolder(place)
    if not (place / "model_index.json").is_file():
        if not run.pipeline.is_dir():
            what = "a run without its pipeline" if run.finished else "neither a run nor a pipeline"
            raise UserError(
                f"{place} is {what}: a run folder with `pipeline` in it, a pipeline folder with model_index.json, or a "
                "patch file is required."
            )
        return read_record(run)
    # The pipeline of a run is shown with what the run knows.
    beside = RunFolder(place.parent)
    if place.name == beside.pipeline.name and beside.finished:
        return read_record(beside)
    return RunRecord(name=place.resolve().name)


def _base(words: Sequence[str], records: Sequence[RunRecord], where: Where) -> tuple[str, Path]:
    """The base that the user or the runs name."""
    named = [(word, record.base) for word, record in zip(words, records, strict=True) if record.base]
    if not where.base and not named:
        raise UserError(f"--base is required: nothing beside {words[0]} says what it was made of.")
    if not where.base and len({base for _, base in named}) > 1:
        (one, first), (other, second) = named[0], next(pair for pair in named if pair[1] != named[0][1])
        raise UserError(
            f"All models must be made of one base: {one} was made of {first[:120]}, {other} of {second[:120]}; leave "
            "one out, or name the base of both by --base."
        )
    name = where.base or named[0][1]
    whose = "--base" if where.base else named_by(named[0][0])
    with told_of(whose):
        return name, find_model(
            name, revision=where.base_revision, variant=where.base_variant, cache_dir=where.cache_dir
        )


def _folder(word: str, record: RunRecord, base: Path, where: Where, scratch: ExitStack) -> tuple[Path, str | None]:
    """The pipeline folder of one model, and the variant of its weight files."""
    place = Path(word).expanduser()
    if word not in EMBEDDED and place.is_file():
        patched = Path(scratch.enter_context(TemporaryDirectory(prefix="salun-"))) / "pipeline"
        patch_folder(base, patched, WeightPatch.load(place).apply, variant=where.base_variant, link=True)
        return patched, where.base_variant
    if word not in EMBEDDED and place.is_dir():
        folder = place if (place / "model_index.json").is_file() else RunFolder(place).pipeline
    elif word not in EMBEDDED and (word.count("/") != 1 or word.startswith((".", "/", "~"))):
        raise UserError(f"A run folder, a pipeline folder, a patch file or a hub id is required, there is no {word}.")
    else:
        folder = locate(word, revision=where.revision, variant=where.variant, cache_dir=where.cache_dir)
    variant = record.text("variant") if where.variant is None else where.variant
    check_complete(folder, variant)
    return folder, variant


def _erased(folder: Path, variant: str | None, record: RunRecord, base: Path, where: Where) -> Erased:
    """Check one model against the base: it must be the base but for what its mask let move."""
    masked = record.mask.is_file()
    mask = SaliencyMask.load(record.mask) if masked else _all_of(base, where.base_variant)
    try:
        receipt = compare(base, folder, mask, (where.base_variant, variant))
    except UserError as error:
        raise UserError(f"{folder} is not made of {base}: {error} Name by --base what it was made of.") from error
    if not receipt.holds:
        raise UserError(
            f"{folder} is not made of {base} alone: {receipt.sentence()} Name by --base what it was made of."
        )
    explicit = where.explicit == "yes" or (where.explicit == "auto" and record.explicit)
    return Erased(record.name, folder, variant, receipt, masked, record, explicit)


def _all_of(base: Path, variant: str | None) -> SaliencyMask:
    """The mask of a model that brings none: all of its denoiser may have moved."""
    return SaliencyMask.full(dict(stored_weights(base / denoiser_folder(model_index(base), base), variant)))


def _with_own_names(found: Sequence[Erased]) -> Iterator[Erased]:
    """Number those that have forgotten the same."""
    names = Counter(one.name for one in found)
    seen: Counter[str] = Counter()
    for one in found:
        seen[one.name] += 1
        yield one if names[one.name] == 1 else replace(one, name=f"{one.name} ({seen[one.name]})")
