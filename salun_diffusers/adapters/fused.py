"""What weights are with a LoRA on them, one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import final

from torch import Tensor

from salun_diffusers.adapters.low_rank import LowRank
from salun_diffusers.errors import UserError


@final
class Fused(Mapping[str, Tensor]):
    """W + B·A in float32 by the name of the weight, computed when it is asked for; other tensors as they are."""

    def __init__(self, weights: Mapping[str, Tensor], lora: LowRank) -> None:
        """Look whether the two belong together.

        Args:
            weights: The base's.
            lora: The changes.

        Raises:
            UserError: If a layer of the LoRA is none of the base, or of another shape.
        """
        self._weights, self._lora = weights, lora
        for layer, one in lora.items():
            name, wanted = f"{layer}.weight", (one.up.shape[0], *one.down.shape[1:])
            found = tuple(weights[name].shape) if name in weights else "none"
            if found != wanted:
                raise UserError(
                    f"The LoRA is of another model: it changes {name} of shape {tuple(wanted)}, the base has {found}."
                )

    def __getitem__(self, name: str) -> Tensor:
        weight, layer = self._weights[name], name.removesuffix(".weight")
        if name == layer or layer not in self._lora:
            return weight
        return weight.float() + self._lora[layer].change()

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
