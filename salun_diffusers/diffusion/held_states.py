"""What a user's pipeline is like between two calls of it, taken off for an erasure and put on again."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook
from torch import nn


def offloading(pipe: Any) -> str:
    """``model`` or ``sequential``, as `enable_…_cpu_offload` has been called; empty where neither has."""
    if getattr(pipe, "_all_hooks", None):
        return "model"
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    hooks = (getattr(module, "_hf_hook", None) for part in parts for module in part.modules())
    return "sequential" if any(isinstance(hook, AlignDevicesHook) for hook in _each(hooks)) else ""


def execution_device(pipe: Any) -> torch.device:
    """Where the pipeline computes."""
    if offloading(pipe):
        return torch.device(pipe._offload_device)
    device: torch.device = next(pipe.unet.parameters()).device
    return device


@contextmanager
def without_offloading(pipe: Any) -> Iterator[None]:
    """Within the block all weights are on the CPU and nothing moves them; afterwards offloading works as before."""
    way = offloading(pipe)
    if not way:
        yield
        return
    device = pipe._offload_device
    pipe.remove_all_hooks()
    pipe.to("cpu", silence_dtype_warnings=True)
    try:
        yield
    finally:
        enable(pipe, way, device)


def enable(pipe: Any, way: str, device: torch.device) -> None:
    """Let a pipeline be offloaded.

    Args:
        pipe: A pipeline without offloading.
        way: As `offloading` returns it.
        device: Where it computes.
    """
    {"model": pipe.enable_model_cpu_offload, "sequential": pipe.enable_sequential_cpu_offload}[way](device=device)


@contextmanager
def parked(network: nn.Module) -> Iterator[None]:
    """Within the block a network of the user's leaves its GPU to the copy that is trained."""
    device = next(network.parameters()).device
    if device.type != "cpu":
        network.to("cpu")
    try:
        yield
    finally:
        if device.type != "cpu":
            network.to(device)


def copied(pipe: Any, *, shared: bool) -> Any:
    """A pipeline like this one with a denoiser and a scheduler of its own.

    Args:
        pipe: A pipeline without offloading.
        shared: Whether the other parts are the same objects; offloading would pull at them from both sides.
    """
    twin = copy.copy(pipe)
    for name, part in pipe.components.items():
        if name in ("unet", "scheduler") or (not shared and isinstance(part, nn.Module)):
            setattr(twin, name, copy.deepcopy(part))
    return twin


def _each(hooks: Iterator[Any]) -> Iterator[Any]:
    """Hooks one by one: accelerate keeps several of a module in one."""
    for hook in hooks:
        yield from getattr(hook, "hooks", (hook,))
