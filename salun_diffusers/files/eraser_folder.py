"""A base with another eraser's weights as a pipeline folder of its own, for programs that read folders."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.component_files import parts_listing, weight_files
from salun_diffusers.files.eraser_files import FileTensor
from salun_diffusers.files.eraser_fit import TEXT, Placed
from salun_diffusers.files.pipeline_copy import copy_with_denoiser
from salun_diffusers.files.pipeline_folder import DENOISERS, denoiser_folder, model_index
from salun_diffusers.files.stored_weights import write_tensors


def read_tensor(tensor: FileTensor) -> Tensor:
    """The tensor, in the data type of its file.

    Raises:
        UserError: If the file is damaged.
    """
    try:
        with safe_open(tensor.file, framework="pt") as file:
            return file.get_tensor(tensor.name)  # type: ignore[no-any-return]
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{tensor.file} is damaged ({one_line(error, 120)}); copy it again.") from error


def require_numbers(cast: Tensor, name: str, path: Path) -> None:
    """Refuse weights that nothing could be drawn with.

    Args:
        cast: The weights, in the data type that they are used in.
        name: Their name.
        path: Where they are from.

    Raises:
        UserError: If one is NaN or beyond the range of the type.
    """
    if not cast.isfinite().all():
        raise UserError(
            f"{path} has values in {one_line(name, 120)} that are no numbers as "
            f"{str(cast.dtype).removeprefix('torch.')}: nothing that is drawn with them could be measured."
        )


def write_edited(base: Path, target: Path, placed: Placed, variant: str | None = None) -> None:
    """Copy a pipeline with the tensors of another eraser in the place of its own, in the data types of its own.

    Args:
        base: The pipeline.
        target: The folder to make.
        placed: What `fit_weights` found.
        variant: Variant of the weight files.

    Raises:
        UserError: If a file is damaged, or a value is no number.
    """
    denoiser = denoiser_folder(model_index(base), base)

    def write(folder: Path) -> None:
        for component in {denoiser, *placed}:
            _write_component(base / component, folder.parent / component, placed.get(component, {}), variant)

    copy_with_denoiser(base, target, write, variant=variant)


def _write_component(source: Path, target: Path, placed: Mapping[str, FileTensor], variant: str | None) -> None:
    is_denoiser = source.name in DENOISERS
    for path in weight_files(source, variant, strictly=is_denoiser):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        for name, own in tensors.items():
            tensor = placed.get(name if is_denoiser else name.removeprefix(TEXT))
            if tensor is not None:
                tensors[name] = read_tensor(tensor).to(own.dtype)
                require_numbers(tensors[name], name, tensor.file)
        write_tensors(target / path.name, tensors, metadata)
    listing = parts_listing(source, variant)
    if listing is not None:
        shutil.copyfile(listing, target / listing.name)
