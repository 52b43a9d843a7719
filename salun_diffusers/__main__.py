"""One command for everybody: `salun erase …` is `python -m salun_diffusers erase …`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from salun_diffusers import __version__
from salun_diffusers.errors import tell

PROGRAMS = {
    "erase": "erase a concept from a diffusion pipeline",
    "verify": "check that only selected weights of a pipeline moved",
    "patch": "make, apply, revert, describe or stack the patches of erasures",
    "export single-file": "write a pipeline as one checkpoint for WebUI and ComfyUI",
    "export lora": "write what an erasure changed as a LoRA",
    "export sparse": "write the exact change of linear layers for PEFT",
    "generate": "draw the prompts of a file with any pipeline",
    "evaluate nudity": "count exposed body parts in folders of pictures",
    "evaluate fid": "measure the distance of pictures from a reference",
    "evaluate objects": "measure which class pictures show",
    "evaluate alignment": "measure CLIP score and drift at equal seed",
    "compare": "put several reports side by side",
    "mask": "look at masks, compare and combine them",
    "attack": "attack an erased model: does the concept come back?",
    "probe": "probe what is left of a concept, by relearning and side doors",
    "studio": "look at an erasure in the browser, side by side at any strength",
    "train-classifier": "train an image classifier",
    "unlearn-classifier": "make an image classifier forget",
    "train-ddpm": "train a class-conditional DDPM",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program that the first words name, and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["--version"]:
        sys.stdout.write(f"salun_diffusers {__version__}\n")
        return 0
    if words[:1] in ([], ["--help"], ["-h"]):
        sys.stdout.write(_overview())
        return 0 if words else 2
    for length in (1, 2):
        name = " ".join(words[:length])
        if name in PROGRAMS:
            module = importlib.import_module(f"salun_diffusers.programs.{name.replace(' ', '_').replace('-', '_')}")
            return int(module.main(words[length:]))
    kinds = [name for name in PROGRAMS if name.startswith(f"{words[0]} ")]
    wanted = f"salun {words[0]} must be followed by" if kinds else f"salun {words[0]} is unknown;"
    known = ", ".join(name.split()[1] for name in kinds) or ", ".join(dict.fromkeys(p.split()[0] for p in PROGRAMS))
    tell("error", f"{wanted} one of {known} (see salun --help).")
    return 2


def _overview() -> str:
    width = max(map(len, PROGRAMS))
    lines = [f"  salun {name:<{width}}  {what}" for name, what in PROGRAMS.items()]
    last = "Flags of one: salun PROGRAM --help. Several processes: accelerate launch -m salun_diffusers PROGRAM …"
    return "\n".join(["Make a diffusion model forget a concept, and prove it.", "", *lines, "", last, ""])


if __name__ == "__main__":
    sys.exit(main())
