"""The line from the base to the erased weights: θ(s) = θ₀ + s·Δθ on the selected weights, s in [0, 1].

Walking it costs pictures and no training (task arithmetic, Ilharco et al., arXiv 2212.04089).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from salun_diffusers.diffusion.adapted_model import NAME as ADAPTER
from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.diffusion.request import Request
from salun_diffusers.diffusion.started_run import Run
from salun_diffusers.files.stored_weights import stored_weights
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.selected_weights import SelectedWeights


class Line:
    """The line between two states of the selected weights; the ends are exact, all other weights are never written.

    Of both ends only the selected weights are kept, in float32 on the CPU.
    """

    def __init__(self, selected: SelectedWeights, start: Mapping[str, Tensor]) -> None:
        """Begin at the present weights, which are the end of the line.

        Args:
            selected: The weights that are walked, at s = 1.
            start: Those of the base, in the same order.
        """
        self._selected, self._start = selected, dict(start)
        self._end = {name: leaf.to("cpu", copy=True) for name, leaf in selected.state().items()}

    def go_to(self, strength: float) -> None:
        """Put the weights to θ₀ + s·(θ - θ₀)."""
        if strength in (0.0, 1.0):  # As they are: no formula keeps the sign of a zero.
            self._selected.load(self._start if strength == 0.0 else self._end)
            return
        self._selected.load(
            {name: torch.lerp(self._start[name], end, strength) for name, end in self._end.items()}
        )  # fmt: skip

    @property
    def end(self) -> Mapping[str, Tensor]:
        """The weights at s = 1."""
        return self._end

    def turn_to(self, end: Mapping[str, Tensor]) -> None:
        """Another end, such as an earlier checkpoint's."""
        self._end = {name: tensor.to("cpu", torch.float32) for name, tensor in end.items()}


class AdapterLine(Line):
    """The line from the base to the base with its LoRA: θ₀ + s·B·A, as diffusers' `set_adapters` walks it."""

    def __init__(self, pipe: Any, name: str) -> None:
        """Begin at the end of the line.

        Args:
            pipe: With the LoRA.
            name: Of the LoRA.
        """
        self._pipe, self._name = pipe, name
        self._end = {}

    def go_to(self, strength: float) -> None:
        """Scale the LoRA by s."""
        self._pipe.set_adapters([self._name], [strength])


def line_of(run: Run, request: Request, family: Family) -> Line:
    """The line from the base to a family that was loaded from the erased pipeline, or with the LoRA that erases."""
    if request.settings.adapter != "none":
        return AdapterLine(family.pipe, ADAPTER)
    mask = SaliencyMask.load(run.folder.mask)
    selected = SelectedWeights(dict(family.denoiser.named_parameters()), mask)
    wanted, start = set(selected.names), {}
    for name, tensor in stored_weights(request.base / family.denoiser_folder, request.config.variant):
        if name in wanted:
            start[name] = tensor.flatten()[mask.indices(name).long()].float()
    return Line(selected, start)
