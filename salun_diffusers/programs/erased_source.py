"""What every export of an erasure is told: the run or the erased pipeline, its base, and where to write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from salun_diffusers.adapters.loadable import require_lora
from salun_diffusers.arguments import setting, word
from salun_diffusers.errors import UserError
from salun_diffusers.files.output_places import require_outside_components, require_writable
from salun_diffusers.files.pipeline_folder import locate
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.files.run_source import RunSource, named_by, told_of
from salun_diffusers.files.single_file import find_model

Variants = tuple[str | None, str | None]
"""Of the base's weight files, and of the erased one's."""


@dataclass(frozen=True)
class ErasedSource:
    """What is exported, and where to."""

    erased: str = word("A run's folder, or an erased pipeline: a folder or a hub id.")
    output: str = word("The folder to write.")
    base: str | None = setting(None, "The base: a folder, a single file, a hub id or `demo`; a run knows its own.")
    revision: str | None = setting(None, "Revision of the erased pipeline on the hub.")
    base_revision: str | None = setting(None, "Revision of the base on the hub.")
    variant: str | None = setting(None, "Variant of the erased pipeline's weight files, such as fp16.")
    base_variant: str | None = setting(None, "Variant of the base's weight files, if it is not that of --variant.")
    cache_dir: str | None = setting(None, "Where downloaded pipelines are kept.")
    single_file_config: str | None = setting(None, "For a single file: folder or hub id with its configurations.")


def new_output(config: ErasedSource) -> Path:
    """The folder to write.

    Raises:
        UserError: If there is something in it, or it cannot be made.
    """
    output = Path(config.output).expanduser()
    require_writable(output.parent, "OUTPUT's folder")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} must be empty or new: nothing is overwritten.")
    return output


def base_and_erased(
    config: ErasedSource, run: RunSource | None, output: Path, what: str
) -> tuple[tuple[Path, Path], Variants]:
    """Folders of the base and the erased pipeline, and the variants of their weight files.

    Args:
        config: The flags; what they leave open is in the run's record.
        run: The run that was named, if it was one.
        output: Where is written.
        what: What is, for messages.

    Raises:
        UserError: If the base is not known or loads no adapters, a folder is missing, or the output lies in one.
    """
    flags = {
        "pretrained_model_name_or_path": config.base,
        "revision": config.base_revision,
        "variant": config.variant,
        "single_file_config": config.single_file_config,
    }
    if run is not None:
        own = flags if config.base is None else {"variant": config.variant}  # The rest is of the run's base.
        flags |= {name: run.told(name) for name in own if flags[name] is None}
    name = flags["pretrained_model_name_or_path"]
    if name is None:
        raise UserError(f"--base is required: {config.erased} is no run's folder, which would say what it was made of.")
    variants = (flags["variant"] if config.base_variant is None else config.base_variant, flags["variant"])
    with told_of("--base" if config.base is not None else named_by(config.erased)):
        base = find_model(
            name,
            revision=flags["revision"],
            variant=variants[0],
            cache_dir=config.cache_dir,
            single_file_config=flags["single_file_config"],
        )
    require_lora(base, what)
    erased = run.pipeline if run is not None else None
    if erased is None:
        erased = locate(config.erased, revision=config.revision, variant=variants[1], cache_dir=config.cache_dir)
    for folder in (base, erased):
        require_outside_components(output, folder, "OUTPUT")
    if run is not None and run.pipeline is not None:
        _require_its_base(run, base, erased, variants)
    return (base, erased), variants


def _require_its_base(run: RunSource, base: Path, erased: Path, variants: Variants) -> None:
    """Refuse a base that a run was not made of: what the two differ in would count as erased.

    The mask of the run is the proof. Without one, or where the run rounded its result, nothing is known.

    Raises:
        UserError: If weights outside the mask differ.
    """
    from salun_diffusers.masks.mask import SaliencyMask
    from salun_diffusers.masks.receipt import compare

    file = RunFolder(run.root).mask
    if not file.is_file() or run.told("save_dtype") not in (None, "base"):
        return
    try:
        receipt = compare(base, erased, SaliencyMask.load(file), variants)
    except UserError:  # Of other shapes, or cut off: who takes the difference says so.
        return
    if receipt.violations:
        raise UserError(
            f"The base that {run.root} was made of is required; {base} is another: {receipt.violations:,} weights that "
            f"the run's mask freezes differ, the first in {receipt.first_violation}."
        )
