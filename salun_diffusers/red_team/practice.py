"""A copy of a model to train on: the model itself is never touched, so there is nothing to restore."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, final

from torch import nn

from salun_diffusers.adapters.lora_weights import LoraWeights, attach
from salun_diffusers.adapters.low_rank import highest_rank, layers_of
from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.selected_weights import SelectedWeights
from salun_diffusers.masks.trained_weights import TrainedWeights
from salun_diffusers.red_team.subject import Subject
from salun_diffusers.seeds import stream_seed

_LORA = "relearned"
_ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")


def practising(subject: Subject, *others: str) -> Subject:
    """The same model with a denoiser of its own, which may be trained; all other parts are shared.

    A LoRA that lies on the denoiser becomes part of the copy's weights.

    Args:
        subject: Stays as it is.
        *others: Names of further parts that are copied, where the pipeline has them.
    """
    network: Any = copy.deepcopy(subject.family.denoiser)
    if getattr(network, "peft_config", None):
        network.fuse_lora()
        network.unload_lora()
    family: Any = copy.copy(subject.family)
    family.pipe = copy.copy(subject.family.pipe)
    family.pipe.unet = family.denoiser = network
    for name in others:
        if getattr(family.pipe, name, None) is not None:
            setattr(family.pipe, name, copy.deepcopy(getattr(family.pipe, name)))
    return replace(subject, family=family)


class Way(Protocol):
    """What of a denoiser is trained.

    Attributes:
        name: For a table.
    """

    @property
    def name(self) -> str:
        """For a table."""
        ...

    def weights(self, network: nn.Module, seed: int) -> TrainedWeights:
        """What an optimizer steps on.

        Args:
            network: A practising subject's.
            seed: Of what is drawn at the start.
        """
        ...


@final
@dataclass(frozen=True)
class ByLora:
    """A LoRA on the projections of attention, or on all linear layers of a network without any.

    Args:
        rank: r; α = r, as in diffusers' training scripts.

    Raises:
        UserError: If there is no rank.
    """

    rank: int = 4

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"The rank of a LoRA is 1 or more, got {self.rank}.")

    @property
    def name(self) -> str:
        """``LoRA 4``."""
        return f"LoRA {self.rank}"

    def weights(self, network: nn.Module, seed: int) -> TrainedWeights:
        """A and B of every layer."""
        layers = {name: shape for name, shape in layers_of(network).items() if len(shape) == 2}
        attention = {name: shape for name, shape in layers.items() if name.endswith(_ATTENTION)}
        network.requires_grad_(False)
        ranks = {name: min(self.rank, highest_rank(shape)) for name, shape in (attention or layers).items()}
        attach(network, ranks, 1.0, name=_LORA, seed=stream_seed(seed, _LORA))  # Not A as an erasure's own LoRA has it.
        return LoraWeights(network, _LORA)


@final
@dataclass(frozen=True)
class ByWeights:
    """The network's own weights: all of them, or those that an erasure was allowed to move.

    Args:
        mask: Of the erasure's run; "all" for every weight.
    """

    mask: SaliencyMask | Literal["all"] = "all"

    def __repr__(self) -> str:
        """By the mask's bits: what is kept of a probe goes by this, and other masks select as many weights."""
        return f"ByWeights({self.mask if isinstance(self.mask, str) else self.mask.sha256})"

    @property
    def name(self) -> str:
        """Which."""
        return "all weights" if self.mask == "all" else "selected weights"

    def weights(self, network: nn.Module, seed: int) -> TrainedWeights:
        """The entries that a mask selects.

        Raises:
            UserError: If the mask is of another network.
        """
        network.requires_grad_(True)
        parameters = dict(network.named_parameters())
        mask = SaliencyMask.full(parameters) if self.mask == "all" else self.mask
        return SelectedWeights(parameters, mask)
