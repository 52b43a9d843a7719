"""What an erasure changed, as a file of its own: base + patch = erased, erased - patch = base, bit for bit.

    salun patch make BASE ERASED patch.safetensors
    salun patch apply BASE patch.safetensors FOLDER
    salun patch revert ERASED patch.safetensors FOLDER

A patch knows the SHA-256 of the weights before and after and refuses any other. Whoever has it can bring the concept
back: publish it only if that is meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from salun_diffusers.arguments import setting, word
from salun_diffusers.errors import UserError
from salun_diffusers.files.pipeline_folder import locate
from salun_diffusers.programs.program import Program


@dataclass(frozen=True)
class PatchConfig:
    """What is made of what."""

    action: Literal["make", "apply", "revert"] = word("make, apply or revert.")
    pipeline: str = word("make, apply: the base; revert: the erased pipeline; a folder, hub id or `demo`.")
    other: str = word("make: the erased pipeline; apply, revert: the patch file.")
    output: str = word("make: the patch file to write; apply, revert: the new pipeline folder.")
    variant: str | None = setting(None, "Variant of the weight files, such as fp16.")
    revision: str | None = setting(None, "Revision of a pipeline on the hub.")
    cache_dir: str | None = setting(None, "Where downloaded pipelines are kept.")


def work(config: PatchConfig, command: str) -> str:
    """Make, apply or revert a patch."""
    from salun_diffusers.masks.patch import WeightPatch, patch_between, patch_folder

    def folder(name: str) -> Path:
        return locate(name, revision=config.revision, variant=config.variant, cache_dir=config.cache_dir)

    output = Path(config.output).expanduser()
    if config.action == "make":
        if output.exists():
            raise UserError(f"{output} exists already: nothing is overwritten.")
        patch = patch_between(folder(config.pipeline), folder(config.other), config.variant)
        patch.save(output)
        return f"{patch.number_moved:,} weights moved: {output}\n"
    patch = WeightPatch.load(Path(config.other).expanduser())
    change = patch.apply if config.action == "apply" else patch.revert
    patch_folder(folder(config.pipeline), output, change, variant=config.variant)
    return f"{patch.number_moved:,} weights changed: {output}\n"


main = Program("patch", PatchConfig, work, __doc__ or "")
