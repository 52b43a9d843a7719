"""Concepts that the base model lost in earlier runs, by the record that each run leaves beside its pipeline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from salun_diffusers.arguments import check
from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.detection import with_detector
from salun_diffusers.errors import UserError, tell
from salun_diffusers.files.json_files import read_object
from salun_diffusers.files.run_folder import RunFolder

EARLIER = "earlier"
# What a run's record must say for its concept to be looked for again.
_FIELDS = ("concept", "forget_prompt", "anchor_prompt", "recipe", "detector", "detector_labels", "clip",
           "pretrained_model_name_or_path")  # fmt: skip


def with_earlier(concept: Concept, base: Path, find: Callable[[EraseConfig], Concept]) -> Concept:
    """The concept with those that its base has lost, if that is what a run wrote and its record lies beside it.

    They are looked for in pictures of their prompts before and after; nothing is trained by them. If one of them is
    explicit, so is the run. One that cannot be looked for any more is named in a note.

    Args:
        concept: What is to be forgotten now.
        base: Folder of the base model.
        find: Finds one concept by a run's flags.
    """
    known = {part.name for part in concept.looked_for}
    found: dict[str, Concept] = {}
    for record in earlier_records(base):
        try:
            made = _made(record, find)
        except UserError as error:
            tell("note", f"an earlier concept of {base} cannot be looked for again: {error}")
            continue
        found |= {one.name: one for one in made if one.name not in known}
    explicit = concept.explicit or any(one.explicit for one in found.values())
    return replace(concept, earlier=tuple(found.values()), explicit=explicit) if found else concept


def earlier_records(base: Path) -> list[dict[str, Any]]:
    """What the runs that made a base were asked for, the first one first; none where it was made otherwise.

    Args:
        base: Folder of a pipeline; that of a run lies in the run's folder, beside its record.
    """
    run = RunFolder(base.parent)
    if base.name != run.pipeline.name or not run.finished or not (run.root / "config.json").is_file():
        return []
    try:
        record = read_object(run.root / "config.json")
    except UserError as error:
        tell("note", f"the record of the run that made {base} cannot be read: {error}")
        return []
    before = record.get(EARLIER)
    told = [one for one in before if isinstance(one, dict)] if isinstance(before, list) else []
    return [*told, {name: record[name] for name in (*_FIELDS, "concept_prompts") if name in record}]


def _made(record: Mapping[str, Any], find: Callable[[EraseConfig], Concept]) -> list[Concept]:
    """The concepts of a record, each as it was looked for by itself."""
    names = {field.name for field in dataclasses.fields(EraseConfig)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
    }
    config = EraseConfig(**{name: value for name, value in values.items() if name in names})
    check(config)
    told = record.get("concept_prompts")
    several = told.get("concepts") if isinstance(told, dict) else None
    asked = several if isinstance(several, list) and several else [record.get("concept")]
    made = []
    for name in asked:
        if not isinstance(name, str):
            raise UserError(f"a concept is a text, the record says {str(name)[:40]!r}.")
        concept = with_detector(find(replace(config, concept=name)), config)
        if not concept.target_labels:
            raise UserError(f"no detector knows {name!r}.")
        made.append(concept)
    return made
