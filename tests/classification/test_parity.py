"""Parity with OPTML-Group/Unlearn-Saliency@a6e89fd: expected values come from the official formulas, written out here.

The network is linear (logits = W x + b on 4 pixels, 3 classes), so that each gradient has a closed form:
∂CE/∂W = (p - onehot(y)) xᵀ and ∂CE/∂b = p - onehot(y).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from salun_diffusers.classification.batches import Batch
from salun_diffusers.classification.classifier import Classifier
from salun_diffusers.classification.forget_split import ForgetSplit, Pools, forget_instances
from salun_diffusers.classification.hyper_parameters import Training
from salun_diffusers.classification.influence import difference_gradient, official_product
from salun_diffusers.classification.labels import random_labels
from salun_diffusers.classification.masks import make_mask
from salun_diffusers.classification.membership import svc_efficacy
from salun_diffusers.classification.methods.boundary import BoundaryExpanding, BoundaryShrinking
from salun_diffusers.classification.methods.finetune import L1Sparse
from salun_diffusers.classification.methods.influence_unlearning import InfluenceUnlearning
from salun_diffusers.classification.methods.random_label import RandomLabel
from salun_diffusers.classification.training import Task
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.pictures.labelled_pictures import LabelledPictures
from salun_diffusers.seeds import stream

CLASSES, PIXELS = 3, 4
NAMES = ("1.weight", "1.bias")


@pytest.fixture
def classifier() -> Classifier:
    model = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return Classifier(model, CLASSES)


@pytest.fixture
def split() -> ForgetSplit:
    generator = torch.Generator().manual_seed(1)
    data = LabelledPictures(torch.rand((10, 1, 2, 2), generator=generator), torch.arange(10) % CLASSES, ("a", "b", "c"))
    return forget_instances(Pools(data, data[torch.arange(0)], data), [0, 4, 5])


def arrays(classifier: Classifier) -> tuple[np.ndarray, np.ndarray]:
    return tuple(classifier.parameters[name].detach().numpy().astype(np.float64) for name in NAMES)  # type: ignore


def gradients(weight: np.ndarray, bias: np.ndarray, data: LabelledPictures, labels=None) -> np.ndarray:
    """∇CE of each picture as rows: the 12 entries of W, then the 3 of b."""
    x = data.pixels.numpy().reshape(len(data), -1).astype(np.float64)
    y = data.labels.numpy() if labels is None else labels
    logits = x @ weight.T + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return np.concatenate([(p[:, :, None] * x[:, None, :]).reshape(len(y), -1), p], 1)


def vector(classifier: Classifier) -> np.ndarray:
    return np.concatenate([array.reshape(-1) for array in arrays(classifier)])


def test_mask_is_the_top_of_the_summed_gradient(classifier, split):
    """generate_mask.py: -CE summed over batches, absolute value, the int(r·N) largest over all tensors."""
    scores = np.abs(gradients(*arrays(classifier), split.forget).sum(0))
    expected = np.zeros(15, dtype=bool)
    expected[np.argsort(-scores)[: int(0.5 * 15)]] = True
    mask = make_mask("saliency", classifier, split.forget, ratio=0.5)
    found = np.concatenate([mask[name].numpy().reshape(-1) for name in NAMES])
    assert np.array_equal(found, expected)


def test_random_label_step_with_restoration(classifier, split):
    """RL.py: per batch g ← m g, SGD with momentum and weight decay, θ ← m θ + (1-m) θ₀, momentum ← m momentum.

    Two epochs over the forget set, then the retain set, one batch each; labels from 0 … C-1.
    """
    training = Training(epochs=2, learning_rate=0.1, momentum=0.9, weight_decay=0.05, batch_size=16)
    method = RandomLabel(training, order="sequential", labels="any")
    mask = make_mask("saliency", classifier, split.forget, ratio=0.5)
    m = np.concatenate([mask[name].numpy().reshape(-1) for name in NAMES])
    task = Task(classifier, split, mask, seed=5)
    start = vector(classifier)
    theta, momentum, first = start.copy(), np.zeros(15), True
    for epoch in range(2):
        for name, data in (("forget", split.forget), ("retain", split.retain)):
            order = torch.randperm(len(data), generator=stream(5, name, epoch))
            rows = data[order]
            labels = rows.labels
            if name == "forget":
                labels = random_labels(rows.labels, CLASSES, stream(5, "labels", epoch), "any")
            g = gradients(theta[:12].reshape(3, 4), theta[12:], rows, labels.numpy()).mean(0)
            g = g * m + 0.05 * theta  # torch's SGD adds the decay to the masked gradient: it leaks, and is restored
            momentum = g if first else 0.9 * momentum + g
            theta = theta - 0.1 * momentum
            theta = m * theta + (1 - m) * start
            momentum, first = momentum * m, False
    method(task)
    np.testing.assert_allclose(vector(classifier), theta, atol=2e-6)
    assert np.array_equal(vector(classifier)[~m], start[~m])


def official_influence(weight, bias, split, alpha, samples):
    """Wfisher.py, with v as in its driver."""
    forget, retain = gradients(weight, bias, split.forget), gradients(weight, bias, split.retain)
    n_f, n_r = len(forget), len(retain)
    v = forget.sum(0) / (n_f + n_r) - retain.sum(0) * n_f / ((n_f + n_r) * n_r)
    k, o = v.copy(), None
    for n, g in enumerate(retain):
        if n == 0:
            o = g
            continue
        t = o @ g
        k = k - (k @ g) / (samples + t) * o
        o = o - t / (samples + t) * o
        if n > samples:
            break
    return v, k, alpha * k, retain[0]


@pytest.mark.parametrize("samples", [3, 1000])
def test_influence_official(classifier, split, samples):
    """Acceptance test 8: `official` equals the code's recursion, and is v less a multiple of g₀."""
    v, k, _, g0 = official_influence(*arrays(classifier), split, 1.0, samples)
    found_v = difference_gradient(classifier, split.forget, split.retain)
    found = official_product(classifier, split.retain, found_v, samples).numpy()
    np.testing.assert_allclose(found_v.numpy(), v, atol=1e-7)
    np.testing.assert_allclose(found, k, atol=1e-7)
    difference = k - v
    assert abs(difference @ g0) == pytest.approx(np.linalg.norm(difference) * np.linalg.norm(g0), rel=1e-9)


