"""Pretrained networks of transformers: how they are loaded and named, and the pixels that they take."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.progress import loading_quietly

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def default_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_transformers(auto_class: Any, weights: str, what: str, device: torch.device | None = None) -> Any:
    """Load a model with transformers from a local folder or the hub, in fp32 and in eval mode.

    Args:
        auto_class: Anything with `from_pretrained`.
        weights: Folder or hub id.
        what: What it is for, in the error.
        device: Where it goes; None for what is no network.

    Raises:
        UserError: If it cannot be had: no such folder, no network, no safetensors, or weights are missing in them.
    """
    folder = Path(weights).expanduser()
    keywords: dict[str, Any] = {}
    if device is not None:
        keywords = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        keywords["ignore_mismatched_sizes"] = True  # They are told below, by name.
    if folder.is_file():
        raise UserError(
            f"{what} needs a folder of transformers (config.json and safetensors weights) or a hub id; {weights} is a "
            "file."
        )
    try:
        with loading_quietly():
            loaded = auto_class.from_pretrained(str(folder) if folder.is_dir() else weights, **keywords)
    except Exception as error:  # transformers and the hub raise a dozen unrelated types.
        if isinstance(error, ImportError) and "torchvision" in str(error).lower():
            raise UserError(
                f"{what} needs torchvision, or transformers 5.18 or newer, to prepare pictures for {weights}: "
                "transformers 5.4 to 5.17 cannot without it."
            ) from error
        raise UserError(
            f"{what} needs the weights {weights}, which are neither a local folder nor could be had from the hub "
            f"({one_line(error, 140)}). Download them where there is a network and name the folder."
        ) from error
    if device is None:
        return loaded
    model, info = loaded
    if unlike := mismatched(info):
        raise UserError(f"{what} needs weights that fit their config.json; of {weights} {unlike}.")
    if info["missing_keys"]:
        # transformers would draw them at random and go on.
        raise UserError(
            f"{what} needs a {type(model).__name__}; the weights {weights} lack "
            f"{min(info['missing_keys'])} and would be drawn at random."
        )
    return model.to(device).eval().requires_grad_(False)


def mismatched(info: Mapping[str, Any]) -> str:
    """What of a folder's weights has other shapes than its configuration says, in words; empty where nothing has.

    Args:
        info: What `from_pretrained` says of a loading that ignores mismatched sizes.
    """
    found = sorted(info["mismatched_keys"], key=str)
    if not found:
        return ""
    if isinstance(found[0], str):  # transformers 4 leaves the shapes out.
        return f"{len(found)} do not, the first is {found[0]}"
    name, stored, wanted = found[0]
    return f"{len(found)} do not, the first is {name}: stored {tuple(stored)}, by config.json {tuple(wanted)}"


def weights_hash(model: torch.nn.Module) -> str:
    """The first 12 digits of a SHA-256 over a network's weights: two folders with one network have one hash."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def stack_pixels(pictures: Sequence[Image.Image], mode: Literal["RGB", "L"] = "RGB") -> Tensor:
    """Pixels of pictures of one size as they are stored: uint8 in 0…255, `(n, channels, height, width)`.

    The official SalUn script scaled to [-1, 1] before it cast to uint8, which leaves near-black pictures; here pixels
    stay whole numbers until an extractor scales them.
    """
    pixels = np.stack([np.atleast_3d(np.asarray(picture.convert(mode))) for picture in pictures])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def normalised(pixels: Tensor, size: int | None, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale uint8 pixels to [0, 1], resize to `size` squared (bicubic, antialiased), subtract mean, divide by std.

    Args:
        pixels: `(n, channels, height, width)`.
        size: Side of the result; None keeps the pictures' own size.
        mean: One number per channel.
        std: One number per channel.

    Raises:
        ValueError: If the pixels are not uint8.
    """
    if pixels.dtype != torch.uint8:
        raise ValueError(f"Pixels must be uint8 in 0…255, got {pixels.dtype}; convert with round() and clamp(0, 255).")
    scaled = pixels.float() / 255
    if size is not None and scaled.shape[-2:] != (size, size):
        scaled = F.interpolate(scaled, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    centre, spread = (torch.tensor(list(values), device=pixels.device).view(-1, 1, 1) for values in (mean, std))
    return (scaled - centre) / spread
