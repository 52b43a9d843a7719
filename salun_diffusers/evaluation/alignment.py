"""How well pictures follow their prompts, and how far they moved from the same seed's picture before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from salun_diffusers.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from salun_diffusers.evaluation.feature_extractors import FeatureExtractor

PIXEL_PROTOCOL = "mean |difference| over pixels in [0, 1]"
# Student's interval knows nothing of what a measure can be at all.
PIXEL_BOUNDS, SSIM_BOUNDS, COSINE_BOUNDS, CLIP_BOUNDS = (0.0, 1.0), (-1.0, 1.0), (0.0, 2.0), (0.0, 100.0)
SSIM_PROTOCOL = "structural similarity by torchmetrics, Gaussian window of 11 pixels, range 255"


def pixel_distances(before: Sequence[Image.Image], after: Sequence[Image.Image]) -> list[float]:
    """Mean absolute pixel difference, in [0, 1], of each same-seed pair.

    Args:
        before: Pictures of one model.
        after: Pictures of another at the same seeds.
    """
    return [
        float(np.abs(np.asarray(old, dtype=np.float32) - np.asarray(new, dtype=np.float32)).mean() / 255)
        for old, new in zip(before, after, strict=True)
    ]


def shares_of_another_seed(
    before: Sequence[Sequence[Image.Image]],
    after: Sequence[Sequence[Image.Image]],
    distances: Callable[[Sequence[Image.Image], Sequence[Image.Image]], list[float]],
) -> list[float]:
    """How far each picture moved, as a share of how far another seed's picture of the same prompt is.

        d(xᵢ, yᵢ) / mean d(xᵢ, xⱼ),   x before, y after, j the prompt's next seed

    0 where nothing changed, 1 where the prompt might as well have been drawn by another seed; a picture that has become
    its pixels' mean is at 0.7. It asks for no label and has no unit, so pixels and features have one limit.

    Args:
        before: Pictures of one model: a row for each prompt, its seeds in order.
        after: Those of another at the same seeds.
        distances: Of pairs of pictures.

    Returns:
        One share for each picture; none where the pictures before are all alike, or there is only one.
    """
    # Where a prompt has one picture, those of other prompts stand in.
    rows = before if all(len(row) > 1 for row in before) else [[picture for row in before for picture in row]]
    first = [picture for row in rows for picture in row]
    following = [picture for row in rows for picture in (*row[1:], *row[:1])]
    if len(first) < 2:
        return []
    apart = distances(first, following)
    scale = sum(apart) / len(apart)
    moved = distances([picture for row in before for picture in row], [picture for row in after for picture in row])
    return [value / scale for value in moved] if scale > 0 else []


def structural_similarities(before: Sequence[Image.Image], after: Sequence[Image.Image]) -> list[float]:
    """SSIM of each same-seed pair, 1 where nothing changed (Wang et al. 2004, doi 10.1109/TIP.2003.819861).

    Raises:
        UserError: If torchmetrics is not installed.
    """
    from salun_diffusers.evaluation.pretrained import stack_pixels

    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim
    except ImportError as error:
        raise UserError("SSIM needs torchmetrics: pip install 'salun-diffusers[evaluation]'.") from error
    old, new = stack_pixels(before).float(), stack_pixels(after).float()
    values: Any = ssim(new, old, data_range=255.0, reduction="none")
    return [float(value) for value in values.reshape(-1)]


def feature_distances(
    before: Sequence[Image.Image], after: Sequence[Image.Image], extractor: FeatureExtractor
) -> list[float]:
    """Cosine distance of the features of each same-seed pair: 1 - cos(f(x), f(y)), 0 where nothing changed.

    DreamSim (arXiv 2306.09344) measures so on an ensemble tuned to people's judgements; any extractor serves here.

    Args:
        before: Pictures of one model, all of one size.
        after: Pictures of another at the same seeds.
        extractor: Gives the features.
    """
    return cosine_distances(extractor(before), extractor(after))


def cosine_distances(before: Tensor, after: Tensor) -> list[float]:
    """1 - cos of each pair of rows, in [0, 2].

    Args:
        before: `(n, width)`.
        after: `(n, width)`.
    """
    import torch.nn.functional as F

    cosines = F.cosine_similarity(before.double(), after.double()).clamp(-1, 1)
    return [float(1 - value) for value in cosines]


class ClipScore:
    """CLIP's agreement of picture and prompt: 100 · max(cos(image, text), 0), as torchmetrics scales it.

    arXiv 2104.08718, eq. 1, with w = 100 in place of 2.5. torchmetrics 1.9 breaks on transformers 5, so the two
    embeddings are taken from the model's own towers.
    """

    def __init__(self, weights: str, device: torch.device | None = None) -> None:
        """Load a CLIP model.

        Args:
            weights: Local folder or hub id, such as ``openai/clip-vit-base-patch16``.
            device: Where it runs; by default the GPU where there is one.

        Raises:
            UserError: If it cannot be had.
        """
        from transformers import AutoTokenizer, CLIPModel

        from salun_diffusers.evaluation.pretrained import default_device, load_transformers, weights_hash

        self._device = device or default_device()
        self._model = load_transformers(CLIPModel, weights, "The CLIP score", self._device)
        self._tokenizer = load_transformers(AutoTokenizer, weights, "The CLIP score")
        self._size = int(self._model.config.vision_config.image_size)
        self.weights_protocol = f"CLIP weights {weights_hash(self._model)}, centre square at {self._size} px"
        self.protocol = (
            f"CLIP score, 100 · max(cos, 0); {self.weights_protocol}, "
            f"prompts cut at {self._model.config.text_config.max_position_embeddings} tokens"
        )

    def images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Unit vectors `(n, width)` of pictures of any size."""
        import torch
        import torch.nn.functional as F

        from salun_diffusers.evaluation.image_folder import batches
        from salun_diffusers.evaluation.pretrained import CLIP_MEAN, CLIP_STD, normalised, stack_pixels

        found = []
        for batch in batches(pictures, 32):
            shown = [
                normalised(stack_pixels([_centre_square(picture)]), self._size, CLIP_MEAN, CLIP_STD)
                for picture in batch
            ]
            with torch.no_grad():
                pooled = self._model.vision_model(pixel_values=torch.cat(shown).to(self._device)).pooler_output
                found.append(F.normalize(self._model.visual_projection(pooled), dim=-1).cpu())
        return torch.cat(found)

    def distances(self, before: Sequence[Image.Image], after: Sequence[Image.Image]) -> list[float]:
        """Cosine distance of the embeddings of each pair."""
        return cosine_distances(self.images(before), self.images(after))

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors `(n, width)` of prompts; what the text tower cannot take is cut off."""
        import torch
        import torch.nn.functional as F

        tokens = self._tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            return_tensors="pt",
            max_length=self._model.config.text_config.max_position_embeddings,
        ).to(self._device)
        with torch.no_grad():
            pooled = self._model.text_model(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
            ).pooler_output
            return F.normalize(self._model.text_projection(pooled), dim=-1).cpu()

    def scores(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """The score of each picture for its prompt."""
        cosines = (self.images(pictures) * self.texts(prompts)).sum(dim=-1)
        return [100 * max(float(value), 0.0) for value in cosines]


def _centre_square(picture: Image.Image) -> Image.Image:
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))
