"""A base with what another eraser wrote put into it, as a model: examined, or erased from once more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from salun_diffusers.diffusion.base_model import FolderModel, Loading
from salun_diffusers.diffusion.presets.text_space import NotAtHand, TextSpace
from salun_diffusers.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from salun_diffusers.diffusion.eraser_edit import EraserEdit
    from salun_diffusers.diffusion.families.family import Family
    from salun_diffusers.masks.mask import SaliencyMask
    from salun_diffusers.masks.patch import WeightPatch
    from salun_diffusers.masks.receipt import MaskReceipt


@dataclass(frozen=True)
class EditedModel:
    """A pipeline folder and a file of another eraser.

    Args:
        base: The pipeline that the file was made of; nothing of it is written to.
        file: The file or folder: weights of the U-Net or of a text encoder, a LoRA, or a patch of `salun patch`.
    """

    base: FolderModel
    file: Path
    is_held = False
    device = None
    result = "pipeline"

    @cached_property
    def edit(self) -> EraserEdit:
        """What the file changes.

        Raises:
            UserError: If it is none of another eraser, or not of this base.
        """
        from salun_diffusers.diffusion.eraser_edit import EraserEdit

        return EraserEdit.of(self.file, self.base.folder, self.base.variant)

    @property
    def folder(self) -> Path:
        """The base's."""
        return self.base.folder

    def at(self, folder: Path) -> FolderModel | EditedModel:
        """The model in another folder."""
        return self if folder == self.base.folder else self.base.at(folder)

    def require_complete(self) -> None:
        """Refuse a base that lacks a part, or a file that does not fit it.

        Raises:
            UserError: Naming the first.
        """
        self.base.require_complete()
        _ = self.edit

    def counts(self) -> None:
        """The headers of the base's files say it."""

    def bytes_of_result(self) -> int:
        """The base's."""
        return self.base.bytes_of_result()

    def text_space(self) -> TextSpace:
        """The base's; where its text encoder is another one now, its vocabulary is all that is known."""
        changed = any(part.startswith("text_encoder") for part in self.edit.parts)
        space = self.base.text_space()
        return NotAtHand(space.of_a_toy) if changed else space

    def identity(self) -> str:
        """SHA-256 of the base and of the files."""
        return self.edit.identity()

    def family(self, pipeline_class: str, loading: Loading) -> Family:
        """Load the base and put the file into it."""
        family = self.base.family(pipeline_class, loading)
        self.edit.put_into(family.pipe)
        return family

    def tensors(self) -> Mapping[str, Tensor]:
        """The denoiser's weights with the change; those of a LoRA in float32."""
        return self.edit.tensors(self.base.tensors())

    def dtypes(self) -> Mapping[str, torch.dtype]:
        """The base's."""
        return self.base.dtypes()

    def write(self, target: Path, denoiser: nn.Module) -> list[Path]:
        """Write a copy of the base with this denoiser.

        Raises:
            UserError: If the file changes more than the denoiser, which a copy of the base would take back.
        """
        if set(self.edit.parts) - {self.edit.denoiser} or self.edit.found.kind == "lora":
            raise UserError(f"{self.file} cannot be erased from: save it with its base as a pipeline folder first.")
        return self.base.write(target, denoiser)

    def receipt(self, target: Path, mask: SaliencyMask) -> MaskReceipt:
        """Compare every weight of the denoiser."""
        from salun_diffusers.masks.receipt import count_moves

        return count_moves(self.tensors(), self.base.at(target).tensors(), mask)

    def patch(self, target: Path) -> WeightPatch:
        """Compare the denoisers."""
        from salun_diffusers.masks.patch import WeightPatch

        return WeightPatch.between(self.tensors(), dict(self.base.at(target).tensors()))

    def loading_line(self) -> str:
        """None: it has no folder of its own."""
        return ""
