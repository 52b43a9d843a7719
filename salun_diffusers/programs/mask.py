"""Look at masks, compare two of them, and combine them.

    salun mask info FILE
    salun mask compare FILE OTHER
    salun mask plot FILE --output PICTURE
    salun mask union FILE OTHER… --output NEW
    salun mask intersect FILE OTHER… --output NEW
    salun mask invert FILE --output NEW

info: density per block and kind of layer, how it was made and from which base. compare: what two masks share, against
chance. plot: the densities as PICTURE.png and PICTURE.svg. union, intersect and invert (|, & and ~) write a mask file
that `salun erase --mask NEW` takes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from salun_diffusers.arguments import setting, word
from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.output_places import require_writable
from salun_diffusers.files.whole_files import full_disk_is_told, write_text
from salun_diffusers.programs.program import Program

if TYPE_CHECKING:
    from salun_diffusers.masks.mask import SaliencyMask

_PICTURES = (".png", ".svg")


@dataclass(frozen=True)
class MaskConfig:
    """What is done with which masks."""

    action: Literal["info", "compare", "plot", "union", "intersect", "invert"] = word(
        "info, compare, plot, union, intersect or invert."
    )
    files: tuple[str, ...] = word("Mask files: one for info, plot and invert, two for compare, two or more else.")
    output: str | None = setting(
        None,
        "plot: the picture, of which both PNG and SVG are written; union, intersect, invert: the new mask file; info, "
        "compare: a JSON file of all numbers.",
    )


def work(config: MaskConfig, command: str) -> str:
    """Load the masks and do what the first word says."""
    least, most = {"compare": (2, 2), "union": (2, 1000), "intersect": (2, 1000)}.get(config.action, (1, 1))
    if not least <= len(config.files) <= most:
        wanted = f"exactly {least}" if least == most else f"{least} or more"
        raise UserError(f"mask {config.action} takes {wanted} mask file(s), got {len(config.files)}.")
    makes = config.action not in ("info", "compare")
    if makes and config.output is None:
        raise UserError(f"mask {config.action} needs --output, the name of what it writes.")
    output = None if config.output is None else Path(config.output)
    if output is not None:
        require_writable(output.parent, "--output's folder")
        for file in _written(config.action, output):
            if file.exists():
                raise UserError(f"--output: {file} exists already: nothing is overwritten.")

    from salun_diffusers.masks.mask import SaliencyMask

    masks = [SaliencyMask.load(Path(file).expanduser()) for file in config.files]
    match config.action:
        case "info":
            text, numbers = _info(config.files[0], masks[0])
        case "compare":
            text, numbers = _compare(config.files, masks[0], masks[1])
        case "plot":
            return _plot(config.files[0], masks[0], str(output))
        case _:
            return _combine(config.action, masks, Path(str(output)))
    if output is not None:
        content = {"format": f"salun_diffusers.mask_{config.action}", "command": command, **numbers}
        with full_disk_is_told(str(output)):
            write_text(output, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        text += f"written: {output}\n"
    return text


def _written(action: str, output: Path) -> tuple[Path, ...]:
    """The files that an action writes."""
    if action != "plot":
        return (output,)
    stem = output.with_suffix("") if output.suffix in _PICTURES else output
    return tuple(stem.with_name(stem.name + suffix) for suffix in _PICTURES)


def _info(file: str, mask: SaliencyMask) -> tuple[str, dict[str, object]]:
    """What a mask is, and where it lies."""
    from salun_diffusers.masks.mask_map import mask_map
    from salun_diffusers.masks.mask_overlap import bases_of, method_of

    where, bases = mask_map(mask), bases_of(mask.recipe)
    columns, wide = [*where.kinds, "all"], max([len("block"), *map(len, where.blocks)])
    lines = [
        f"mask      {file}",
        f"made by   {method_of(mask.recipe)}",
        *(f"{name:<9} {mask.recipe[name]}" for name in ("ratio", "scope", "train_method") if name in mask.recipe),
        f"selected  {mask.number_selected:,} of {mask.number_of_weights:,} weights ({mask.density:.2%}) in "
        f"{len(mask)} tensors",
        *([f"base      {name}, sha256 {digest}" for digest, name in bases.items()] or ["base      not recorded"]),
        f"sha256    {mask.sha256}",
        "",
        "  ".join(["block".ljust(wide), *columns, "weights"]),
    ]
    for block in (*where.blocks, ""):
        blocks = [block] if block else where.blocks
        counts = [where.of(blocks, [kind]) for kind in where.kinds]
        whole = where.of(blocks, where.kinds)
        shown = [f"{count.density:.1%}" if count.weights else "" for count in (*counts, whole)]
        cells = [text.rjust(len(column)) for text, column in zip(shown, columns, strict=True)]
        lines.append("  ".join([(block or "all").ljust(wide), *cells, f"{whole.weights:,}"]))
    numbers: dict[str, object] = {
        "file": file,
        "sha256": mask.sha256,
        "density": mask.density,
        "selected": mask.number_selected,
        "weights": mask.number_of_weights,
        "recipe": dict(mask.recipe),
        "cells": [
            {"block": block, "kind": kind, "weights": count.weights, "selected": count.selected}
            for (block, kind), count in where.cells.items()
        ],
    }
    return "\n".join(lines) + "\n", numbers


def _compare(files: Sequence[str], first: SaliencyMask, second: SaliencyMask) -> tuple[str, dict[str, object]]:
    """What two masks share, per block and in all."""
    from salun_diffusers.masks.mask_overlap import Overlap, overlaps, require_same_base

    require_same_base(first, second)
    found = overlaps(first, second)
    total = sum(found.values(), Overlap(0, 0, 0, 0, 0.0))
    anywhere = total.first * total.second / max(total.weights, 1)
    wide = max([len("block"), *map(len, found)])
    lines = [
        f"first         {files[0]}: {total.first:,} weights",
        f"second        {files[1]}: {total.second:,} weights",
        f"both          {total.both:,}: {total.both / max(total.first, 1):.1%} of the first, "
        f"{total.both / max(total.second, 1):.1%} of the second",
        f"either        {total.either:,}",
        f"Jaccard       {total.jaccard:.4f}; by chance {total.jaccard_by_chance:.4f}",
        f"by chance     {total.by_chance:,.0f} in both, at these densities of every tensor: lift {total.lift:.3f}",
        f"              {anywhere:,.0f} in both, at these densities of the whole: lift "
        f"{total.both / anywhere if anywhere else 1.0:.3f}",
        "",
        f"{'block':<{wide}}  first   second  Jaccard  by chance  lift",
    ]
    rows = []
    for block, row in found.items():
        densities = [f"{count / row.weights:6.1%}" for count in (row.first, row.second)]
        lines.append(
            f"{block:<{wide}}  {densities[0]}  {densities[1]}  {row.jaccard:7.4f}  {row.jaccard_by_chance:9.4f}  "
            f"{row.lift:.3f}"
        )
        rows.append({"block": block, **row.to_json()})
    return "\n".join(lines) + "\n", {"files": list(files), **total.to_json(), "blocks": rows}


def _plot(file: str, mask: SaliencyMask, output: str) -> str:
    """The densities as two pictures."""
    from salun_diffusers.masks.mask_map import mask_map
    from salun_diffusers.masks.mask_overlap import method_of
    from salun_diffusers.reports.heat_map import heat_map, write_figure

    where = mask_map(mask)
    rows, columns = [*where.blocks, "all"], [*where.kinds, "all"]
    shares = [
        [
            count.density if count.weights else None
            for kinds in (*([kind] for kind in where.kinds), where.kinds)
            for count in [where.of([row] if row in where.blocks else where.blocks, kinds)]
        ]
        for row in rows
    ]
    title = one_line(f"{Path(file).name}: {method_of(mask.recipe)}", 70)
    figure = heat_map(f"{title}\nselected weights, %", rows, columns, shares)
    pictures = _written("plot", Path(output))
    for picture in pictures:
        with full_disk_is_told(str(picture)):
            write_figure(figure, picture)
    return f"drawn: {', '.join(map(str, pictures))}\n"


def _combine(action: str, masks: Sequence[SaliencyMask], output: Path) -> str:
    """The union, the intersection or the complement, as a file."""
    from salun_diffusers.masks.mask_overlap import require_same_base

    require_same_base(*masks)
    mask = ~masks[0] if action == "invert" else reduce({"union": or_, "intersect": and_}[action], masks)
    if not mask.number_selected:
        raise UserError(f"mask {action} leaves no weight at all: nothing could be trained under it.")
    with full_disk_is_told(str(output)):
        mask.save(output)
    return f"{mask.number_selected:,} of {mask.number_of_weights:,} weights selected ({mask.density:.2%}): {output}\n"


main = Program("mask", MaskConfig, work, __doc__ or "")
