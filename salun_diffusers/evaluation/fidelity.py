"""Distances between two sets of pictures on one extractor's features: Fréchet, kernel, precision and recall."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from salun_diffusers.errors import UserError, one_line
from salun_diffusers.evaluation.feature_extractors import FeatureExtractor
from salun_diffusers.evaluation.feature_files import FeatureSet
from salun_diffusers.reports.intervals import NORMAL_95
from salun_diffusers.reports.measurement import Measurement
from salun_diffusers.seeds import stream_seed

FEWEST = 100  # below this a covariance and a KID subset say nothing
_NAMES = {
    "inception": "FID",
    "dinov2": "FD-DINOv2",
    "clip": "FD-CLIP",
    "demo": "FD of demo features",
    "digits": "FD of digit features",
}


class _Unchanged(nn.Module):
    """Stands where torchmetrics expects a network: the features are already there."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.num_features = dimension

    def forward(self, features: Tensor) -> Tensor:
        """The same features."""
        return features


def torchmetric(name: str) -> Any:
    """A metric class of torchmetrics: ``fid`` or ``kid``.

    Raises:
        UserError: If torchmetrics is missing, or torch-fidelity keeps it from being imported.
    """
    try:
        from torchmetrics.image import fid, kid
    except ImportError as error:
        raise UserError(
            f"This evaluation needs torchmetrics ({one_line(error, 100)}): "
            "pip install 'salun-diffusers[evaluation]'; torch-fidelity without torchvision must go."
        ) from error
    return {"fid": fid.FrechetInceptionDistance, "kid": kid.KernelInceptionDistance}[name]


def frechet_distance(generated: Tensor, reference: Tensor) -> float:
    """Distance of two Gaussians fitted to the features, in double precision by torchmetrics.

        ‖μ₁ - μ₂‖² + Tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½)

    arXiv 1706.08500, eq. 6.

    Args:
        generated: `(n, dimension)`.
        reference: `(m, dimension)`.
    """
    metric = torchmetric("fid")(feature=_Unchanged(generated.shape[1])).set_dtype(torch.float64)
    metric.update(generated.double(), real=False)
    metric.update(reference.double(), real=True)
    return max(0.0, float(metric.compute()))


def kernel_distance(
    generated: Tensor, reference: Tensor, *, subsets: int, subset_size: int, seed: int
) -> tuple[float, float]:
    """Unbiased squared MMD with the kernel (xᵀy/d + 1)³ over random subsets, by torchmetrics.

    arXiv 1801.01401, section 4.

    Args:
        generated: `(n, dimension)`.
        reference: `(m, dimension)`.
        subsets: Number of subsets.
        subset_size: Pictures in each, fewer than either set has.
        seed: Of the subsets.

    Returns:
        Mean and standard deviation over the subsets.
    """
    with warnings.catch_warnings():
        # Features are in memory anyway.
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save", UserWarning)
        metric = torchmetric("kid")(
            feature=_Unchanged(generated.shape[1]), subsets=subsets, subset_size=subset_size
        ).set_dtype(torch.float64)
    metric.update(generated.double(), real=False)
    metric.update(reference.double(), real=True)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws from the global stream.
        torch.manual_seed(seed)
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


def inside_count(queries: Tensor, centres: Tensor, neighbours: int = 3, rows: int = 1024) -> int:
    """Count the queries that lie in the manifold of the centres.

    The manifold is the union of balls around each centre that reach to its k-th nearest other centre; precision asks
    it of generated pictures and the reference's balls, recall the other way round (arXiv 1904.06991, eq. 1 to 3).

    Args:
        queries: `(n, dimension)`.
        centres: `(m, dimension)`, m > `neighbours`.
        neighbours: k.
        rows: Rows of a distance matrix at once.
    """
    # Distances by products of matrices are lost where all features lie far from the origin, the more so in fp32.
    middle = centres.double().mean(dim=0)
    queries, centres = queries.double() - middle, centres.double() - middle
    radii = torch.cat(
        # The nearest one is the centre itself.
        [torch.cdist(part, centres).kthvalue(neighbours + 1, dim=1).values for part in centres.split(rows)]
    )
    return sum(int((torch.cdist(part, centres) <= radii).any(dim=1).sum()) for part in queries.split(rows))


