"""Make one picture of a run's samples: for each prompt a row before and a row after, at the same seeds.

python scripts/before_after.py runs/0000-circle-frozen-teacher-saliency-0-5 docs/results/before_after.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw

from salun_diffusers.arguments import OneLineParser
from salun_diffusers.errors import UserError

_GAP, _LABEL, _TITLE = 4, 120, 18


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


def main() -> int:
    """Read the command line and write the picture."""
    try:
        parser = OneLineParser(description=(__doc__ or "").split("\n")[0])
        parser.add_argument("run", help="run folder")
        parser.add_argument("picture", help="PNG to write")
        options = parser.parse_args()
        compose(Path(options.run)).save(options.picture)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
