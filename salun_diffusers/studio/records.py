"""What a run wrote of itself, as far as a page shows it; whoever wrote it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from salun_diffusers.diffusion.presets.written import all_written
from salun_diffusers.errors import UserError, one_line
from salun_diffusers.evaluation.explicit_prompts import explicit_words
from salun_diffusers.files.json_files import read_object
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.reports.report import EvaluationReport

_EACH, _LONGEST = 8, 200  # Prompts of a kind that are offered, and characters of one.


@dataclass(frozen=True)
class RunRecord:
    """What is known of an erased model.

    Args:
        name: What was forgotten, or the folder's name.
        base: The base as the run named it; empty where no run says it.
        report: What was measured; None where nothing was.
        mask: Where its mask lies; no file where there is none.
        prompts: Prompts of the concept, then of what stays.
        explicit: Whether the concept is explicit.
        config: The settings of the run.
    """

    name: str
    base: str = ""
    report: EvaluationReport | None = None
    mask: Path = Path()
    prompts: tuple[str, ...] = ()
    explicit: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)

    def text(self, name: str) -> str | None:
        """A setting that is a text."""
        value = self.config.get(name)
        return value if isinstance(value, str) and value else None

    def number(self, name: str, largest: float) -> float | None:
        """A setting that is a number of a sensible size."""
        value = self.config.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return value if 0 <= value <= largest else None


def read_record(run: RunFolder) -> RunRecord:
    """Read the settings and the report of a run.

    Raises:
        UserError: If one of the files is damaged.
    """
    file = run.root / "config.json"
    config = read_object(file) if file.is_file() else {}
    report = _report(run)
    told = config.get("concept_prompts")
    prompts = told if isinstance(told, dict) else {}
    forget, retain = (_texts(prompts.get(side)) for side in ("forget", "retain"))
    names = _texts(prompts.get("concepts")) or _texts([config.get("concept")])
    return RunRecord(
        name=one_line(report.concept if report else ", ".join(names) or run.root.resolve().name, 60),
        base=report.base if report else str(config.get("pretrained_model_name_or_path") or ""),
        report=report,
        mask=run.mask,
        prompts=(*_spread(forget), *_spread(retain)),
        explicit=_is_explicit(config, names, forget),
        config=config,
    )


def _report(run: RunFolder) -> EvaluationReport | None:
    if not run.finished:
        return None
    file = run.root / "report.json"
    try:
        report = EvaluationReport.from_json(read_object(file))
        texts = (report.concept, report.base, report.verdict_reason, report.created, report.recipe)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a text is required for concept, base, recipe, created and verdict_reason")
        return report
    except UserError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{file} cannot be read as a report ({one_line(error, 120)}).") from error


def _is_explicit(config: Mapping[str, Any], names: Sequence[str], forget: Sequence[str]) -> bool:
    """Whether a concept is explicit: as its run says, or by its preset and its words where an older one does not."""
    told = config.get("explicit_concept")
    if isinstance(told, bool):
        return told
    known = {name.lower(): one.explicit for one in all_written().values() for name in (one.name, *one.aliases)}
    return any(known.get(name.lower(), False) for name in names) or bool(explicit_words((*names, *forget)))


def _texts(value: object) -> list[str]:
    items = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, str) and 0 < len(item) <= _LONGEST]


def _spread(prompts: Sequence[str]) -> list[str]:
    """A few of many, from the first to the last."""
    few = min(_EACH, len(prompts))
    return [prompts[place * len(prompts) // few] for place in range(few)]
