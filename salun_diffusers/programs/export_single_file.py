"""One `.safetensors` checkpoint in the layout of the original code, as WebUI and ComfyUI load it.

    salun export single-file RUN_OR_FOLDER erased.safetensors --dtype fp16
    salun export single-file RUN_OR_FOLDER erased.safetensors --base v1-5-pruned-emaonly.safetensors

Of Stable Diffusion 1.x, 2.x and XL: U-Net, VAE and text encoders. With --base, the single file of the model that was
erased from, only the changed weights of the U-Net differ from it; every other byte is the base's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from salun_diffusers.arguments import setting, word
from salun_diffusers.errors import UserError
from salun_diffusers.files.component_files import check_complete
from salun_diffusers.files.output_places import require_outside_components, require_writable
from salun_diffusers.files.pipeline_folder import locate
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.files.run_source import RunSource
from salun_diffusers.programs.program import Program

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@dataclass(frozen=True)
class ExportSingleFileConfig:
    """What is written where."""

    pipeline: str = word("Folder of a run or of a pipeline, a hub id, or `demo`.")
    output: str = word("The .safetensors file to write.")
    dtype: Literal["fp32", "fp16", "base"] = setting(
        "base", "Data type of the weights; base: as they are stored, in the folder or in the file of --base."
    )
    base: str | None = setting(None, "Single file of the base: only the weights that erasing changed differ from it.")
    revision: str | None = setting(None, "Revision of the pipeline on the hub.")
    variant: str | None = setting(None, "Variant of the weight files, such as fp16.")
    cache_dir: str | None = setting(None, "Where downloaded pipelines are kept.")


def work(config: ExportSingleFileConfig, command: str) -> str:
    """Check, then write."""
    output = Path(config.output).expanduser()
    require_writable(output.parent, "OUTPUT's folder")
    if output.suffix != ".safetensors":
        raise UserError(f"OUTPUT must be a .safetensors file, got {output.name!r}.")
    if output.exists():
        raise UserError(f"{output} exists already: nothing is overwritten.")
    if config.base is not None:
        _require_base(config)
    folder, mask_file, variant = _found(config)
    check_complete(folder, variant)
    require_outside_components(output, folder, "OUTPUT")
    import torch

    from salun_diffusers.files.single_file_export import write_changed_file, write_single_file

    if config.base is None:
        dtype = {"fp32": torch.float32, "fp16": torch.float16}.get(config.dtype)
        count = write_single_file(folder, output, dtype, variant)
        return f"{count:,} tensors, {output.stat().st_size:,} bytes: {output}\n"
    mask: Mapping[str, Tensor] = {}
    if mask_file is not None:
        from salun_diffusers.masks.mask import SaliencyMask

        mask = SaliencyMask.load(mask_file)
    base = Path(config.base).expanduser()
    tensors, weights = write_changed_file(folder, output, base, mask, variant)
    return f"{weights:,} weights in {tensors:,} tensors differ from {base}, all else is its own: {output}\n"


def _require_base(config: ExportSingleFileConfig) -> None:
    """Refuse a base that is none before anything is read.

    Raises:
        UserError: Saying why.
    """
    if config.dtype != "base":
        raise UserError(
            f"--dtype {config.dtype} does not go with --base: weights take the data types of that file, so that all "
            "else can stay."
        )
    if not Path(str(config.base)).expanduser().is_file():
        raise UserError(f"--base must be the single file of the base, there is no file {config.base}.")


def _found(config: ExportSingleFileConfig) -> tuple[Path, Path | None, str | None]:
    """The pipeline's folder, the mask of the run that made it, where there is one, and the variant of its weights."""
    place = Path(config.pipeline).expanduser()
    if place.is_file():
        raise UserError(f"A folder of a run or of a pipeline is required, {place} is a file.")
    run = RunFolder(place if (place / "run.json").is_file() else place.parent)
    if place in (run.root, run.pipeline) and run.pipeline.is_dir():
        source = RunSource.found(str(run.root))
        told = source.told("variant") if source is not None and config.variant is None else config.variant
        return run.pipeline, run.mask if run.mask.is_file() else None, told
    found = locate(config.pipeline, revision=config.revision, variant=config.variant, cache_dir=config.cache_dir)
    return found, None, config.variant


main = Program("export single-file", ExportSingleFileConfig, work, __doc__ or "")
