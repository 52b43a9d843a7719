"""How pictures were drawn, whatever model drew them: what must agree before the numbers of two folders compare."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.image_folder import ImageFolder
from salun_diffusers.evaluation.json_values import is_of
from salun_diffusers.evaluation.manifest import Manifest

Sampling = Mapping[str, Any]
"""Scheduler, steps, size, guidance and prompts, as far as they are known; JSON values."""

_KINDS = {
    "scheduler": dict, "num_inference_steps": int, "height": int, "width": int, "guidance": list, "prompts": str,
}  # fmt: skip
_AGAIN = (
    "Numbers compare only at equal settings and prompts: draw one of them again (`salun generate` takes --scheduler, "
    "--num_inference_steps, --guidance_scale and --prompts)."
)


def sampling_of(manifest: Manifest) -> dict[str, Any]:
    """What a manifest says of the drawing; seeds and the number of pictures may differ between folders."""
    prompts = sorted({row.prompt for row in manifest.pictures})
    digest = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
    known = {name: manifest.made_with.get(name) for name in ("scheduler", "num_inference_steps", "height", "width")}
    if isinstance(known["scheduler"], str):
        known["scheduler"] = {"class": known["scheduler"]}
    known["guidance"] = sorted({float(row.guidance) for row in manifest.pictures})
    known["prompts"] = f"{len(prompts)} (sha256 {digest[:8]})"
    return {name: value for name, value in known.items() if value is not None}


def checked(sampling: Sampling) -> Sampling:
    """What a report says of the drawing, sure to be of the kinds that are compared and printed.

    Raises:
        TypeError: If a value is of another.
    """
    for name, kind in _KINDS.items():
        if name in sampling and not is_of(sampling[name], kind):
            raise TypeError(f"{name!r} of the drawing cannot be {str(sampling[name])[:60]!r}")
    for value in sampling.get("guidance", ()):
        if not is_of(value, float):
            raise TypeError(f"guidance must be numbers, found {str(value)[:60]!r}")
    return sampling


def folder_sampling(folders: Sequence[ImageFolder]) -> dict[str, Any]:
    """How all pictures of some folders were drawn; empty where no manifest says it.

    Raises:
        UserError: If two folders are known to have been drawn differently.
    """
    known: dict[str, Any] = {}
    first: ImageFolder | None = None
    for folder in folders:
        if folder.manifest is None:
            continue
        sampling = sampling_of(folder.manifest)
        if first is not None and (unequal := difference(known, sampling)):
            raise UserError(f"{first.root} and {folder.root} were drawn differently: {unequal}. {_AGAIN}")
        first, known = first or folder, known or sampling
    return known


def require_same_sampling(what: str, one: tuple[str, Sampling], other: tuple[str, Sampling]) -> None:
    """Refuse to compare a measurement of two runs.

    Args:
        what: Name of the measurement.
        one: Name and sampling of a run; an empty sampling is not known and so never differs.
        other: Name and sampling of another run.

    Raises:
        UserError: If they are known to have been drawn differently.
    """
    if unequal := difference(one[1], other[1]):
        raise UserError(
            f"{what!r} does not compare: pictures of {one[0]} and of {other[0]} were drawn differently: {unequal}. "
            f"{_AGAIN}"
        )


def difference(one: Sampling, other: Sampling) -> str:
    """Everything that both know and that differs, in words; empty where nothing does."""
    found = []
    for name in (name for name in one if name in other):
        if name == "scheduler":
            # Releases of diffusers add settings, so only those that both have count; another class says it all.
            ours, theirs = one[name], other[name]
            keys = [key for key in ours if key in theirs and ours[key] != theirs[key]]
            keys = ["class"] if "class" in keys else keys
            found += [f"scheduler {key} {ours[key]} and {theirs[key]}" for key in keys]
        elif one[name] != other[name]:
            found.append(f"{name} {_words(one[name])} and {_words(other[name])}")
    return ", ".join(found)


def sampling_text(sampling: Sampling) -> str:
    """One line for readers: ``DDIMScheduler, 50 steps, guidance 7.5, 10 prompts (sha256 1a2b3c4d)``."""
    parts = []
    if "scheduler" in sampling:
        parts.append(str(sampling["scheduler"].get("class")))
    if "num_inference_steps" in sampling:
        parts.append(f"{sampling['num_inference_steps']} steps")
    if "height" in sampling and "width" in sampling:
        parts.append(f"{sampling['width']}×{sampling['height']}")
    if "guidance" in sampling:
        parts.append(f"guidance {_words(sampling['guidance'])}")
    if "prompts" in sampling:
        count, _, digest = sampling["prompts"].partition(" ")
        parts.append(f"{count} prompt{'' if count == '1' else 's'} {digest}")
    return ", ".join(parts)


def _words(value: Any) -> str:
    """A value in a message; of many guidances the smallest and the largest."""
    if not isinstance(value, list):
        return str(value)
    shown = [f"{item:g}" for item in value]
    return "/".join(shown) if len(shown) <= 3 else f"{shown[0]} to {shown[-1]}"
