"""The weights a mask selects, as the only thing an optimizer ever sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from salun_diffusers.errors import UserError
from salun_diffusers.masks.mask import SaliencyMask


@final
class SelectedWeights:
    """θ_S = θ[m]: per tensor with a selected weight one flat leaf that any optimizer can step on.

    A step is ``loss.backward()``, ``gather_gradients()``, clipping and ``optimizer.step()`` on `weights`,
    ``optimizer.zero_grad()``, ``scatter()``:

        g_S ← g_S + (∇_θ ℓ)[m]        θ_S ← optimizer(θ_S, g_S)        θ[m] ← θ_S

    Frozen entries are never written, whatever the optimizer does: weight decay and momentum have nothing to act on.
    Setting gradients to zero does not achieve that. Optimizer state exists for the selected weights only.

    Differs from the official code: OPTML-Group/Unlearn-Saliency@a6e89fd multiplies dense gradients by the mask
    (SD/train-scripts/random_label.py); its classification code also writes the frozen weights back after each step.

    Leaves are float32 also where the parameter has another precision: they are the master weights; `scatter` rounds.
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

    def __init__(self, parameters: Mapping[str, nn.Parameter], mask: SaliencyMask) -> None:
        """Gather the weights that `mask` selects.

        Raises:
            UserError: If the mask does not match the parameters or selects nothing, or if a parameter with selected
                weights is not floating point, does not require a gradient or is not contiguous.
        """
        mask = mask.matched_to(parameters)
        self._parameters = dict(parameters)
        self.names: list[str] = []
        self.weights: list[nn.Parameter] = []
        self._indices: list[Tensor] = []
        self._whole: list[bool] = []
        for name, size, number in mask.stats():
            if number == 0:
                continue
            parameter = parameters[name]
            _check_parameter(name, parameter)
            # A tensor that is selected whole needs no indices.
            whole = number == size
            indices = (torch.empty(0, dtype=torch.int32) if whole else mask.indices(name)).to(parameter.device)
            flat = parameter.detach().view(-1)
            values = flat if whole else flat.index_select(0, indices)
            self.names.append(name)
            self.weights.append(nn.Parameter(values.to(torch.float32)))
            self._indices.append(indices)
            self._whole.append(whole)
        if not self.weights:
            raise UserError("The mask selects no weight at all, so nothing could be trained; use a larger ratio.")

    def __repr__(self) -> str:
        return f"SelectedWeights({self.number_selected} weights in {len(self.weights)} tensors)"

    @property
    def number_selected(self) -> int:
        """How many weights may move."""
        return sum(leaf.numel() for leaf in self.weights)

    @torch.no_grad()
    def gather_gradients(self) -> None:
        """Add the selected entries of every dense ``.grad`` to its leaf's ``.grad``, then drop all dense ones.

        Adding is what backward does, too: called after every micro-batch this accumulates, in float32 and without
        keeping dense gradients; ``optimizer.zero_grad()`` starts anew. A leaf whose parameter has got no gradient is
        left as it is: None after ``zero_grad``, and optimizers skip it.
        """
        for name, leaf, indices, whole in zip(self.names, self.weights, self._indices, self._whole, strict=True):
            dense = self._parameters[name].grad
            if dense is None:
                continue
            flat = dense.reshape(-1)
            gradient = (flat if whole else flat.index_select(0, indices)).to(torch.float32)
            leaf.grad = gradient if leaf.grad is None else leaf.grad.add_(gradient)
        for parameter in self._parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def scatter(self) -> None:
        """Write the leaves back to the selected positions of the parameters; no other position is written."""
        for name, leaf, indices, whole in zip(self.names, self.weights, self._indices, self._whole, strict=True):
            flat = self._parameters[name].detach().view(-1)
            if whole:
                flat.copy_(leaf)
            else:
                # index_copy_ takes int64 only: widened for one tensor at a time.
                flat.index_copy_(0, indices.long(), leaf.detach().to(flat.dtype))

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
