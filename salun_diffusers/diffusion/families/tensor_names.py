"""Whether a denoiser's weight files hold the tensors of its network, by their headers: before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.component_files import weight_files
from salun_diffusers.files.component_weights import stored_shapes
from salun_diffusers.files.pipeline_folder import (
    CLASS_CONDITIONAL,
    class_name,
    denoiser_folder,
    model_index,
    refuse_own_code,
)

_ADAPTER_WORDS = ("lora_", ".base_layer.", "hada_", "lokr_", ".processor.")


def check_tensors(folder: Path, variant: str | None) -> None:
    """Compare names and shapes in a denoiser's weight files with those of the network its configuration describes.

    diffusers itself leaves what is missing at random values or on no device, and says so in a warning.

    Args:
        folder: The pipeline.
        variant: Variant of the weight files.

    Raises:
        UserError: If the folder carries code; naming the first tensor that is missing, foreign or of another shape.
    """
    index = model_index(folder)
    if class_name(index) != CLASS_CONDITIONAL:
        refuse_own_code(folder)
    name = denoiser_folder(index, folder)
    kind: Any = getattr(diffusers, str(index[name][1]), None)  # type: ignore[index]
    if kind is None or not hasattr(kind, "load_config"):
        raise UserError(f"{folder} has a denoiser of class {index[name]}, which diffusers does not know.")  # type: ignore[index]
    try:
        with torch.device("meta"):
            network = kind.from_config(kind.load_config(folder / name))
    except Exception as error:  # A configuration can be wrong in any way.
        raise UserError(f"{folder / name / 'config.json'} describes no network: {one_line(error, 160)}.") from error
    wanted = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    found = stored_shapes(weight_files(folder / name, variant), wanted)
    adapters = [key for key in found if any(word in key for word in _ADAPTER_WORDS)]
    if adapters:
        raise UserError(
            f"{folder / name} holds an adapter beside the weights ({adapters[0]}): fuse it first (`pipe.fuse_lora()`, "
            "`pipe.unload_lora_weights()`, then save the pipeline)."
        )
    for key in (*wanted, *found):
        if wanted.get(key) != found.get(key):
            parts = [
                f"of shape {shape}" if shape is not None else "none" for shape in (wanted.get(key), found.get(key))
            ]
            raise UserError(
                f"{folder / name} does not hold the weights of its network: {key} must be {parts[0]}, found {parts[1]}."
            )
