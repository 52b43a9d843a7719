"""How large a patch of Stable Diffusion 1.x is, by the share of weights that moved and their data type.

    python scripts/patch_sizes.py
    python scripts/patch_sizes.py --page docs/shipping.md

The sizes are those of the files to the byte, counted from the shape of the U-Net, of which no weight is made: a bit of
each weight of a tensor that changed, and the bits of each weight that moved. All tensors changing is the most there can
be. The figures go to docs/results/patch_sizes.json, and the table between the lines `<!-- patch-sizes -->` and
`<!-- end of patch-sizes -->` of a page.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from real_shapes import sd1

from salun_diffusers.arguments import setting
from salun_diffusers.errors import UserError
from salun_diffusers.masks.packed_bits import bytes_for
from salun_diffusers.masks.patch import FORMAT, VERSION
from salun_diffusers.masks.patch_header import texts_of
from salun_diffusers.programs.program import Program

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "patch_sizes.json"
RATIOS = (1.0, 0.5, 0.1, 0.01)
DTYPES = {"float32": ("I32", 4), "float16": ("I16", 2)}
ABOUT = {"concept": "nudity", "base": "CompVis/stable-diffusion-v1-4"}


@dataclass(frozen=True)
class PatchSizesConfig:
    """Settings of the table."""

    json: str = setting(str(RESULTS), "File of the figures.")
    page: str | None = setting(None, "A page to write the table into.")


def unet_sizes() -> dict[str, int]:
    """Number of weights by a tensor's name, of Stable Diffusion 1.x."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**sd1().parts["unet"][1])
    return {name: tensor.numel() for name, tensor in unet.state_dict().items()}


def patch_bytes(sizes: Mapping[str, int], moved: Mapping[str, int], dtype: str, about: Mapping[str, str]) -> int:
    """The bytes of a patch file.

    Args:
        sizes: Number of weights of every tensor of the model.
        moved: Number of weights that moved, of the tensors that changed.
        dtype: Data type of the weights.
        about: What the patch says of itself.
    """
    kind, width = DTYPES[dtype]
    tensors = [(f"changes.{name}", kind, count, count * width) for name, count in moved.items()]
    tensors += [(f"places.{name}", "U8", bytes_for(sizes[name]), bytes_for(sizes[name])) for name in moved]
    hashes = dict.fromkeys(("base_sha256", "erased_sha256", "sha256"), "0" * 64)
    layout = {name: (dtype, size) for name, size in sizes.items()}
    told: dict[str, Any] = {"__metadata__": {"format": FORMAT, "version": VERSION, **hashes, **texts_of(layout, about)}}
    end = 0
    for name, code, count, size in sorted(tensors, key=lambda row: (row[1] == "U8", row[0])):
        told[name] = {"dtype": code, "shape": [count], "data_offsets": [end, end + size]}
        end += size
    header = len(json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + header + -header % 8 + end


def measure() -> dict[str, Any]:
    """Count."""
    sizes = unet_sizes()
    total = sum(sizes.values())
    rows = []
    for ratio in RATIOS:
        moved = {name: max(1, int(ratio * size)) for name, size in sizes.items()}
        largest = max(moved, key=moved.__getitem__)
        moved[largest] += int(ratio * total) - sum(moved.values())
        for dtype, (_, width) in DTYPES.items():
            size = patch_bytes(sizes, moved, dtype, ABOUT)
            rows.append({"ratio": ratio, "dtype": dtype, "moved": sum(moved.values()), "bytes": size,
                         "of_the_unet": round(size / (total * width), 4)})  # fmt: skip
    return {"weights": total, "tensors": len(sizes), "rows": rows}


def table(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| weights that moved | of the weights | fp32 | of the U-Net | fp16 | of the U-Net |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for ratio in RATIOS:
        both = {row["dtype"]: row for row in figures["rows"] if row["ratio"] == ratio}
        cells = [f"{both[name]['bytes'] / 1e6:,.0f} MB | {both[name]['of_the_unet']:.0%}" for name in DTYPES]
        lines.append(f"| {both['float32']['moved']:,} | {ratio:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(page: str, figures: Mapping[str, Any]) -> str:
    """A page with the table of these figures.

    Raises:
        UserError: If it has no place for one.
    """
    begin, end = "<!-- patch-sizes -->", "<!-- end of patch-sizes -->"
    if begin not in page or end not in page:
        raise UserError(f"--page must have the lines {begin} and {end}.")
    block = f"{begin}\n{table(figures)}\n{end}"
    return re.sub(f"{begin}.*?{end}", lambda _: block, page, flags=re.DOTALL)


def work(config: PatchSizesConfig, command: str) -> str:
    """Write figures and table."""
    figures = measure()
    if config.page is not None:
        page = Path(config.page)
        page.write_text(with_table(page.read_text(encoding="utf-8"), figures), encoding="utf-8")
    Path(config.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return table(figures) + "\n"


main = Program("scripts/patch_sizes.py", PatchSizesConfig, work, __doc__ or "", interrupted="nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
