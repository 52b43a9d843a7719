"""The weights a mask selects, as the only thing an optimizer ever sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.masks.positions import Keep, Positions, positions_of
from salun_diffusers.masks.shards import held, held_range
from salun_diffusers.masks.trained_tensors import only_trained


@final
class SelectedWeights:
    """θ_S = θ[m]: per tensor with a selected weight one flat leaf that any optimizer can step on.

    A step is ``loss.backward()``, ``gather_gradients()``, clipping and ``optimizer.step()`` on `weights`,
    ``optimizer.zero_grad()``, ``scatter()``:

        g_S ← g_S + (∇_θ ℓ)[m]        θ_S ← optimizer(θ_S, g_S)        θ[m] ← θ_S

    Frozen entries are never written, whatever the optimizer does: weight decay and momentum have nothing to act on.
    Setting gradients to zero does not achieve that. Optimizer state exists for the selected weights only.

    Inside ``with selected.in_training(...)`` tensors without a selected weight get no gradient at all, and those of the
    others can be gathered as they come, so that dense gradients never exist together.

    Differs from the official code: OPTML-Group/Unlearn-Saliency@a6e89fd multiplies dense gradients by the mask
    (SD/train-scripts/random_label.py); its classification code also writes the frozen weights back after each step.

    Leaves are float32 also where the parameter has another precision: they are the master weights; `scatter` rounds.
    Of a tensor that FSDP2 has shared out among processes (a DTensor) each has the leaf of what it holds, in order.

    A float32 tensor that is selected whole is not copied: its leaf is a view of the parameter. Do not move the model to
    another device or dtype after construction.

    Attributes:
        weights: The leaves, each `(number selected,)`; hand these to the optimizer and to gradient clipping.
        names: The parameter each leaf belongs to.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> mask = SaliencyMask.from_bools({"weight": torch.tensor([[True, False]]), "bias": torch.tensor([False])})
        >>> selected = SelectedWeights(dict(layer.named_parameters()), mask)
        >>> optimizer = torch.optim.AdamW(selected.weights)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> selected.gather_gradients()
        >>> optimizer.step()
        >>> optimizer.zero_grad()
        >>> selected.scatter()  # layer.weight[0, 0] has moved, the other two weights have not.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], mask: SaliencyMask, *, keep: Keep | None = None) -> None:
        """Gather the weights that `mask` selects.

        Args:
            parameters: The model's, by name.
            mask: Which of their weights may move.
            keep: What says where they lie, see `positions_of`; by default what suits the device.

        Raises:
            UserError: If the mask does not match the parameters or selects nothing, or if a parameter with selected
                weights is not floating point, does not require a gradient or is not contiguous.
        """
        mask = mask.matched_to(parameters)
        self._parameters = dict(parameters)
        self.names: list[str] = []
        self.weights: list[nn.Parameter] = []
        self._positions: list[Positions] = []
        for name, _, number in mask.stats():
            if number == 0:
                continue
            parameter = parameters[name]
            _check_parameter(name, parameter)
            positions = positions_of(mask, name, parameter, keep)
            self.names.append(name)
            self.weights.append(nn.Parameter(positions.take(held(parameter)).to(torch.float32)))
            self._positions.append(positions)
        if not self.weights:
            raise UserError("The mask selects no weight at all, so nothing could be trained; use a larger ratio.")

    def __repr__(self) -> str:
        return f"SelectedWeights({self.number_selected} weights in {len(self.weights)} tensors)"

    @property
    def number_selected(self) -> int:
        """How many weights may move."""
        return sum(leaf.numel() for leaf in self.weights)

    @contextmanager
    def in_training(self, *, gather_as_they_come: bool) -> Iterator[None]:
        """Within the block no gradient is computed for tensors without a selected weight.

        Args:
            gather_as_they_come: Take the selected entries of each gradient, and free it, as soon as backward has
                computed it: at no time are there dense gradients of more than one tensor. The sums are the same to the
                bit, also over several micro-batches. Not with DistributedDataParallel, which reduces gradients later.
        """
        with ExitStack() as undone, only_trained(self._parameters, self.names):
            for place, name in enumerate(self.names if gather_as_they_come else ()):
                parameter = self._parameters[name]
                undone.callback(parameter.register_post_accumulate_grad_hook(partial(self._gather, place)).remove)
            yield

    @torch.no_grad()
    def _gather(self, place: int, parameter: Tensor) -> None:
        """Add the selected entries of a dense gradient to the gradient of its leaf, and drop it."""
        dense, parameter.grad = parameter.grad, None
        if dense is None:
            return
        leaf = self.weights[place]
        gradient = self._positions[place].take(held(dense)).to(torch.float32)
        leaf.grad = gradient if leaf.grad is None else leaf.grad.add_(gradient)

    def gather_gradients(self) -> None:
        """Add the selected entries of every dense ``.grad`` to its leaf's ``.grad``, then drop all dense ones.

        Adding is what backward does, too: called after every micro-batch this accumulates, in float32 and without
        keeping dense gradients; ``optimizer.zero_grad()`` starts anew. A leaf whose parameter has got no gradient is
        left as it is: None after ``zero_grad``, and optimizers skip it.
        """
        for place, name in enumerate(self.names):
            self._gather(place, self._parameters[name])
        for parameter in self._parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def scatter(self) -> None:
        """Write the leaves back to the selected positions of the parameters; no other position is written."""
        for name, leaf, positions in zip(self.names, self.weights, self._positions, strict=True):
            flat = held(self._parameters[name])
            positions.put(flat, leaf.detach().to(flat.dtype))

    def gather(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        """Take the selected entries of other tensors of the parameters' shapes, on the devices of the leaves.

        Args:
            values: By parameter name, whole also where this process holds a part of the parameter.

        Raises:
            UserError: If there is none for a leaf, or of another size.
        """
        found = []
        for name, positions in zip(self.names, self._positions, strict=True):
            parameter = self._parameters[name]
            size = tuple(values[name].shape) if name in values else "nothing"
            if size != tuple(parameter.shape):
                raise UserError(f"A value for each weight of {name} {tuple(parameter.shape)} is required, got {size}.")
            mine = held_range(name, parameter)
            flat = values[name].reshape(-1)[mine.start : mine.stop].to(parameter.device)
            found.append(positions.take(flat).clone())
        return found

    def state(self) -> dict[str, Tensor]:
        """Return the leaves by parameter name, for a checkpoint. They are live: save or clone them before stepping."""
        return {name: leaf.detach() for name, leaf in zip(self.names, self.weights, strict=True)}

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take up values that `state` returned, in the leaves and in the parameters.

        Raises:
            UserError: If names or sizes are not those of this selection; nothing has been changed then.
        """
        for name, leaf in zip(self.names, self.weights, strict=True):
            found = tuple(values[name].shape) if name in values else "nothing"
            if found != tuple(leaf.shape):
                raise UserError(
                    f"The selected weights of {name} must have shape {tuple(leaf.shape)}, got {found}: "
                    "they come from a run with another mask."
                )
        for name in values:
            if name not in self.names:
                raise UserError(
                    f"There are values for {name}, where this mask selects nothing: use the run's own mask."
                )
        for name, leaf in zip(self.names, self.weights, strict=True):
            leaf.copy_(values[name])
        self.scatter()


def _check_parameter(name: str, parameter: nn.Parameter) -> None:
    if not parameter.is_floating_point():
        raise UserError(f"{name} must be floating point to be trained, got {parameter.dtype}; restrict the mask.")
    if not parameter.requires_grad:
        raise UserError(
            f"{name} has selected weights but does not require a gradient; call requires_grad_(True) on it."
        )
    if not parameter.is_contiguous():
        raise UserError(
            f"{name} must be contiguous, got strides {parameter.stride()} for shape {tuple(parameter.shape)}; "
            "call model.to(memory_format=torch.contiguous_format) first."
        )