def require_finite(features: FeatureSet, what: str) -> None:
    """Refuse features that hold NaN or infinity.

    Args:
        features: Of one side.
        what: Which side, for the message.

    Raises:
        UserError: Naming how many pictures have such, and the first of them.
    """
    wrong = (~features.values.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if wrong:
        raise UserError(
            f"Distances need finite features; of {what} {len(wrong)} of {len(features.values)} pictures have NaN or "
            f"infinity, the first is number {wrong[0] + 1} of {features.source}: draw them again, or look at the "
            "network."
        )


def require_enough(count: int, what: str) -> None:
    """Refuse too few pictures.

    Args:
        count: Pictures.
        what: Which side, for the message.

    Raises:
        UserError: If there are fewer than `FEWEST`.
    """
    if count < FEWEST:
        raise UserError(
            f"A distance of picture sets needs at least {FEWEST} pictures, {what} has {count}; "
            f"{FEWEST - count} more are required."
        )


def rank_warning(count: int, what: str, extractor: FeatureExtractor) -> str:
    """Say where there are fewer pictures than the features have dimensions; empty where there are enough."""
    if count >= extractor.warn_below:
        return ""
    return (
        f"{what} has {count} pictures, {extractor.name} features have {extractor.dimension} dimensions: below "
        f"{extractor.warn_below:,} the covariance has not full rank and the Fréchet distance is biased upwards; "
        "compare it only at equal numbers."
    )


def measure_fidelity(
    generated: FeatureSet,
    reference: FeatureSet,
    extractor: FeatureExtractor,
    *,
    seed: int = 0,
    bootstraps: int = 0,
    subsets: int = 100,
    command: str = "",
) -> list[Measurement]:
    """Fréchet distance, kernel distance, precision and recall of one set against another.

    Args:
        generated: Features of generated pictures.
        reference: Features of the reference.
        extractor: What made both.
        seed: Of subsets and resampling.
        bootstraps: Resamplings of both sets for the Fréchet distance's interval, value ± 1.96 s; below 2 there is none.
        subsets: Subsets of the kernel distance. They overlap, so that their mean has no interval.
        command: The command that measures it again.

    Raises:
        UserError: If either set is too small.
    """
    for side, what in ((generated, "the generated set"), (reference, "the reference")):
        require_enough(len(side.values), what)
        require_finite(side, what)
    ours, theirs = generated.values, reference.values
    n, m = len(ours), len(theirs)
    base = f"{generated.protocol}; reference of {m} pictures (sha256 {reference.digest[:8]})"
    name = _NAMES[extractor.name]
    value = frechet_distance(ours, theirs)
    draw = torch.Generator().manual_seed(stream_seed(seed, "bootstrap"))
    again = [
        frechet_distance(ours[torch.randint(n, (n,), generator=draw)], theirs[torch.randint(m, (m,), generator=draw)])
        for _ in range(bootstraps)
    ]
    half = NORMAL_95 * float(torch.tensor(again).std()) if bootstraps > 1 else None
    interval = f"interval from {bootstraps} bootstraps" if bootstraps > 1 else "no interval"
    # The bias depends on the number of pictures, so it belongs to the protocol.
    frechet = f"{base}; Fréchet distance by torchmetrics, {n} pictures, {interval}"
    size = min(1000, n // 2, m // 2)
    kid, _ = kernel_distance(ours, theirs, subsets=subsets, subset_size=size, seed=stream_seed(seed, "kid"))
    kernel = f"{base}; unbiased cubic-kernel MMD² by torchmetrics, mean of {subsets} subsets of {size}"
    manifold = f"{base}; improved precision and recall, k = 3, {n} pictures"
    about: dict[str, Any] = {"command": command, "group": "fidelity"}
    short = "" if extractor.name == "inception" else f" ({extractor.name} features)"
    return [
        Measurement(
            name,
            value,
            n,
            low=None if half is None else max(0.0, value - half),
            high=None if half is None else value + half,
            direction="lower",
            protocol=frechet,
            **about,
        ),
        Measurement(
            f"KID{short}",
            kid,
            n,
            low=None,
            high=None,
            direction="lower",
            protocol=kernel,
            **about,
        ),
        Measurement.rate(
            f"precision{short}", inside_count(ours, theirs), n, direction="higher", protocol=manifold, **about
        ),
        Measurement.rate(
            f"recall{short}", inside_count(theirs, ours), m, direction="higher", protocol=manifold, **about
        ),
    ]
