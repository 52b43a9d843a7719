"""The model that a run begins with, and what becomes of it: a pipeline folder, or (`held_model.py`) one in memory.

Nothing heavy is imported until it is asked for: a request is checked before torch is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from salun_diffusers.diffusion.presets.text_space import NOT_AT_HAND, TextEncoderSpace, TextSpace
from salun_diffusers.errors import UserError
from salun_diffusers.files.component_files import check_complete, weight_files
from salun_diffusers.files.pipeline_copy import copy_with_denoiser, size_of_copy
from salun_diffusers.files.pipeline_folder import denoiser_folder, model_index
from salun_diffusers.files.run_folder import identity_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from salun_diffusers.diffusion.families.family import Family
    from salun_diffusers.masks.mask import SaliencyMask
    from salun_diffusers.masks.patch import WeightPatch
    from salun_diffusers.masks.receipt import MaskReceipt


@dataclass(frozen=True)
class Loading:
    """How a family is made ready.

    Args:
        device: Where everything goes.
        dtype: Of all parts but the denoiser, which is in fp32, and of sampling.
        prediction_type: What the network predicts, where the scheduler is wrong about that.
        resolution: Side of the pictures that are drawn; 0 for the model's own.
    """

    device: torch.device
    dtype: torch.dtype
    prediction_type: str
    resolution: int


class BaseModel(Protocol):
    """A pipeline that can be erased from, and after that the erased one; a folder names each.

    Attributes:
        folder: Its folder, of which at least the configurations are there.
        is_held: Whether it lies in memory: then no run can be taken up again.
        device: Where it must be computed with; None leaves that to accelerate.
        result: Name of the folder of a run for what is made of it.
    """

    @property
    def folder(self) -> Path:
        """Where its configurations lie."""
        ...

    @property
    def is_held(self) -> bool:
        """Whether it lies in memory."""
        ...

    @property
    def device(self) -> torch.device | None:
        """Where it must be computed with."""
        ...

    @property
    def result(self) -> str:
        """Name of the folder of a run for what is made of it."""
        ...

    def at(self, folder: Path) -> BaseModel:
        """The model that this one's `write` has put under a folder's name, or the one that was there."""
        ...

    def require_complete(self) -> None:
        """Refuse a model that lacks a part.

        Raises:
            UserError: Naming the first.
        """
        ...

    def counts(self) -> Mapping[str, int] | None:
        """Weights of each tensor of the denoiser; None where its files say it."""
        ...

    def bytes_of_result(self) -> int:
        """What the erased model takes on disk."""
        ...

    def text_space(self) -> TextSpace:
        """How near words lie to its text encoder, where its weights are here already."""
        ...

    def identity(self) -> str:
        """SHA-256 of all that erasing reads."""
        ...

    def family(self, pipeline_class: str, loading: Loading) -> Family:
        """The model, ready to be drawn with and trained."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """The denoiser's weights by name, as they are stored, on the CPU."""
        ...

    def dtypes(self) -> Mapping[str, torch.dtype]:
        """Data type of each tensor of the denoiser, as it is stored."""
        ...

    def write(self, target: Path, denoiser: nn.Module) -> list[Path]:
        """Put an erased denoiser, in its data types, under a folder's name; returns the files of weights."""
        ...

    def receipt(self, target: Path, mask: SaliencyMask) -> MaskReceipt:
        """Compare what was put there with this model."""
        ...

    def patch(self, target: Path) -> WeightPatch:
        """What was changed."""
        ...

    def loading_line(self) -> str:
        """The Python line that loads it; empty where it is loaded."""
        ...


def is_complete(model: BaseModel) -> bool:
    """Whether no part is lacking: of a model on the hub, whether it has been fetched."""
    try:
        model.require_complete()
    except UserError:
        return False
    return True


@dataclass(frozen=True)
class FolderModel:
    """A pipeline folder.

    Args:
        folder: The folder.
        variant: Variant of its weight files.
    """

    folder: Path
    variant: str | None = None
    is_held = False
    device = None
    result = "pipeline"

    def text_space(self) -> TextSpace:
        """That of the folder's first text encoder."""
        at_hand = any((self.folder / "text_encoder").glob("*.safetensors"))
        return TextEncoderSpace(self.folder, self.variant) if at_hand else NOT_AT_HAND

    def at(self, folder: Path) -> FolderModel:
        """The model in another folder."""
        return FolderModel(folder, self.variant)

    def require_complete(self) -> None:
        """Refuse a folder that lacks a part.

        Raises:
            UserError: Naming the first.
        """
        check_complete(self.folder, self.variant)

    def counts(self) -> None:
        """The headers of its files say it."""

    def bytes_of_result(self) -> int:
        """Bytes of the copy."""
        return size_of_copy(self.folder, self.variant)

    def identity(self) -> str:
        """SHA-256 of every file that erasing reads."""
        return identity_of(self.folder)

    def family(self, pipeline_class: str, loading: Loading) -> Family:
        """Load it."""
        from salun_diffusers.diffusion.families.known import family_of

        return family_of(pipeline_class)(
            self.folder,
            device=loading.device,
            variant=self.variant,
            dtype=loading.dtype,
            prediction_type=loading.prediction_type,
            resolution=loading.resolution,
        )

    def tensors(self) -> Mapping[str, Tensor]:
        """Of its files, each when it is asked for."""
        from salun_diffusers.files.stored_weights import StoredTensors

        return StoredTensors(self.folder / self._denoiser, self.variant)

    def dtypes(self) -> Mapping[str, torch.dtype]:
        """By its files."""
        from salun_diffusers.files.stored_weights import stored_dtypes

        return stored_dtypes(self.folder / self._denoiser, self.variant)

    def write(self, target: Path, denoiser: nn.Module) -> list[Path]:
        """Write a copy of the folder with this denoiser."""
        network: Any = denoiser
        copy_with_denoiser(
            self.folder,
            target,
            lambda folder: network.save_pretrained(folder, variant=self.variant, safe_serialization=True),
            variant=self.variant,
        )
        return weight_files(target / self._denoiser, self.variant)

    def receipt(self, target: Path, mask: SaliencyMask) -> MaskReceipt:
        """Compare every weight and file."""
        from salun_diffusers.masks.receipt import compare

        return compare(self.folder, target, mask, (self.variant, self.variant))

    def patch(self, target: Path) -> WeightPatch:
        """Compare the denoisers' files."""
        from salun_diffusers.masks.patch import patch_between

        return patch_between(self.folder, target, (self.variant, self.variant))

    def loading_line(self) -> str:
        """The line that loads the folder so that it draws."""
        from salun_diffusers.files.loading import loading_line

        return loading_line(self.folder, self.variant)

    @property
    def _denoiser(self) -> str:
        return denoiser_folder(model_index(self.folder), self.folder)
