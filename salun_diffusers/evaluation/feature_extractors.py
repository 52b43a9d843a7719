"""Networks that turn pictures into feature vectors, chosen by name; every one of them reads a local folder or file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.image_classifier import EMBEDDED_SIDES, ImageClassifier
from salun_diffusers.evaluation.pretrained import (
    CLIP_MEAN,
    CLIP_STD,
    default_device,
    load_transformers,
    normalised,
    stack_pixels,
    weights_hash,
)
from salun_diffusers.files.pipeline_folder import embedded_detector

NAMES = ("inception", "clip", "dinov2", "demo", "digits")
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


def make_extractor(name: str, weights: str | None = None, *, device: torch.device | None = None) -> FeatureExtractor:
    """Load an extractor by name.

    Args:
        name: One of `NAMES`.
        weights: A local folder or hub id; for ``inception`` a safetensors file.
        device: Where it runs; by default the GPU where there is one.

    Raises:
        UserError: If the name is unknown or the weights cannot be had.
    """
    device = device or default_device()
    made: dict[str, Callable[[str | None, torch.device], FeatureExtractor]] = {
        "inception": _inception,
        "clip": _clip,
        "dinov2": _dinov2,
        **{embedded: partial(_embedded, embedded, side) for embedded, side in EMBEDDED_SIDES.items()},
    }
    if name not in made:
        raise UserError(f"--extractor must be one of {', '.join(NAMES)}; got {name!r}.")
    return made[name](weights, device)


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


def _embedded(name: str, side: int, weights: str | None, device: torch.device) -> FeatureExtractor:
    """Features of the classifier of an embedded model."""
    folder = weights or str(embedded_detector(name))
    classifier = ImageClassifier(folder, f"The extractor {name}", side=side, device=device)
    protocol = f"pooled features of the {name} classifier (weights {classifier.weights_hash}), {side} px"
    return FeatureExtractor(name, classifier.width, protocol, classifier.width, classifier.features)
