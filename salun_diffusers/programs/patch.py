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
from salun_diffusers.files.output_places import require_outside_components, require_writable
from salun_diffusers.files.pipeline_folder import locate
from salun_diffusers.files.single_file import find_model
from salun_diffusers.programs.program import Program


@dataclass(frozen=True)
class PatchConfig:
    """What is made of what."""

    action: Literal["make", "apply", "revert"] = word("make, apply or revert.")
    pipeline: str = word("make, apply: the base; revert: the erased pipeline; a folder, hub id or `demo`.")
    other: str = word("make: the erased pipeline; apply, revert: the patch file.")
    output: str = word("make: the patch file to write; apply, revert: the new pipeline folder.")
    revision: str | None = setting(None, "make, revert: revision of the erased pipeline on the hub.")
    base_revision: str | None = setting(None, "make, apply: revision of the base on the hub.")
    variant: str | None = setting(None, "Variant of the weight files, such as fp16.")
    base_variant: str | None = setting(None, "make: variant of the base's weight files, if it is another one.")
    cache_dir: str | None = setting(None, "Where downloaded pipelines are kept.")
    single_file_config: str | None = setting(None, "For a single file: folder or hub id with its configurations.")


def work(config: PatchConfig, command: str) -> str:
    """Make, apply or revert a patch."""
    from salun_diffusers.masks.patch import WeightPatch, patch_between, patch_folder

    output = Path(config.output).expanduser()
    require_writable(output.parent, "OUTPUT's folder")
    if config.action == "make":
        if output.exists():
            raise UserError(f"{output} exists already: nothing is overwritten.")
        variants = (config.variant if config.base_variant is None else config.base_variant, config.variant)
        base = _found(config, config.base_revision, variants[0])
        erased = locate(config.other, revision=config.revision, variant=variants[1], cache_dir=config.cache_dir)
        for folder in (base, erased):
            require_outside_components(output, folder, "OUTPUT")
        patch = patch_between(base, erased, variants)
        patch.save(output)
        return f"{patch.number_moved:,} weights moved: {output}\n"
    _refuse_the_other_side(config)
    patch = WeightPatch.load(Path(config.other).expanduser())
    change, revision = patch.apply, config.base_revision
    if config.action == "revert":
        change, revision = patch.revert, config.revision
    patch_folder(_found(config, revision, config.variant), output, change, variant=config.variant)
    return f"{patch.number_moved:,} weights changed: {output}\n"


def _found(config: PatchConfig, revision: str | None, variant: str | None) -> Path:
    """The folder of PIPELINE."""
    return find_model(
        config.pipeline,
        revision=revision,
        variant=variant,
        cache_dir=config.cache_dir,
        single_file_config=config.single_file_config,
    )


def _refuse_the_other_side(config: PatchConfig) -> None:
    """Refuse flags of the pipeline that `apply` or `revert` makes and does not read.

    Raises:
        UserError: Naming the flag.
    """
    for name in ("revision", "base_variant") if config.action == "apply" else ("base_revision", "base_variant"):
        if getattr(config, name) is not None:
            reads, takes = ("base", "base_revision") if config.action == "apply" else ("erased pipeline", "revision")
            raise UserError(
                f"--{name} has no meaning for {config.action}, which reads the {reads} only: its flags are --{takes} "
                "and --variant."
            )


main = Program("patch", PatchConfig, work, __doc__ or "")
