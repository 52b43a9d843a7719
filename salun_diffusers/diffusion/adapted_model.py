"""A base model whose erasure is a LoRA beside it: the base stays as it is, to the byte."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salun_diffusers.diffusion.base_model import BaseModel, Loading
from salun_diffusers.diffusion.presets.text_space import TextSpace
from salun_diffusers.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from salun_diffusers.adapters.low_rank import LowRank
    from salun_diffusers.diffusion.families.family import Family
    from salun_diffusers.masks.mask import SaliencyMask
    from salun_diffusers.masks.patch import WeightPatch
    from salun_diffusers.masks.receipt import MaskReceipt

NAME = "erasure"
"""What the LoRA is called in a pipeline that it is loaded into here."""


@dataclass(frozen=True)
class AdaptedModel:
    """A base, or the same with the LoRA of a folder.

    What is drawn with the LoRA is drawn with what diffusers' own `load_lora_weights` makes of its file.

    Args:
        base: The base; nothing of it is written to.
        told: What the record beside the LoRA says of the erasure.
        place: Folder of the LoRA; None for the base alone.
    """

    base: BaseModel
    told: Mapping[str, Any] = field(default_factory=dict)
    place: Path | None = None
    result = "adapter"

    @property
    def folder(self) -> Path:
        """The base's."""
        return self.base.folder

    @property
    def is_held(self) -> bool:
        """Whether the base lies in memory."""
        return self.base.is_held

    @property
    def device(self) -> torch.device | None:
        """The base's."""
        return self.base.device

    def at(self, folder: Path) -> AdaptedModel:
        """With the LoRA of a folder; of the base's own, the base alone."""
        return dataclasses.replace(self, place=None if folder == self.base.folder else folder)

    def require_complete(self) -> None:
        """Refuse a base that lacks a part.

        Raises:
            UserError: Naming the first.
        """
        self.base.require_complete()

    def counts(self) -> Mapping[str, int] | None:
        """The base's."""
        return self.base.counts()

    def bytes_of_result(self) -> int:
        """As many as the base: a bound, where the LoRA is counted by nobody."""
        return self.base.bytes_of_result()

    def text_space(self) -> TextSpace:
        """The base's."""
        return self.base.text_space()

    def identity(self) -> str:
        """SHA-256 of the base and, with a LoRA, of its file."""
        from salun_diffusers.adapters.lora_folder import WEIGHTS
        from salun_diffusers.files.run_folder import fingerprint
        from salun_diffusers.files.whole_files import sha256_of

        if self.place is None:
            return self.base.identity()
        return fingerprint(base=self.base.identity(), adapter=sha256_of(self.place / WEIGHTS))

    def family(self, pipeline_class: str, loading: Loading) -> Family:
        """Load the base, and the LoRA into it as diffusers does."""
        family = self.base.family(pipeline_class, loading)
        if self.place is not None:
            load_lora(family.pipe, self.place)
        return family

    def tensors(self) -> Mapping[str, Tensor]:
        """The base's; with a LoRA, W + B·A in float32."""
        from salun_diffusers.adapters.fused import Fused
        from salun_diffusers.adapters.lora_folder import read_lora

        return self.base.tensors() if self.place is None else Fused(self.base.tensors(), read_lora(self.place))

    def dtypes(self) -> Mapping[str, torch.dtype]:
        """Of A and B of every layer that a LoRA can have: that of the weight they change."""
        return {
            f"{name.removesuffix('.weight')}.{half}.{NAME}.weight": dtype
            for name, dtype in self.base.dtypes().items()
            for half in ("lora_A", "lora_B")
            if name.endswith(".weight")
        }

    def write(self, target: Path, denoiser: nn.Module) -> list[Path]:
        """Write the LoRA that a denoiser holds; returns its file."""
        from salun_diffusers.adapters.lora_folder import write_lora
        from salun_diffusers.adapters.lora_weights import attached

        lora = attached(denoiser, NAME)
        return [write_lora(target, lora, self._record(lora))]

    def _record(self, lora: LowRank) -> dict[str, Any]:
        return {
            **self.told,
            "made": "trained",
            "base_sha256": self.base.identity(),
            "parameters": lora.number_of_parameters,
            "layers": [{"layer": name, "rank": one.rank} for name, one in lora.items()],
        }

    def receipt(self, target: Path, mask: SaliencyMask) -> MaskReceipt:
        """Compare W + B·A with W, and the base with what it was at the start."""
        from salun_diffusers.masks.receipt import count_moves

        found = count_moves(self.base.tensors(), self.at(target).tensors(), mask)
        same = self.base.identity() == mask.recipe.get("base_sha256")
        return found if same else dataclasses.replace(found, changed_files=("the base model",))

    def patch(self, target: Path) -> WeightPatch:
        """There is none: no weight of the base has changed.

        Raises:
            UserError: Always.
        """
        raise UserError(f"A LoRA has no patch: the base is as it was, and without {target} nothing is erased.")

    def loading_line(self) -> str:
        """The line that loads the base and the LoRA; empty where the base is loaded."""
        from salun_diffusers.adapters.lora_folder import WEIGHTS

        line = self.base.loading_line()
        if not line or self.place is None:
            return line
        place = json.dumps(str(self.place), ensure_ascii=False)
        return f'{line}; pipe.load_lora_weights({place}, weight_name="{WEIGHTS}")'


def load_lora(pipe: Any, folder: Path, name: str = NAME) -> None:
    """Load the LoRA of a folder into a pipeline, by diffusers' own loader and without its remarks.

    Args:
        pipe: The pipeline.
        folder: As `write_lora` wrote it, with PEFT's names.
        name: Of the adapter.
    """
    from salun_diffusers.adapters.lora_folder import WEIGHTS
    from salun_diffusers.progress import loading_quietly

    with loading_quietly():
        pipe.load_lora_weights(str(folder), weight_name=WEIGHTS, adapter_name=name, local_files_only=True)
