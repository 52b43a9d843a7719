"""Pictures of two folders at equal prompts and seeds: by their manifests, or else by their names."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import PurePosixPath

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.image_folder import ImageFolder


def paired(old: ImageFolder, new: ImageFolder) -> tuple[ImageFolder, ImageFolder]:
    """The same folders, the second in the order of the first.

    Where both have a manifest, a picture's partner has its prompt, seed and guidance; else it has its name, whatever
    the ending (``12_0.png`` and ``12_0.jpg``).

    Args:
        old: Pictures before; all of its files are at hand.
        new: Pictures after.

    Raises:
        UserError: Naming the first picture that has no partner, or two that would have one.
    """
    by_manifest = old.manifest is not None and new.manifest is not None
    of = _drawn if by_manifest else _named
    ours, theirs = _places(old, of), _places(new, of)
    for keys, folder, others, where in ((ours, old, theirs, new), (theirs, new, ours, old)):
        for key, place in keys.items():
            if key not in others:
                known = (
                    "their manifests differ: no picture has its prompt, seed and guidance"
                    if by_manifest
                    else "no picture has its name"
                )
                raise UserError(
                    f"Pairs need the same prompts and seeds in both folders; {_file(folder, place)} of {folder.root} "
                    f"has no partner in {where.root}, {known}. Draw both with the same prompt file."
                )
    order = [theirs[key] for key in ours]
    files, rows = tuple(new.files[at] for at in order), tuple(new.rows[at] for at in order) if new.rows else ()
    return old, replace(new, files=files, rows=rows)


def _places(folder: ImageFolder, of: Callable[[ImageFolder, int], Hashable]) -> dict[Hashable, int]:
    places: dict[Hashable, int] = {}
    for place in range(len(folder.files)):
        first = places.setdefault(of(folder, place), place)
        if first != place:
            raise UserError(
                f"Pairs need pictures that can be told apart; {_file(folder, first)} and {_file(folder, place)} of "
                f"{folder.root} have one partner. Leave one of them out."
            )
    return places


def _drawn(folder: ImageFolder, place: int) -> Hashable:
    row = folder.rows[place]
    return row.prompt, row.seed, row.guidance, row.case_number, row.sample


def _named(folder: ImageFolder, place: int) -> Hashable:
    return str(PurePosixPath(_file(folder, place)).with_suffix(""))


def _file(folder: ImageFolder, place: int) -> str:
    return folder.files[place].relative_to(folder.root).as_posix()
