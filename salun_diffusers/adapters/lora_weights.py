"""A LoRA in training: A and B of some layers of a network, as all that an optimizer sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from salun_diffusers.adapters.low_rank import Factors, LowRank
from salun_diffusers.errors import UserError
from salun_diffusers.masks.trained_tensors import only_trained
from salun_diffusers.seeds import stream


def attach(network: Any, ranks: Mapping[str, int], scale: float, *, name: str, seed: int) -> None:
    """Put a LoRA that changes nothing yet on layers of a network, by PEFT.

        y = W x + scale · B A x        A ~ U(-1/√in, 1/√in)        B = 0

    Args:
        network: A model of diffusers.
        ranks: r of each layer, by its name.
        scale: α/r, the same for all layers.
        name: Of the adapter.
        seed: A is told by this number and the layer's name, on any device.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=1,
        target_modules=list(ranks),
        rank_pattern=dict(ranks),
        alpha_pattern={layer: scale * rank for layer, rank in ranks.items()},  # type: ignore[misc]  # any number
    )
    if hasattr(network, "add_adapter"):
        network.add_adapter(config, adapter_name=name)
    else:  # Not every network of diffusers says that it has one: that of a DDPM.
        inject_adapter_in_model(config, network, adapter_name=name)
    for layer, (down, up) in _pairs(network, name).items():
        bound = down[0].numel() ** -0.5
        drawn = torch.rand(down.shape, generator=stream(seed, "lora", layer)) * 2 - 1
        with torch.no_grad():
            down.copy_(drawn * bound)
            up.zero_()


def attached(network: nn.Module, name: str) -> LowRank:
    """The LoRA that a network holds, its scale multiplied into B."""
    found, modules = {}, dict(network.named_modules())
    for layer, (down, up) in _pairs(network, name).items():
        scale: float = modules[layer].scaling[name]  # type: ignore[index, assignment]
        found[layer] = Factors(down.detach(), (up.detach() * scale).to(up.dtype))
    return LowRank(found)


def _pairs(network: nn.Module, name: str) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """A and B of each layer with the adapter, in the order of the network."""
    found = {}
    for layer, module in network.named_modules():
        halves: Any = module
        if name in getattr(module, "lora_A", ()):
            found[layer] = (halves.lora_A[name].weight, halves.lora_B[name].weight)
    return found


@final
class LoraWeights:
    """A and B of the layers of a network that has a LoRA: what an optimizer steps on, as `SelectedWeights` is.

    They are parameters of the network, so nothing is gathered and nothing scattered.

    Attributes:
        weights: A, B, A, B, … in the order of the network.
        names: Their names in the network.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        """Find the LoRA.

        Args:
            network: As `attach` left it.
            name: Of the adapter.
        """
        self._parameters = dict(network.named_parameters())
        mine = {id(half) for pair in _pairs(network, name).values() for half in pair}
        self.names = [key for key, parameter in self._parameters.items() if id(parameter) in mine]
        self.weights = [self._parameters[key] for key in self.names]
        for parameter in self.weights:
            parameter.requires_grad_(True)

    def __repr__(self) -> str:
        return f"LoraWeights({self.number_selected} weights in {len(self.weights)} tensors)"

    @property
    def number_selected(self) -> int:
        """How many weights there are."""
        return sum(weight.numel() for weight in self.weights)

    @contextmanager
    def in_training(self, *, gather_as_they_come: bool) -> Iterator[None]:
        """Within the block no gradient is computed for the network's own tensors.

        Args:
            gather_as_they_come: Of no effect: no gradient is larger than its weight.
        """
        with only_trained(self._parameters, self.names):
            yield

    def gather_gradients(self) -> None:
        """Nothing to do: backward adds to the gradients of A and B themselves."""

    def scatter(self) -> None:
        """Nothing to do: A and B are the network's own."""

    def state(self) -> dict[str, Tensor]:
        """A and B by name, for a checkpoint. They are live: save or clone them before stepping."""
        return {name: weight.detach() for name, weight in zip(self.names, self.weights, strict=True)}

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take up values that `state` returned.

        Raises:
            UserError: If names or shapes are not those of this LoRA; nothing has been changed then.
        """
        wanted = {name: tuple(weight.shape) for name, weight in zip(self.names, self.weights, strict=True)}
        found = {name: tuple(tensor.shape) for name, tensor in values.items()}
        if wanted != found:
            name = next(name for name in (*wanted, *found) if wanted.get(name) != found.get(name))
            raise UserError(
                f"{name} of the LoRA must have shape {wanted.get(name, 'none')}, got {found.get(name, 'none')}: it is "
                "of a run with other ranks."
            )
        for name, weight in zip(self.names, self.weights, strict=True):
            weight.copy_(values[name])
