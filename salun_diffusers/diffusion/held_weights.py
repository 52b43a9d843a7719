"""The denoiser of a pipeline in memory: its weights under their plain names, and what stands in the way of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from salun_diffusers.errors import UserError

_PLAIN = (torch.float32, torch.float16, torch.bfloat16)


def plain_weights(network: nn.Module) -> dict[str, Tensor]:
    """The network's own tensors by the names of its class, live: those of adapters left out.

    A network that LoRA was fused into and not unloaded from has layers around its own ones, whose weights then are the
    fused ones.

    Args:
        network: The denoiser.
    """
    around = [name for name, _ in _adapters(network)]
    found = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        inside = next((layer for layer in around if name.startswith(f"{layer}.")), None)
        if inside is None or name.startswith(f"{inside}.base_layer."):
            found[name.replace(".base_layer.", ".") if inside else name] = tensor.detach()
    return found


def require_plain(network: Any) -> None:
    """Refuse a denoiser whose weights are not simply there to be changed.

    Raises:
        UserError: What it is, and the way out.
    """
    if hasattr(network, "_orig_mod") or getattr(network, "_compiled_call_impl", None) is not None:
        raise UserError(
            "A denoiser as it was loaded is required, pipe.unet is compiled: erase first and compile afterwards "
            "(`pipe.unet = pipe.unet._orig_mod` where it was `torch.compile(pipe.unet)`, or load it again)."
        )
    _require_numbers(network)
    if hooks := sorted({hook for module in network.modules() for hook in _diffusers_hooks(module)}):
        raise UserError(
            f"A denoiser without hooks of diffusers is required, pipe.unet has {', '.join(hooks)} (group offloading, "
            "layerwise casting, caches): erase first and enable them afterwards. enable_model_cpu_offload() and "
            "enable_sequential_cpu_offload() may stay."
        )
    for name, layer in _adapters(network):
        if layer.active_adapters and not (layer.disable_adapters or layer.merged):
            raise UserError(
                f"An adapter works beside the weights of pipe.unet ({name}): fuse it with `pipe.fuse_lora()`, or take "
                "it off with `pipe.unload_lora_weights()`."
            )
    wanted = {name: tuple(tensor.shape) for name, tensor in blank(network).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in plain_weights(network).items()}
    for name in (*wanted, *found):
        if wanted.get(name) != found.get(name):
            parts = [f"of shape {s}" if s is not None else "none" for s in (wanted.get(name), found.get(name))]
            raise UserError(
                f"pipe.unet does not hold just the weights of its configuration: {name} must be {parts[0]}, found "
                f"{parts[1]}; take adapters off first (`pipe.unload_ip_adapter()`, `pipe.unload_lora_weights()`)."
            )


def blank(network: Any) -> Any:
    """A network of the same configuration without weights, on no device."""
    with torch.device("meta"):
        return type(network).from_config(network.config)


def working_copy(network: Any, weights: Mapping[str, Tensor], device: torch.device) -> Any:
    """A network of the same configuration in fp32, with these weights, as a folder of them would be loaded.

    Args:
        network: Says the configuration.
        weights: By plain name.
        device: Where it goes.
    """
    made = blank(network)
    made.load_state_dict(
        {
            name: tensor.to(device, torch.float32 if tensor.is_floating_point() else None, copy=True).contiguous()
            for name, tensor in weights.items()
        },
        assign=True,
    )
    return made.eval()


@torch.no_grad()
def put_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Write weights into a network, on its device and in its memory format; its tensors stay the same objects.

    Args:
        network: The denoiser.
        weights: Of the network's data types; tensors that are bit-identical already are not touched.
    """
    for name, tensor in plain_weights(network).items():
        tensor.copy_(weights[name])


def _require_numbers(network: nn.Module) -> None:
    quantized = any(getattr(network, name, None) for name in ("hf_quantizer", "is_quantized", "quantization_method"))
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        own = type(tensor) in (nn.Parameter, Tensor)
        if quantized or not own or (isinstance(tensor, nn.Parameter) and tensor.dtype not in _PLAIN):
            kind = f"{tensor.dtype}" if own else type(tensor).__name__
            raise UserError(
                f"Weights in float32, float16 or bfloat16 are required, pipe.unet is quantized ({name} is {kind}): "
                "load the pipeline without quantization_config, erase, and quantize afterwards."
            )
        if tensor.is_meta:
            raise UserError(
                f"Weights in memory are required, {name} of pipe.unet is on the device `meta`, which holds none: load "
                "the pipeline with from_pretrained and without low-memory tricks, then erase."
            )


def _adapters(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers of peft around layers of the network."""
    for name, module in network.named_modules():
        if hasattr(module, "base_layer") and hasattr(module, "merged_adapters"):
            yield name, module


def _diffusers_hooks(module: Any) -> list[str]:
    """Names of the hooks that diffusers has put on a module."""
    return list(getattr(getattr(module, "_diffusers_hook", None), "hooks", {}))
