"""Whether another eraser's weights belong to a base, by names and shapes in the headers of both.

What does not fit is refused as a whole: `load_state_dict(…, strict=False)`, which the field's scripts call, passes over
foreign names in silence, and then the base would be measured under the eraser's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.component_files import weight_files
from salun_diffusers.files.eraser_files import EraserFile, FileTensor, part_of
from salun_diffusers.files.json_files import read_object
from salun_diffusers.files.original_names import unet_names
from salun_diffusers.files.pipeline_folder import components, denoiser_folder, model_index
from salun_diffusers.files.whole_files import check_whole

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Placed: TypeAlias = dict[str, dict[str, FileTensor]]
"""For each component of the base, the tensors that stand in for its own, by the base's names."""

TEXT = "text_model."
_ENCODERS = ("text_encoder", "text_encoder_2")


def base_shapes(base: Path, component: str, variant: str | None = None) -> dict[str, tuple[int, ...]]:
    """Shapes of a component's tensors; those of a text encoder by the names that transformers 5 gives them.

    Args:
        base: The pipeline.
        component: Such as ``unet``.
        variant: Variant of the weight files.

    Raises:
        UserError: If it has no safetensors weights.
    """
    return {
        name.removeprefix(TEXT) if component in _ENCODERS else name: tuple(entry["shape"])
        for file in weight_files(base / component, variant, strictly=component not in _ENCODERS)
        for name, entry in check_whole(file).items()
        if name != "__metadata__" and not name.endswith("position_ids")
    }


def encoders_of(base: Path) -> list[str]:
    """Folders of a pipeline's text encoders."""
    return [name for name in _ENCODERS if name in components(model_index(base))]


def original_unet_names(base: Path, unet: str, shapes: Shapes) -> dict[str, str]:
    """Names of the original code by diffusers' names; none where a U-Net's blocks have no place there."""
    layers = read_object(base / unet / "config.json", constants=float).get("layers_per_block", 2)
    named = unet_names(shapes, layers) if type(layers) is int else {}
    return {old: new for new, old in named.items() if old}


def fit_weights(found: EraserFile, base: Path, variant: str | None = None) -> Placed:
    """Find the place of each tensor in the base.

    Args:
        found: The eraser's file, of weights.
        base: The pipeline that it was made of.
        variant: Variant of the base's weight files.

    Raises:
        UserError: If a name is not one of the base's, or a shape is another: naming the first and how many.
    """
    unet = denoiser_folder(model_index(base), base)
    of_unet: dict[str, FileTensor] = {}
    of_text: dict[str, FileTensor] = {}
    original: dict[str, FileTensor] = {}
    rooms = {"unet": of_unet, "original unet": original, "text encoder": of_text}
    for name, tensor in found.tensors.items():
        part = part_of(name)
        if part is not None:
            if part[1] in rooms[part[0]]:
                raise UserError(f"{found.path} has two tensors for {one_line(part[1], 120)}; one is required.")
            rooms[part[0]][part[1]] = tensor
    placed: Placed = {}
    if of_unet or original:
        shapes = base_shapes(base, unet, variant)
        if original:
            known = original_unet_names(base, unet, shapes)
            of_unet |= {known.get(name, name): tensor for name, tensor in original.items()}
        _require_fit(found, of_unet, shapes, (base, unet))
        placed[unet] = of_unet
    if of_text:
        component = _encoder(found, of_text, base, variant)
        _require_fit(found, of_text, base_shapes(base, component, variant), (base, component))
        placed[component] = of_text
    return placed


def _encoder(found: EraserFile, tensors: Mapping[str, FileTensor], base: Path, variant: str | None) -> str:
    """The text encoder that tensors are of: the one that the file names, or whose shapes they have."""
    there = encoders_of(base)
    if not there:
        raise UserError(f"{found.path} holds a text encoder, and {base} has none.")
    if any(tensor.name.startswith("text_encoder_2.") for tensor in tensors.values()) or found.path.name == there[-1]:
        return there[-1]
    return max(there, key=lambda name: -len(_strange(tensors, base_shapes(base, name, variant))))


def _strange(tensors: Mapping[str, FileTensor], shapes: Shapes) -> list[str]:
    return [name for name, tensor in tensors.items() if shapes.get(name) != tensor.shape]


def _require_fit(found: EraserFile, tensors: Mapping[str, FileTensor], shapes: Shapes, where: tuple[Path, str]) -> None:
    strange = _strange(tensors, shapes)
    if strange:
        raise misfit(found.path, (strange[0], tensors[strange[0]].shape), (len(strange), len(tensors)),
                     (shapes.get(strange[0]), *where))  # fmt: skip


def misfit(
    path: Path, first: tuple[str, Any], counts: tuple[int, int], there: tuple[tuple[int, ...] | None, Path, str]
) -> UserError:
    """The error for tensors that are not those of a base.

    Args:
        path: The file.
        first: Name and shape of the first of them.
        counts: How many they are, and of how many.
        there: What the base has by this name, the base, and its component.
    """
    shape, base, component = there
    has = f"there it is of shape {shape}" if shape is not None else "which is not there"
    return UserError(
        f"{path} was not made of {base}: {'none' if counts[0] == counts[1] else counts[1] - counts[0]} of its "
        f"{counts[1]} tensors for the {component} fit, the first that does not is {one_line(first[0], 120)} of shape "
        f"{first[1]}, {has}. The base that it was made of is required before the plus."
    )