def test_influence_under_a_mask(classifier, split):
    """The perturbation alone is masked: θ₀ + α (m ⊙ k)."""
    start = vector(classifier)
    *_, change, _ = official_influence(*arrays(classifier), split, 2.0, 1000)
    mask = make_mask("saliency", classifier, split.forget, ratio=0.5)
    m = np.concatenate([mask[name].numpy().reshape(-1) for name in NAMES])
    InfluenceUnlearning(step=2.0, inverse="official")(Task(classifier, split, mask))
    np.testing.assert_allclose(vector(classifier), start + m * change, atol=1e-6)


def test_l1_schedule_and_step(classifier, split):
    """FT.py with l1: γ_t = γ (1 - t / (T - T₀)); one full-batch step of plain SGD is θ - lr (ḡ + γ sign θ)."""
    method = L1Sparse(Training(epochs=1, learning_rate=0.1, momentum=0, weight_decay=0, batch_size=16), penalty=0.3)
    start = vector(classifier)
    g = gradients(*arrays(classifier), split.retain).mean(0)
    method(Task(classifier, split, SaliencyMask.full(classifier.parameters)))
    np.testing.assert_allclose(vector(classifier), start - 0.1 * (g + 0.3 * np.sign(start)), atol=1e-6)
    schedule = [L1Sparse(Training(epochs=5), 0.2, 1).weight(epoch) for epoch in range(5)]
    assert schedule == pytest.approx([0.2, 0.15, 0.1, 0.05, 0.0])


def test_l1_falls_by_epochs_and_not_by_steps(classifier, split, monkeypatch):
    asked = []
    monkeypatch.setattr(L1Sparse, "weight", lambda _, epoch: asked.append(epoch) or 0.0)
    size = -(-len(split.retain) // 3)
    L1Sparse(Training(epochs=2, batch_size=size))(Task(classifier, split, SaliencyMask.full(classifier.parameters)))
    assert asked == [0, 0, 0, 1, 1, 1]


def test_shrinking_labels(classifier, split):
    """boundary_sh.py: x′ = round255(clip(x + 0.1 sign ∇_x CE)), label argmax f₀(x′); ∇_x CE = Wᵀ (p - onehot)."""
    weight, bias = arrays(classifier)
    forget = split.forget
    x = forget.pixels.numpy().reshape(len(forget), -1).astype(np.float64)
    residual = gradients(weight, bias, forget)[:, 12:]
    changed = np.round(np.clip(x + 0.1 * np.sign(residual @ weight), 0, 1) * 255) / 255
    expected = (changed @ weight.T + bias).argmax(1)
    batch = Batch(forget.pixels, forget.labels, 3)
    official = BoundaryShrinking(exclude_true=False).neighbours(classifier, batch)
    assert official.tolist() == expected.tolist()
    logits = changed @ weight.T + bias
    logits[np.arange(3), forget.labels.numpy()] = -np.inf
    assert BoundaryShrinking().neighbours(classifier, batch).tolist() == logits.argmax(1).tolist()


def test_expanding_trains_towards_class_c(classifier, split):
    """boundary_ex.py: old rows are kept, the label is C. One step of plain SGD: the old rows lose p_c x on average."""
    weight, bias = arrays(classifier)
    x = split.forget.pixels.numpy().reshape(3, -1).astype(np.float64)
    training = Training(epochs=1, learning_rate=0.1, momentum=0, weight_decay=0, batch_size=16)
    task = Task(classifier, split, SaliencyMask.full(classifier.parameters))
    kept = BoundaryExpanding(training, keep_output=True)(task).classifier
    found = kept.parameters["1.weight"].detach().numpy()
    # The new row's start is random, so p is recovered from the rows' changes: each is -lr · mean p_c x.
    change = (found[:3] - weight) / -0.1
    p = np.linalg.lstsq(x.T, change.T, rcond=None)[0] * 3
    assert (p > 0).all() and (p.sum(1) < 1).all()
    ratios = np.exp(x @ weight.T + bias)
    np.testing.assert_allclose(p / p.sum(1, keepdims=True), ratios / ratios.sum(1, keepdims=True), atol=1e-3)


def test_membership_composition():
    """SVC_MIA.py: members are the first |D_test| retained pictures, in order; efficacy is the share predicted 0."""
    from sklearn.svm import SVC

    generator = torch.Generator().manual_seed(0)
    retain = torch.rand(40, generator=generator) * 0.3 + 0.7
    retain[20:] = 0.0  # Beyond the first |D_test|: the official composition never sees these.
    test, forget = torch.rand(20, generator=generator) * 0.9, torch.rand(30, generator=generator)
    seen = np.concatenate([retain[:20].double().numpy(), test.double().numpy()])[:, None]
    attacker = SVC(C=3, gamma="auto", kernel="rbf").fit(seen, np.repeat([1, 0], 20))
    expected = 1 - attacker.predict(forget.double().numpy()[:, None]).mean()
    assert svc_efficacy(retain, test, forget, official=True) == expected
    assert svc_efficacy(retain, test, forget) != expected
