"""Agreement with prompts and distances of pairs, against torchmetrics and by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.alignment import (
    ClipScore,
    feature_distances,
    pixel_distances,
    structural_similarities,
)
from salun_diffusers.evaluation.feature_extractors import make_extractor

pytest.importorskip("torchmetrics")
PROMPTS = ["a photo of a circle", "a star on a blue background and much more than the text tower can take in at once"]


@pytest.fixture
def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in PROMPTS]


@pytest.mark.parametrize("size", [(12, 6), (6, 12), (7, 6)])
def test_of_a_picture_that_is_no_square_the_middle_is_seen(tiny_clip: Path, size: tuple[int, int]) -> None:
    """The square of its shorter side, not the whole of it, and no border that is not there."""
    picture = Image.new("RGB", size, "red")
    left, top = ((side - 6) // 2 for side in size)
    inner = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    picture.paste(inner, (left, top))
    clip = ClipScore(str(tiny_clip))
    torch.testing.assert_close(clip.images([picture]), clip.images([inner]))


def test_clip_score_is_torchmetrics(tiny_clip: Path, pictures: list[Image.Image]) -> None:
    """torchmetrics 1.9 needs a shim under transformers 5: towers that return plain tensors, as those of 4 do."""
    import transformers
    from torchmetrics.multimodal import CLIPScore
    from transformers import AutoTokenizer, CLIPModel, CLIPProcessor

    def plain(features: Any) -> torch.Tensor:
        return features if isinstance(features, torch.Tensor) else features.pooler_output

    model = CLIPModel.from_pretrained(tiny_clip).eval()
    shim = SimpleNamespace(
        get_image_features=lambda pixels: plain(model.get_image_features(pixels)),
        get_text_features=lambda ids, mask: plain(model.get_text_features(ids, mask)),
        config=model.config,
        to=lambda device: shim,
    )
    # Without torchvision: the class has its name since transformers 5, and before was the only one.
    pixels = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    processor = CLIPProcessor(pixels.from_pretrained(tiny_clip), AutoTokenizer.from_pretrained(tiny_clip))
    short = [PROMPTS[0], "a star"]
    metric = CLIPScore(model_name_or_path=lambda: (shim, processor))
    arrays = [torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) for picture in pictures]
    cosine = float((metric.update(arrays, short), metric.score)[1] / metric.n_samples)
    raw = ClipScore(str(tiny_clip))
    mine = (raw.images(pictures) * raw.texts(short)).sum(dim=-1)
    assert 100 * float(mine.mean()) == pytest.approx(cosine, abs=1e-3)
    assert raw.scores(pictures, short) == pytest.approx([100 * max(float(value), 0) for value in mine])


def test_long_prompts_and_any_size(tiny_clip: Path) -> None:
    scorer = ClipScore(str(tiny_clip))
    assert len(scorer.scores([Image.new("RGB", (50, 20)), Image.new("RGB", (9, 40))], PROMPTS)) == 2


def test_missing_clip_offline() -> None:
    with pytest.raises(UserError, match="The CLIP score needs the weights openai/clip"):
        ClipScore("openai/clip-vit-base-patch16")


def test_pixel_distance_by_hand() -> None:
    """51 of 255 in one of three channels: 0.2 / 3."""
    old, new = Image.new("RGB", (4, 4), (0, 0, 0)), Image.new("RGB", (4, 4), (51, 0, 0))
    assert pixel_distances([old, old], [old, new]) == pytest.approx([0, 0.2 / 3])


def test_similarity_of_equal_and_changed_pictures(pictures: list[Image.Image]) -> None:
    same, changed = structural_similarities(pictures, [pictures[0], pictures[0]])
    assert same == pytest.approx(1, abs=1e-5)
    assert changed < 0.5


def test_feature_distance_of_equal_and_changed_pictures(pictures: list[Image.Image]) -> None:
    extractor = make_extractor("demo")
    same, changed = feature_distances(pictures, [pictures[0], Image.new("RGB", (32, 32), "red")], extractor)
    assert same == pytest.approx(0, abs=1e-6)
    assert changed > 0.01
