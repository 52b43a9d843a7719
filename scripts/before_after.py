"""Make one picture of a run's samples: for each prompt a row before and a row after, at the same seeds.

python scripts/before_after.py runs/0000-circle-frozen-teacher-saliency-0-5 docs/results/before_after.png
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from salun_diffusers.arguments import word
from salun_diffusers.errors import UserError
from salun_diffusers.programs.program import Program

_GAP, _LABEL, _TITLE = 4, 120, 18


@dataclass(frozen=True)
class SheetConfig:
    """What becomes which picture."""

    run: str = word("Run folder.")
    picture: str = word("PNG to write.")


def compose(folder: Path, columns: int = 8, retain_rows: int = 4) -> Image.Image:
    """Paste the samples of a run folder into one picture.

    Raises:
        UserError: If the folder holds no samples.
    """
    before = sorted(folder.glob("samples/*-before.png"))
    if not before:
        raise UserError(f"{folder} must be a run folder with samples; it has no samples/*-before.png.")
    groups: dict[str, list[Path]] = {}
    for path in before:
        groups.setdefault(path.name.rsplit("-", 2)[0], []).append(path)
    shown = [name for name in groups if name.startswith("forget")]
    shown += [name for name in groups if name.startswith("retain")][:retain_rows]
    side = Image.open(before[0]).width
    width = _LABEL + columns * (side + _GAP)
    sheet = Image.new("RGB", (width, len(shown) * 2 * (side + _GAP) + len(shown) * _TITLE), "white")
    pen = ImageDraw.Draw(sheet)
    top = 0
    for name in shown:
        for when in ("before", "after"):
            pen.text((6, top + side // 2 - 6), f"{name.split('-')[0]}, {when}", fill="black")
            for column, path in enumerate(groups[name][:columns]):
                picture = Image.open(path.with_name(path.name.replace("-before", f"-{when}")))
                sheet.paste(picture, (_LABEL + column * (side + _GAP), top))
            top += side + _GAP
        top += _TITLE
    return sheet


def work(config: SheetConfig, command: str) -> str:
    """Write the picture."""
    compose(Path(config.run)).save(config.picture)
    return ""


main = Program("scripts/before_after.py", SheetConfig, work, __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
