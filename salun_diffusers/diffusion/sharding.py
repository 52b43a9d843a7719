"""FSDP2: a denoiser shared out among processes, and with it the mask, the selected weights and their optimizer.

Each process holds some rows of every tensor, of their selected entries the leaves, and of those Adam's moments. Base
pictures and saliency come before, with whole networks; what is saved is put together again. Without FSDP2 all of this
does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from salun_diffusers.accelerator import sharding_plugin
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.errors import UserError


def refuse_unshardable(accelerator: Accelerator, settings: Settings) -> None:
    """Refuse settings whose arithmetic needs whole tensors.

    Raises:
        UserError: If there are any, and FSDP2.
    """
    if sharding_plugin(accelerator) is None:
        return
    if settings.objective == "l1_sparse":
        raise UserError("--objective l1_sparse sums over whole tensors, FSDP2 shares them out: use DDP or one process.")
    if settings.soft_threshold == "proximal" or settings.scales_updates:
        raise UserError(
            f"--soft_threshold {settings.soft_threshold} looks at whole tensors in every step, FSDP2 shares them out: "
            "use DDP, one process, or probabilistic masks that are drawn once (--mask_draws fixed)."
        )
    if getattr(settings, "robust", "none") != "none":
        raise UserError(f"--robust {settings.robust} moves whole leaves and back, FSDP2 shares them out: use DDP.")
    if getattr(settings, "adapter", "none") != "none":
        raise UserError("--adapter lora is small and trained whole, FSDP2 shares tensors out: use DDP or one process.")
    if getattr(settings, "use_8bit_adam", False):
        raise UserError("--use_8bit_adam has blocks across what FSDP2 shares out: use DDP, one process or fp32 Adam.")


def share_out(accelerator: Accelerator, denoiser: nn.Module) -> None:
    """Shard a denoiser in place, as accelerate's FSDP2 plugin is configured."""
    plugin = sharding_plugin(accelerator)
    if plugin is not None:
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        accelerator.state.fsdp_plugin = plugin  # accelerate itself shards on GPUs only.
        fsdp2_prepare_model(accelerator, denoiser)


def prepare(
    accelerator: Accelerator, denoiser: nn.Module, stepper: torch.optim.Optimizer
) -> tuple[Any, torch.optim.Optimizer]:
    """Make a network and the optimizer of its selected weights ready to train."""
    if sharding_plugin(accelerator) is None:
        network, prepared = accelerator.prepare(denoiser, stepper)
        return network, prepared
    # `prepare` would look for the optimizer's weights among the network's own, and those are leaves.
    return denoiser, accelerator.prepare_optimizer(stepper, device_placement=False)


def refresh(accelerator: Accelerator, denoiser: nn.Module) -> None:
    """Let the next forward pass see what has been written to the shards since the last one.

    After a pass without backward FSDP2 keeps the root's whole tensors.
    """
    if sharding_plugin(accelerator) is not None:
        modules: Any = denoiser.modules()
        for module in modules:
            if hasattr(module, "reshard"):
                module.reshard()


def whole(accelerator: Accelerator, network: nn.Module) -> nn.Module:
    """The bare network of one that was prepared; one that was sharded is put together, on the CPU."""
    if sharding_plugin(accelerator) is None:
        bare: nn.Module = accelerator.unwrap_model(network)
        return bare
    refresh(accelerator, network)
    tensors = {
        name: (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).cpu()
        for name, tensor in network.state_dict().items()
    }
    kind: Any = next(one for one in type(network).__mro__ if not hasattr(one, "reshard"))
    plain: nn.Module = kind.from_config(network.config)
    plain.load_state_dict(tensors)
    return plain.eval()


def clip(accelerator: Accelerator, weights: Sequence[Tensor], limit: float) -> None:
    """Scale gradients down to a norm over all weights of all processes."""
    if sharding_plugin(accelerator) is None:
        accelerator.clip_grad_norm_(weights, limit)
        return
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    squares = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
    norm = accelerator.reduce(squares, reduction="sum").sqrt()
    factor = (limit / (norm + 1e-6)).clamp(max=1)  # As torch.nn.utils.clip_grad_norm_ does.
    for gradient in gradients:
        gradient.mul_(factor)


def all_finite(accelerator: Accelerator, weights: Sequence[Tensor]) -> bool:
    """Whether no weight of any process is infinite or NaN; the same answer for all of them."""
    mine = all(bool(weight.isfinite().all()) for weight in weights)
    bad = torch.tensor(float(not mine), device=accelerator.device)
    return float(accelerator.reduce(bad, reduction="sum")) == 0


class Leaves:
    """Joins what the processes hold of each leaf, and takes a process's own part of a whole one again."""

    def __init__(self, accelerator: Accelerator, weights: Sequence[Tensor]) -> None:
        """Learn what each process holds.

        Args:
            accelerator: The engine.
            weights: The leaves of this process.
        """
        self._sharded, self._device = sharding_plugin(accelerator) is not None, accelerator.device
        self._rank, count = accelerator.process_index, accelerator.num_processes
        sizes = torch.zeros(count, len(weights), dtype=torch.int64, device=self._device)
        sizes[self._rank] = torch.tensor([len(weight) for weight in weights])
        if self._sharded:
            dist.all_reduce(sizes)
        self._sizes = sizes.T.tolist()

    def join(self, leaf: int, part: Tensor) -> Tensor:
        """The whole of a leaf, or of a moment of it, in the order of its positions; every process calls this.

        Args:
            leaf: Its number.
            part: What this process holds; a number that is no part, such as a count of steps, is returned.
        """
        if not self._sharded or part.dim() == 0:
            return part
        sizes = self._sizes[leaf]
        padded = torch.zeros(max(sizes), dtype=part.dtype, device=self._device)
        padded[: len(part)] = part.to(self._device)
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([one[:size] for one, size in zip(parts, sizes, strict=True)]).to(part.device)

    def mine(self, leaf: int, tensor: Tensor) -> Tensor:
        """This process's part of what `join` returned."""
        if not self._sharded or tensor.dim() == 0:
            return tensor
        start = sum(self._sizes[leaf][: self._rank])
        return tensor[start : start + self._sizes[leaf][self._rank]].clone()
