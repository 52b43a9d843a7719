"""Files as other erasers write them, made of a tiny pipeline and a second one of the same shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
KEY, VALUE = "attn2.to_k.weight", "attn2.to_v.weight"


def moved(weights: Mapping[str, Tensor], choose: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """Some of the weights, each half as large again and a little more."""
    return {
        name: (1.5 * tensor.float() + 0.125).to(tensor.dtype)
        for name, tensor in weights.items()
        if choose(name) and tensor.is_floating_point()
    }


def unet_of(base: Path) -> dict[str, Tensor]:
    """The U-Net's weights as they are stored."""
    return load_file(base / UNET)


def text_of(base: Path, component: str = "text_encoder") -> dict[str, Tensor]:
    """A text encoder's weights, by the names of transformers 4."""
    stored = load_file(base / component / "model.safetensors")
    return {
        name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}": tensor
        for name, tensor in stored.items()
    }


def esd(base: Path, file: Path, prefix: str = "") -> dict[str, Tensor]:
    """ESD's esd-x: all of cross-attention, with the biases, in bfloat16; returns the values by the base's names."""
    values = {name: tensor.bfloat16() for name, tensor in moved(unet_of(base), lambda name: "attn2" in name).items()}
    save_file({f"{prefix}{name}": tensor for name, tensor in values.items()}, file)
    return values


def lora(base: Path, layers: Callable[[str], bool], rank: int = 2) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of layers of the U-Net."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, weight in unet_of(base).items():
        layer = name.removesuffix(".weight")
        if layer != name and weight.dim() == 2 and layers(layer):
            down = torch.randn(rank, weight.shape[1], generator=generator)
            found[layer] = (down, torch.randn(weight.shape[0], rank, generator=generator) * 0.2)
    return found


def attention(layer: str) -> bool:
    """The layers that EraseFlow and MACE change."""
    return layer.endswith((".to_q", ".to_k", ".to_v", ".to_out.0")) and "attn" in layer


def mace(pairs: Mapping[str, tuple[Tensor, Tensor]], folder: Path) -> Path:
    """What `save_attn_procs` of diffusers 0.22 wrote: processors beside the layers, no prefix."""
    tensors = {}
    for layer, (down, up) in pairs.items():
        place, _, last = layer.removesuffix(".0").rpartition(".")
        tensors |= {
            f"{place}.processor.{last}_lora.down.weight": down,
            f"{place}.processor.{last}_lora.up.weight": up,
        }
    return saved(tensors, folder / "pytorch_lora_weights.safetensors").parent


def eraseflow(pairs: Mapping[str, tuple[Tensor, Tensor]], folder: Path) -> Path:
    """What `save_lora_weights` makes of PEFT's tensors in diffusers' names."""
    tensors = {}
    for layer, (down, up) in pairs.items():
        tensors |= {f"unet.{layer}.lora.down.weight": down, f"unet.{layer}.lora.up.weight": up}
    return saved(tensors, folder / "pytorch_lora_weights.safetensors").parent


def kohya(pairs: Mapping[str, tuple[Tensor, Tensor]], file: Path, alpha: float) -> Path:
    """What kohya's scripts write: underscores, and α beside each pair."""
    tensors = {}
    for layer, (down, up) in pairs.items():
        called = f"lora_unet_{layer.replace('.', '_')}"
        tensors |= {
            f"{called}.lora_down.weight": down, f"{called}.lora_up.weight": up, f"{called}.alpha": torch.tensor(alpha),
        }  # fmt: skip
    return saved(tensors, file)


def saved(tensors: Mapping[str, Tensor], file: Path) -> Path:
    """Write a file and its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def answers(pipe: Any) -> Tensor:
    """What a pipeline draws, as latents."""
    drawn = pipe(
        ["a photo of a circle", "a star"], num_inference_steps=2, guidance_scale=2.0, output_type="latent",
        generator=torch.Generator().manual_seed(3),
    ).images  # fmt: skip
    return torch.as_tensor(drawn)
