"""Export pipelines of the real architectures, with random weights, as one file, and let stock diffusers draw with it.

    python scripts/single_file_at_size.py sd15
    python scripts/single_file_at_size.py sdxl --json figures.json

The pipelines are those of real_size.py. With weights in fp32 and in fp16, `from_single_file` and `from_pretrained` must
draw the same picture at equal seed, to the bit; of a base's file with another tensor in its U-Net, only that tensor's
bytes may differ. Pictures are small, and computed in fp32: a CPU takes many minutes for one in fp16. Exporting and
drawing are processes of their own, whose times and peaks of memory are told.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from real_size import CAPTIONS, alone, build

from salun_diffusers.arguments import setting, word
from salun_diffusers.errors import UserError
from salun_diffusers.files.loading import dtype_argument
from salun_diffusers.files.tensor_stream import stored_tensors
from salun_diffusers.programs.program import Program

KINDS = {"sd15": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
UNET = "unet/diffusion_pytorch_model.safetensors"
CHANGED = "conv_in.bias", "model.diffusion_model.input_blocks.0.0.bias"
# Weights are copied before they are used: those of a file lie in memory as they lie in the file, and the order in which
# a CPU's library adds up products depends on where a matrix begins; fp16, which is cast, is copied anyway.
_DRAW = """
import sys, numpy, torch
from diffusers import {kind} as kind
words = {{{dtype_argument!r}: torch.{dtype}, "local_files_only": True}}
source, config, out = sys.argv[1:]
pipe = kind.from_pretrained(source, **words) if source == config else (
    kind.from_single_file(source, config=config, **words))
pipe.to(torch.float32).set_progress_bar_config(disable=True)
for part in pipe.components.values():
    if isinstance(part, torch.nn.Module):
        for tensor in part.parameters():
            tensor.data = tensor.data.clone()
seed = torch.Generator().manual_seed(0)
numpy.save(out, pipe({caption!r}, num_inference_steps=2, height=64, width=64, generator=seed, output_type="np").images)
"""


@dataclass(frozen=True)
class SingleFileAtSizeConfig:
    """What is built and exported."""

    kind: Literal["sd15", "sdxl"] = word("Architecture.")
    json: str | None = setting(None, "Also write the figures to this file.")


def draw(kind: str, dtype: str, source: Path, config: Path, out: Path) -> dict[str, float]:
    """Draw one picture by diffusers alone, from a file or, where it is the configuration itself, from the folder."""
    code = _DRAW.format(kind=KINDS[kind], dtype=dtype, dtype_argument=dtype_argument(), caption=CAPTIONS[0])
    return alone(["-c", code, str(source), str(config), str(out)])


def export(source: Path, target: Path, *words: str) -> dict[str, float]:
    """Export by the program."""
    made = alone(["-m", "salun_diffusers", "export", "single-file", str(source), str(target), *words])
    return {**made, "bytes": target.stat().st_size}


def with_another_tensor(base: Path, target: Path) -> None:
    """Copy a pipeline by links, and add 1 to one tensor of its U-Net."""
    shutil.copytree(base, target, copy_function=os.link)
    (target / UNET).unlink()
    shutil.copyfile(base / UNET, target / UNET)
    place = stored_tensors(target / UNET)[CHANGED[0]]
    values = np.memmap(target / UNET, np.float32, "r+", place.first, place.shape)
    values += 1
    values.flush()


def bytes_outside(file: Path, other: Path) -> tuple[int, int]:
    """How many bytes differ between two files of one size: in the tensor that was changed, and elsewhere."""
    if file.stat().st_size != other.stat().st_size:
        raise UserError("Files of equal size are required.")
    place = stored_tensors(file)[CHANGED[1]]
    left, right = (np.memmap(one, np.uint8, "r") for one in (file, other))
    inside = outside = 0
    for start in range(0, len(left), 1 << 28):
        differ = start + np.flatnonzero(left[start : start + (1 << 28)] != right[start : start + (1 << 28)])
        own = (differ >= place.first) & (differ < place.last)
        inside, outside = inside + int(own.sum()), outside + int((~own).sum())
    return inside, outside


def measure(kind: str, folder: Path) -> dict[str, Any]:
    """Build, export, draw, compare.

    Args:
        kind: Architecture.
        folder: Where everything goes; about 20 GB.
    """
    base = folder / "base"
    figures: dict[str, Any] = {"weights": build(kind, base)}
    for name, dtype in (("fp32", "float32"), ("fp16", "float16")):
        file, drawn = folder / f"{name}.safetensors", [folder / f"{name}-{way}.npy" for way in ("file", "folder")]
        figures[name] = {
            "export": export(base, file, "--dtype", name),
            "draw_from_file": draw(kind, dtype, file, base, drawn[0]),
            "draw_from_folder": draw(kind, dtype, base, base, drawn[1]),
        }
        one, two = map(np.load, drawn)
        figures[name]["largest_difference"] = float(np.abs(one - two).max())
        figures[name]["same_picture"] = bool(np.array_equal(one, two) and np.isfinite(one).all() and one.std() > 0)
    with_another_tensor(base, folder / "other")
    (folder / "fp16.safetensors").unlink()
    changed = folder / "changed.safetensors"
    figures["changed"] = export(folder / "other", changed, "--base", str(folder / "fp32.safetensors"))
    inside, outside = bytes_outside(changed, folder / "fp32.safetensors")
    figures["changed"] |= {"bytes_in_the_tensor": inside, "bytes_elsewhere": outside}
    return figures


def work(config: SingleFileAtSizeConfig, command: str) -> tuple[str, int]:
    """Measure in a folder that is thrown away; exit code 1 if a picture or a byte is another."""
    folder = Path(tempfile.mkdtemp(prefix="single-file-"))
    try:
        figures = measure(config.kind, folder)
    finally:
        shutil.rmtree(folder)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}
    figures = {"machine": machine, "command": shlex.split(command)[2:], "kind": config.kind, **figures}
    if config.json:
        Path(config.json).write_text(json.dumps(figures, indent=2) + "\n")
    lines = [
        f"{name}: {row['export']['bytes']:,} bytes, written in {row['export']['seconds']:.0f} s with "
        f"{row['export']['peak_gigabytes']:.2f} GB at most; "
        f"{'the same picture' if row['same_picture'] else 'ANOTHER PICTURE'}"
        for name, row in ((name, figures[name]) for name in ("fp32", "fp16"))
    ]
    row = figures["changed"]
    lines.append(
        f"--base: {row['bytes_in_the_tensor']:,} bytes differ in the tensor that was changed, "
        f"{row['bytes_elsewhere']:,} elsewhere; {row['peak_gigabytes']:.2f} GB at most"
    )
    good = figures["fp32"]["same_picture"] and figures["fp16"]["same_picture"] and row["bytes_elsewhere"] == 0
    return "\n".join([*lines, ""]), 0 if good and row["bytes_in_the_tensor"] else 1


main = Program(
    "scripts/single_file_at_size.py", SingleFileAtSizeConfig, work, __doc__ or "", interrupted="nothing was written."
)


if __name__ == "__main__":
    sys.exit(main())
