"""Distances against references computed another way, on the same features."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification

from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.feature_extractors import make_extractor
from salun_diffusers.evaluation.feature_files import FeatureSet, features_of
from salun_diffusers.evaluation.fidelity import (
    FEWEST,
    frechet_distance,
    inside_count,
    kernel_distance,
    measure_fidelity,
    rank_warning,
    require_enough,
    torchmetric,
)
from salun_diffusers.evaluation.inception import FidInception, resize_as_tensorflow
from salun_diffusers.evaluation.pretrained import normalised, stack_pixels
from salun_diffusers.files.pipeline_folder import EMBEDDED

linalg = pytest.importorskip("scipy.linalg")
pytest.importorskip("torchmetrics")


def scipy_frechet(one: np.ndarray, other: np.ndarray) -> float:
    """The formula of arXiv 1706.08500 by scipy, with the symmetric root: Tr (Σ₁^½ Σ₂ Σ₁^½)^½ is Tr (Σ₁ Σ₂)^½."""
    mean = one.mean(axis=0) - other.mean(axis=0)
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    values, vectors = linalg.eigh(first)
    half = vectors * np.sqrt(values.clip(0)) @ vectors.T
    trace = np.sqrt(linalg.eigvalsh(half @ second @ half).clip(0)).sum()
    return float(mean @ mean + np.trace(first) + np.trace(second) - 2 * trace)


@pytest.fixture(scope="module")
def demo():
    return make_extractor("demo")


class TestPixels:
    def test_they_stay_whole_numbers(self) -> None:
        picture = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
        pixels = stack_pixels([picture])
        assert pixels.dtype == torch.uint8
        assert torch.equal(pixels[0].permute(1, 2, 0), torch.arange(192, dtype=torch.uint8).view(8, 8, 3))

    def test_scaling_by_hand(self) -> None:
        """0 and 255 become (0 - 0.5) / 0.25 and (1 - 0.5) / 0.25."""
        pixels = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 2, 2)
        assert normalised(pixels, 2, (0.5,) * 3, (0.25,) * 3)[0, 0, 0].tolist() == [-2, 2]

    def test_floats_are_refused(self) -> None:
        with pytest.raises(ValueError, match="must be uint8"):
            normalised(torch.rand(1, 3, 4, 4), 4, (0.5,) * 3, (0.5,) * 3)

    def test_distance_of_pictures_is_that_of_what_transformers_last_layer_sees(self, demo, noise_folder) -> None:
        """From PNG to the distance by transformers and scipy alone: pixels in [-1, 1], the input of the last layer."""
        model = AutoModelForImageClassification.from_pretrained(EMBEDDED["demo"].parent / "detector").float().eval()
        seen: list[np.ndarray] = []
        *_, last = (module for module in model.modules() if isinstance(module, torch.nn.Linear))
        last.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].double().numpy()))
        folders = noise_folder(110, size=64), noise_folder(120, size=64, seed=1, shift=40)
        for folder in folders:
            pixels = np.stack([np.asarray(Image.open(file)) for file in folder.glob("*.png")]).transpose(0, 3, 1, 2)
            with torch.no_grad():
                model(torch.from_numpy((pixels / 127.5 - 1).astype(np.float32)))
        ours, theirs = (features_of(folder, demo, batch_size=50, resize=None).values for folder in folders)
        found = frechet_distance(ours, theirs)
        assert found == pytest.approx(scipy_frechet(*seen), rel=1e-3)
        assert found > 1


def test_frechet_distance_is_scipys() -> None:
    draw = torch.Generator().manual_seed(0)
    one, other = torch.randn(200, 12, generator=draw), 1.5 * torch.randn(150, 12, generator=draw) + 0.3
    assert frechet_distance(one, other) == pytest.approx(scipy_frechet(one.numpy(), other.numpy()), rel=1e-4)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_the_unbiased_estimate() -> None:
    """With the whole set as one subset the estimate can be written down: (xᵀy/d + 1)³ without the diagonals."""
    draw = torch.Generator().manual_seed(0)
    one, other = (torch.randn(60, 5, generator=draw, dtype=torch.float64) + shift for shift in (0.0, 0.5))

    def kernel(a, b):
        return (a @ b.T / 5 + 1) ** 3

    n = len(one)
    inside = [(kernel(side, side).sum() - kernel(side, side).diagonal().sum()) / (n * (n - 1)) for side in (one, other)]
    wanted = float(inside[0] + inside[1] - 2 * kernel(one, other).mean())
    mean, deviation = kernel_distance(one, other, subsets=2, subset_size=60, seed=0)
    assert mean == pytest.approx(wanted, rel=1e-9)
    assert deviation == pytest.approx(0, abs=1e-9)


def test_kernel_distance_draws_from_its_seed_and_leaves_the_global_stream() -> None:
    one, other = torch.randn(60, 5), torch.randn(60, 5)
    state = torch.random.get_rng_state()
    first = kernel_distance(one, other, subsets=3, subset_size=20, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert first == kernel_distance(one, other, subsets=3, subset_size=20, seed=1)
    assert first != kernel_distance(one, other, subsets=3, subset_size=20, seed=2)


def test_precision_and_recall_by_hand() -> None:
    """Centres 0, 1, 3 on a line with k = 1 have radii 1, 1, 2; the union of their balls is [-1, 5]."""
    centres = torch.tensor([[0.0], [1.0], [3.0]])
    queries = torch.tensor([[-1.0], [-1.1], [5.0], [5.1], [2.0]])
    assert inside_count(queries, centres, neighbours=1) == 3
    assert inside_count(queries, centres, neighbours=1, rows=2) == 3


def test_measurements_and_their_intervals(demo) -> None:
    draw = torch.Generator().manual_seed(0)
    sides = [
        FeatureSet(torch.randn(120, 96, generator=draw) + shift, demo.protocol, "ab" * 32, "x") for shift in (0, 0.2)
    ]
    fd, kid, precision, recall = measure_fidelity(*sides, demo, bootstraps=4, subsets=10)
    assert fd.low < fd.value < fd.high and "interval from 4 bootstraps" in fd.protocol and "120 pictures" in fd.protocol
    assert kid.interval is None  # The subsets overlap.
    assert "mean of 10 subsets of 60" in kid.protocol  # Half of either side, at most 1000.
    assert precision.kind == recall.kind == "rate"
    assert measure_fidelity(*sides, demo, bootstraps=4, subsets=10)[0] == fd
    (alone, *_) = measure_fidelity(*sides, demo, subsets=10)
    assert alone.interval is None and "no interval" in alone.protocol


def test_features_far_from_the_origin_have_the_same_neighbours() -> None:
    """Steps of 1/1024 at 1024: single precision holds them exactly, and not the products of 300 such numbers.

    Centres 0, 2, …, 78 with k = 1 have radius 2, together [-2, 80]: of the queries -1.5, 1 and 79.5 steps are inside,
    -3 and 81.5 are not.
    """
    centres, queries = (
        torch.nn.functional.pad(torch.tensor(places)[:, None] / 1024, (0, 299)) + 1024
        for places in ([2.0 * step for step in range(40)], [-3.0, -1.5, 1.0, 79.5, 81.5])
    )
    assert inside_count(queries, centres, neighbours=1) == 3


@pytest.mark.parametrize("side", [0, 1])
def test_features_that_are_not_finite_are_told(demo, side: int) -> None:
    sets = [FeatureSet(torch.randn(120, 96), demo.protocol, "ab" * 32, "pictures") for _ in range(2)]
    sets[side].values[[7, 9], 3] = torch.tensor([torch.nan, torch.inf])
    what = ("the generated set", "the reference")[side]
    with pytest.raises(UserError, match=f"of {what} 2 of 120 pictures have NaN or infinity, the first is number 8"):
        measure_fidelity(*sets, demo)


def test_too_few_pictures() -> None:
    require_enough(FEWEST, "here")
    with pytest.raises(UserError, match="at least 100 pictures, here has 99; 1 more"):
        require_enough(99, "here")


def test_missing_torchmetrics_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.image", None)
    with pytest.raises(UserError, match=r"pip install 'salun-diffusers\[evaluation\]'"):
        torchmetric("fid")


def test_warning_below_the_rank(demo) -> None:
    assert rank_warning(96, "here", demo) == ""
    assert "here has 95 pictures" in rank_warning(95, "here", demo)


class TestKeptFeatures:
    def test_they_are_used_again(self, demo, noise_folder, tmp_path: Path) -> None:
        folder = noise_folder(4, size=64)
        first = features_of(folder, demo, batch_size=3, resize=None, cache=tmp_path)
        (file,) = tmp_path.glob("demo-*.safetensors")
        looked: list[int] = []
        blind = type(demo)(demo.name, demo.dimension, demo.protocol, 0, lambda pixels: looked.append(1))
        assert torch.equal(features_of(folder, blind, batch_size=3, resize=None, cache=tmp_path).values, first.values)
        assert torch.equal(features_of(file, blind, batch_size=3, resize=None).values, first.values)
        assert not looked

    def test_of_another_protocol(self, demo, noise_folder, tmp_path: Path) -> None:
        features_of(noise_folder(4, size=64), demo, batch_size=3, resize=None, cache=tmp_path)
        (file,) = tmp_path.glob("*.safetensors")
        with pytest.raises(UserError, match="by another protocol"):
            features_of(file, demo, batch_size=3, resize=32)

    def test_damaged(self, demo, tmp_path: Path) -> None:
        (tmp_path / "x.safetensors").write_bytes(b"nothing")
        with pytest.raises(UserError, match="no file of features"):
            features_of(tmp_path / "x.safetensors", demo, batch_size=3, resize=None)


class TestExtractors:
    def test_clip_from_a_folder(self, tiny_clip: Path) -> None:
        extractor = make_extractor("clip", str(tiny_clip))
        assert extractor([Image.new("RGB", (20, 20))] * 2).shape == (2, extractor.dimension)

    def test_dinov2_from_a_folder(self, tmp_path: Path) -> None:
        from transformers import Dinov2Config, Dinov2Model

        config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
        Dinov2Model(config).save_pretrained(tmp_path)
        extractor = make_extractor("dinov2", str(tmp_path))
        assert extractor([Image.new("RGB", (20, 20))]).shape == (1, 16)

    @pytest.mark.parametrize("name", ["clip", "dinov2"])
    def test_missing_weights_offline(self, name: str) -> None:
        with pytest.raises(UserError, match="neither a local folder nor could be had from the hub"):
            make_extractor(name)

    def test_unknown_name(self) -> None:
        with pytest.raises(UserError, match="one of inception, clip, dinov2, demo"):
            make_extractor("resnet")


class TestInception:
    def test_no_file(self) -> None:
        with pytest.raises(UserError, match=r"--extractor_weights FILE\.safetensors, none is named"):
            make_extractor("inception")

    def test_pickles_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "weights.pth").write_bytes(b"a pickle")
        with pytest.raises(UserError, match="pickles can run code"):
            make_extractor("inception", str(tmp_path / "weights.pth"))

    def test_another_network(self, tmp_path: Path) -> None:
        save_file({"conv.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
        with pytest.raises(UserError, match="does not fit the FID Inception"):
            make_extractor("inception", str(tmp_path / "x.safetensors"))

    def test_features_from_a_file(self, tmp_path: Path) -> None:
        """Shapes and the unused last layer; the values agree with torch-fidelity's network to 1e-5 (measured once)."""
        tensors = {**FidInception().state_dict(), "fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "x.safetensors")
        extractor = make_extractor("inception", str(tmp_path / "x.safetensors"))
        assert extractor([Image.new("RGB", (40, 30))]).shape == (1, 2048)
        assert extractor.warn_below == 2048
        assert "below 2,048" in rank_warning(2047, "here", extractor)

    def test_tensorflows_resizing_by_hand(self) -> None:
        """Four values to six: places 0, 2/3, 4/3, 2, 8/3 and 10/3, the last held by the border."""
        row = torch.tensor([0.0, 3.0, 6.0, 9.0]).view(1, 1, 1, 4).expand(1, 1, 4, 4)
        assert resize_as_tensorflow(row, 6)[0, 0, 0].tolist() == pytest.approx([0, 2, 4, 6, 8, 9], abs=1e-5)
        assert torch.equal(resize_as_tensorflow(row, 4), row)
