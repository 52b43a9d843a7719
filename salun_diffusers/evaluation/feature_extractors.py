"""Networks that turn pictures into feature vectors, chosen by name; every one of them reads a local folder or file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.files.pipeline_folder import embedded_detector
from salun_diffusers.progress import loading_quietly

NAMES = ("inception", "clip", "dinov2", "demo", "digits")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HUB = {"clip": "openai/clip-vit-large-patch14", "dinov2": "facebook/dinov2-large"}


@dataclass(frozen=True)
class FeatureExtractor:
    """Pictures to features.

    Args:
        name: One of `NAMES`.
        dimension: Length of a feature vector.
        protocol: Network, weights and preprocessing in one sentence; equal sentences mean comparable features.
        warn_below: Number of pictures below which distances are biased by the covariance's rank.
        forward: From uint8 pictures `(n, 3, height, width)` of one size to features `(n, dimension)`.
    """

    name: str
    dimension: int
    protocol: str
    warn_below: int
    forward: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features of pictures of one size, `(n, dimension)`, fp32 on the CPU."""
        return self.forward(stack_pixels(pictures)).float().cpu()


def stack_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Pixels of pictures of one size as they are stored: uint8 in 0…255, `(n, 3, height, width)`.

    The official SalUn script scaled to [-1, 1] before it cast to uint8, which leaves near-black pictures; here pixels
    stay whole numbers until an extractor scales them.
    """
    pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def normalised(pixels: Tensor, size: int, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale uint8 pixels to [0, 1], resize to `size` squared (bicubic, antialiased), subtract mean, divide by std.

    Raises:
        ValueError: If the pixels are not uint8.
    """
    if pixels.dtype != torch.uint8:
        raise ValueError(f"Pixels must be uint8 in 0…255, got {pixels.dtype}; convert with round() and clamp(0, 255).")
    scaled = pixels.float() / 255
    if scaled.shape[-2:] != (size, size):
        scaled = F.interpolate(scaled, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    centre, spread = (torch.tensor(list(values), device=pixels.device).view(3, 1, 1) for values in (mean, std))
    return (scaled - centre) / spread


def make_extractor(name: str, weights: str | None = None, *, device: torch.device | None = None) -> FeatureExtractor:
    """Load an extractor by name.

    Args:
        name: One of `NAMES`.
        weights: A local folder or hub id; for ``inception`` a safetensors file.
        device: Where it runs; by default the GPU where there is one.

    Raises:
        UserError: If the name is unknown or the weights cannot be had.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made: dict[str, Callable[[str | None, torch.device], FeatureExtractor]] = {
        "inception": _inception, "clip": _clip, "dinov2": _dinov2,
        "demo": partial(_embedded, "demo", 64), "digits": partial(_embedded, "digits", 32),
    }  # fmt: skip
    if name not in made:
        raise UserError(f"--extractor must be one of {', '.join(NAMES)}; got {name!r}.")
    return made[name](weights, device)


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
    try:
        with loading_quietly():
            loaded = auto_class.from_pretrained(str(folder) if folder.is_dir() else weights, **keywords)
    except Exception as error:  # transformers and the hub raise a dozen unrelated types.
        raise UserError(
            f"{what} needs the weights {weights}, which are neither a local folder nor could be had from the hub "
            f"({one_line(error, 140)}). Download them where there is a network and name the folder."
        ) from error
    if device is None:
        return loaded
    model, info = loaded
    if info["missing_keys"]:
        # transformers would draw them at random and go on.
        raise UserError(f"{what} needs a {type(model).__name__}; the weights {weights} lack "
                        f"{min(info['missing_keys'])} and would be drawn at random.")  # fmt: skip
    return model.to(device).eval().requires_grad_(False)


def weights_hash(model: torch.nn.Module) -> str:
    """The first 12 digits of a SHA-256 over a network's weights: two folders with one network have one hash."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _inception(weights: str | None, device: torch.device) -> FeatureExtractor:
    from salun_diffusers.evaluation.inception import load_inception

    network, digest = load_inception(weights)
    network.to(device)
    protocol = f"Inception-v3 of the TensorFlow FID (sha256 {digest[:12]}), pool features, 299 px TensorFlow bilinear"
    return FeatureExtractor("inception", 2048, protocol, 2048, lambda pixels: network(pixels.to(device)))


def _clip(weights: str | None, device: torch.device) -> FeatureExtractor:
    from transformers import CLIPModel

    model = load_transformers(CLIPModel, weights or _HUB["clip"], "The extractor clip", device)
    size, dimension = int(model.config.vision_config.image_size), int(model.config.projection_dim)
    protocol = f"CLIP image embeddings (weights {weights_hash(model)}), {size} px bicubic"

    def forward(pixels: Tensor) -> Tensor:
        shown = normalised(pixels.to(device), size, CLIP_MEAN, CLIP_STD)
        embeddings: Tensor = model.visual_projection(model.vision_model(pixel_values=shown).pooler_output)
        return embeddings

    return FeatureExtractor("clip", dimension, protocol, dimension, forward)


def _dinov2(weights: str | None, device: torch.device) -> FeatureExtractor:
    from transformers import Dinov2Model

    model = load_transformers(Dinov2Model, weights or _HUB["dinov2"], "The extractor dinov2", device)
    # FD-DINOv2, arXiv 2306.04675, takes the class token at 224 px; a model trained smaller keeps its own size.
    size, dimension = min(224, int(model.config.image_size)), int(model.config.hidden_size)
    protocol = f"DINOv2 class token (weights {weights_hash(model)}), {size} px bicubic; FD-DINOv2, arXiv 2306.04675"

    def forward(pixels: Tensor) -> Tensor:
        tokens: Tensor = model(normalised(pixels.to(device), size, _IMAGENET_MEAN, _IMAGENET_STD)).last_hidden_state
        return tokens[:, 0]

    return FeatureExtractor("dinov2", dimension, protocol, dimension, forward)


def _embedded(name: str, size: int, weights: str | None, device: torch.device) -> FeatureExtractor:
    """Features of the classifier of an embedded model."""
    from transformers import AutoModelForImageClassification

    folder = weights or str(embedded_detector(name))
    model = load_transformers(AutoModelForImageClassification, folder, f"The extractor {name}", device)
    dimension, channels = int(model.config.hidden_sizes[-1]), int(model.config.num_channels)
    protocol = f"pooled features of the {name} classifier (weights {weights_hash(model)}), {size} px"

    def forward(pixels: Tensor) -> Tensor:
        # The classifier learned on [-1, 1]; a grey picture has three equal channels here.
        shown = normalised(pixels.to(device), size, (0.5,) * 3, (0.5,) * 3)[:, :channels]
        pooled: Tensor = model.resnet(shown).pooler_output
        return pooled.flatten(1)

    return FeatureExtractor(name, dimension, protocol, dimension, forward)
