"""Every method against its equation, written out here in float64: some steps of a linear network, directions included.

logits = W x + b on 4 pixels and 3 classes, so that ∂ℓ/∂W = δ xᵀ and ∂ℓ/∂b = δ with δ = ∂ℓ/∂logits of each picture:
p - onehot(y) for the cross-entropy, T (p - p₀) for T² KL(p₀ ‖ p) at temperature T.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from salun_diffusers.classification.attacks import fgsm, pgd_l2
from salun_diffusers.classification.batches import Augmentation
from salun_diffusers.classification.classifier import Classifier
from salun_diffusers.classification.forget_split import ForgetSplit, Pools, forget_instances
from salun_diffusers.classification.hyper_parameters import Training
from salun_diffusers.classification.importance import holding_weights, mas_importance
from salun_diffusers.classification.masks import make_mask
from salun_diffusers.classification.membership import true_class_confidence, true_class_loss
from salun_diffusers.classification.methods.boundary import BoundaryShrinking
from salun_diffusers.classification.methods.dampening import SelectiveDampening
from salun_diffusers.classification.methods.finetune import FineTune, Retrain
from salun_diffusers.classification.methods.gradient_ascent import GradientAscent
from salun_diffusers.classification.methods.influence_unlearning import InfluenceUnlearning
from salun_diffusers.classification.methods.l2ul import L2UL
from salun_diffusers.classification.methods.random_label import RandomLabel, SalUnSoft
from salun_diffusers.classification.methods.scrub import Scrub
from salun_diffusers.classification.models import make_classifier
from salun_diffusers.classification.training import Task
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.pictures.labelled_pictures import LabelledPictures
from salun_diffusers.seeds import stream

CLASSES, PIXELS, SEED = 3, 4, 5
NAMES = ("1.weight", "1.bias")
PLAIN = {"momentum": 0.0, "weight_decay": 0.0}
CLOSE = {"atol": 2e-6, "rtol": 0}


@pytest.fixture
def split() -> ForgetSplit:
    generator = torch.Generator().manual_seed(1)
    data = LabelledPictures(torch.rand((11, 1, 2, 2), generator=generator), torch.arange(11) % CLASSES, ("a", "b", "c"))
    return forget_instances(Pools(data, data[torch.arange(0)], data), [0, 4, 5, 8])


@pytest.fixture
def task(split) -> Task:
    model = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, CLASSES))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    classifier = Classifier(model, CLASSES)
    return Task(classifier, split, SaliencyMask.full(classifier.parameters), SEED)


def vector(task: Task) -> np.ndarray:
    """W's 12 entries, then b's 3."""
    return np.concatenate([task.classifier.parameters[name].detach().double().numpy().reshape(-1) for name in NAMES])


def flat(data) -> np.ndarray:
    return data.pixels.double().numpy().reshape(len(data.labels), -1)


def logits(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    return x @ theta[:12].reshape(CLASSES, PIXELS).T + theta[12:]


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def mean_gradient(x: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """The mean over pictures of δ xᵀ and δ, as one vector."""
    rows = np.concatenate([(delta[:, :, None] * x[:, None, :]).reshape(len(x), -1), delta], 1)
    return rows.mean(0)


def cross_entropy(theta: np.ndarray, x: np.ndarray, y) -> np.ndarray:
    """∇ of the mean cross-entropy."""
    return mean_gradient(x, softmax(logits(theta, x)) - np.eye(CLASSES)[np.asarray(y)])


def mean_loss(theta: np.ndarray, data) -> float:
    p = softmax(logits(theta, flat(data)))
    return float(-np.log(p[np.arange(len(p)), data.labels.numpy()]).mean())


def test_ascent_climbs_the_loss_of_the_forget_set(task):
    start = vector(task)
    GradientAscent(Training(epochs=1, learning_rate=0.1, **PLAIN))(task)
    forget = task.split.forget
    np.testing.assert_allclose(vector(task), start + 0.1 * cross_entropy(start, flat(forget), forget.labels), **CLOSE)
    assert mean_loss(vector(task), forget) > mean_loss(start, forget)


def test_fine_tuning_descends_the_loss_of_the_retain_set(task):
    """Two steps with momentum and weight decay: v ← 0.9 v + g + 0.05 θ, θ ← θ - 0.1 v."""
    theta, velocity, retain = vector(task), np.zeros(15), task.split.retain
    for _ in range(2):
        velocity = 0.9 * velocity + cross_entropy(theta, flat(retain), retain.labels) + 0.05 * theta
        theta = theta - 0.1 * velocity
    FineTune(Training(epochs=2, learning_rate=0.1, weight_decay=0.05))(task)
    np.testing.assert_allclose(vector(task), theta, **CLOSE)


@pytest.mark.parametrize("kind", ["full", "saliency"])
@pytest.mark.parametrize("retain_weight", [1.0, 2.5])
def test_relabelling_together(task, kind, retain_weight):
    """RL and, under its mask, SalUn: θ ← θ - η m ⊙ ∇[CE(x_f, y′) + α CE(x_r, y_r)], both means over their own rows."""
    mask = make_mask(kind, task.classifier, task.split.forget, ratio=0.5)
    m = np.concatenate([mask[name].numpy().reshape(-1) for name in NAMES])
    task = Task(task.classifier, task.split, mask, SEED)
    method = RandomLabel(Training(epochs=2, learning_rate=0.2, batch_size=3, **PLAIN), retain_weight=retain_weight)
    theta = start = vector(task)
    before = None
    for epoch in range(2):
        for batch in method.passes(task, epoch):
            x, y, n = flat(batch), batch.labels.numpy(), batch.forget
            assert 0 < n < len(y)
            g = cross_entropy(theta, x[:n], y[:n]) + retain_weight * cross_entropy(theta, x[n:], y[n:])
            theta = theta - 0.2 * m * g
            before = (x[:n], y[:n]) if before is None else before
    method(task)
    np.testing.assert_allclose(vector(task), theta, **CLOSE)
    assert np.array_equal(vector(task)[~m], start[~m])
    for batch in method.passes(task, 0):  # The forget rows are those of the forget set, none with its own label.
        for picture, label in zip(batch.pixels[: batch.forget], batch.labels[: batch.forget], strict=True):
            same = [torch.equal(picture, known) for known in task.split.forget.pixels]
            assert task.split.forget.labels[same.index(True)] != label


def test_relabelling_makes_the_forget_set_forgotten(task):
    """The direction by itself, from a model that knows the forget set: with α = 0 the loss of the true labels rises."""
    every = dataclasses.replace(task.split, forget_indices=torch.tensor([1]))
    FineTune(Training(epochs=300, learning_rate=0.5, **PLAIN))(dataclasses.replace(task, split=every))
    start, forget = vector(task), task.split.forget
    method = RandomLabel(Training(epochs=300, learning_rate=0.5, **PLAIN), retain_weight=0.0)
    method(task)
    assert mean_loss(vector(task), forget) > mean_loss(start, forget) + 0.5


def test_salun_soft(task):
    """θ ← soft(θ - η g) around θ₀, where the share of changes taken back is p (1 - s/S) after step s of S."""
    method = SalUnSoft(
        Training(epochs=2, learning_rate=0.2, batch_size=4, **PLAIN), retain_weight=2.0, frozen_share=0.8
    )
    relabel = RandomLabel(method.training, retain_weight=2.0)
    theta = start = vector(task)
    step, steps = 0, 2 * relabel.steps(task)
    for epoch in range(2):
        for batch in relabel.passes(task, epoch):
            step += 1
            x, y, n = flat(batch), batch.labels.numpy(), batch.forget
            g = cross_entropy(theta, x[:n], y[:n]) + 2.0 * cross_entropy(theta, x[n:], y[n:])
            change = theta - 0.2 * g - start
            count = int(0.8 * (1 - step / steps) * len(change))
            threshold = np.sort(np.abs(change))[count - 1] if count else 0.0
            theta = start + np.sign(change) * np.maximum(np.abs(change) - threshold, 0)
    assert steps == 4
    method(task)
    np.testing.assert_allclose(vector(task), theta, **CLOSE)


def divergence(theta: np.ndarray, base: np.ndarray, x: np.ndarray, temperature: float) -> np.ndarray:
    """∇ of the mean of T² KL(p₀ ‖ p)."""
    p, p0 = (softmax(logits(weights, x) / temperature) for weights in (theta, base))
    return mean_gradient(x, temperature * (p - p0))


def test_scrub(task):
    """Forget batches climb the divergence from the teacher, retain batches descend γ CE + α KL; forget first."""
    method = Scrub(
        Training(epochs=3, learning_rate=0.2, batch_size=16, **PLAIN),
        ascent_epochs=2, distillation=0.7, retain_weight=0.4, temperature=3.0,
    )  # fmt: skip
    theta = base = vector(task)
    forget, retain = task.split.forget, task.split.retain
    for epoch in range(3):
        if epoch < 2:
            theta = theta + 0.2 * divergence(theta, base, flat(forget), 3.0)
        own = 0.4 * cross_entropy(theta, flat(retain), retain.labels)
        theta = theta - 0.2 * (own + 0.7 * divergence(theta, base, flat(retain), 3.0))
    method(task)
    np.testing.assert_allclose(vector(task), theta, **CLOSE)


def test_scrubs_divergence_by_hand():
    """Teacher (1/2, 1/2), student (1/4, 3/4) at T = 1: ½ log(2) + ½ log(2/3) = 0.1438; the other way 0.1308."""
    teacher, student = torch.zeros(1, 2), torch.tensor([[0.0, np.log(3.0)]])
    found = Scrub(temperature=1.0).divergence(teacher, student).item()
    assert found == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), abs=1e-6)
    # At T = 2 the student's odds are √3, and the whole is multiplied by T² = 4.
    q = 1 / (1 + np.sqrt(3))
    expected = 4 * (0.5 * np.log(0.5 / q) + 0.5 * np.log(0.5 / (1 - q)))
    assert Scrub(temperature=2.0).divergence(teacher, student).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("selection", "dampening"), [(0.9, 2.0), (1.1, 0.5), (0.0, 1.0)])
def test_dampening(task, selection, dampening):
    """I = mean_b (∇ mean CE of b)² over batches of 2; where I_f > α I_D: θ ← θ min(λ I_D / I_f, 1), else θ."""

    def importance(data: LabelledPictures) -> np.ndarray:
        x, y = flat(data), data.labels.numpy()
        rows = [cross_entropy(start, x[i : i + 2], y[i : i + 2]) ** 2 for i in range(0, len(y), 2)]
        return np.mean(rows, 0)

    start = vector(task)
    of_forget, of_all = importance(task.split.forget), importance(task.split.train)
    chosen = of_forget > selection * of_all
    factor = np.where(chosen, np.minimum(dampening * of_all / of_forget, 1), 1)
    SelectiveDampening(selection, dampening, importance_batch_size=2, importance_order="stored")(task)
    np.testing.assert_allclose(vector(task), start * factor, **CLOSE)
    assert 0 < (factor < 1).sum() < 15
    if dampening > 1:  # Some of the chosen ones would grow without the limit.
        assert (chosen & (factor == 1)).any()


@pytest.mark.parametrize("weighting", ["sum", "batch_size"])
@pytest.mark.parametrize("goal", ["misclassify", "relabel"])
def test_l2ul(task, goal, weighting):
    """Three steps of w_f ℓ_f + w_a CE(x_adv, ȳ) + λ Σ ½ Ω̄ ⊙ (θ - θ₀)²; the pull is 0 at θ₀, one would not show it."""
    method = L2UL(
        Training(epochs=3, learning_rate=0.3, batch_size=16, **PLAIN), goal=goal, weighting=weighting,
        copies=2, attack_steps=2, adversarial_batch_size=16, holding=1.5,
    )  # fmt: skip
    forget, made = task.split.forget, method.adversaries(task)
    x, x_adv, y = flat(forget), flat(made), forget.labels.numpy()
    start = vector(task)
    z = logits(start, x)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    rows = np.concatenate([(unit[:, :, None] * x[:, None, :]).reshape(len(x), -1), unit], 1)
    omega = np.abs(rows).mean(0)
    held = np.concatenate([1 - (part - part.min()) / (part.max() - part.min()) for part in (omega[:12], omega[12:])])
    share = 4 / 12 if weighting == "batch_size" else None
    w_f, w_a = (share, 1 - share) if share else (1.0, 1.0)
    from salun_diffusers.classification.labels import random_labels

    wanted = random_labels(forget.labels, CLASSES, stream(SEED, "relabel")).numpy()
    theta = start
    for _ in range(3):
        g_f = cross_entropy(theta, x, wanted) if goal == "relabel" else -cross_entropy(theta, x, y)
        g = w_f * g_f + w_a * cross_entropy(theta, x_adv, made.labels) + 1.5 * held * (theta - start)
        theta = theta - 0.3 * g
        found = logits(theta, x).argmax(1)
        if (found == wanted).all() if goal == "relabel" else (found != y).all():
            break
    history = method(task).history
    assert len(history) >= 2
    np.testing.assert_allclose(vector(task), theta, **CLOSE)


def test_importance_of_weights(task):
    """Ω = mean |∂‖z‖/∂θ|, with ∂‖z‖/∂z = z/‖z‖; what matters least is held by 1, what matters most by 0."""
    x = flat(task.split.forget)
    z = logits(vector(task), x)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    expected = np.abs(unit[:, :, None] * x[:, None, :]).mean(0)
    found = mas_importance(task.classifier, task.split.forget)
    np.testing.assert_allclose(found["1.weight"].numpy(), expected, atol=1e-6)
    held = holding_weights(found)["1.weight"]
    assert held.argmin() == expected.argmax() and held.argmax() == expected.argmin()


def test_shrinking_trains_towards_the_neighbour(task):
    """θ ← θ - η ∇CE(x_f, y′) with y′ of the model before, whatever it has become."""
    method = BoundaryShrinking(Training(epochs=2, learning_rate=0.5, **PLAIN))
    forget = task.split.forget
    theta = vector(task)
    x, y = flat(forget), forget.labels.numpy()
    pull = softmax(logits(theta, x)) - np.eye(CLASSES)[y]
    changed = np.round(np.clip(x + 0.1 * np.sign(pull @ theta[:12].reshape(CLASSES, PIXELS)), 0, 1) * 255) / 255
    scores = logits(theta, changed)
    scores[np.arange(len(y)), y] = -np.inf
    for _ in range(2):
        theta = theta - 0.5 * cross_entropy(theta, x, scores.argmax(1))
    method(task)
    np.testing.assert_allclose(vector(task), theta, **CLOSE)


def test_influence_steps_away_from_the_forget_set(task):
    """θ = θ₀ + α (F + λ)⁻¹ v, F the mean of g gᵀ over D_r, v the difference of gradients; the forget loss rises."""
    start, forget, retain = vector(task), task.split.forget, task.split.retain
    per_picture = [
        np.stack([cross_entropy(start, flat(data)[i : i + 1], data.labels[i : i + 1]) for i in range(len(data))])
        for data in (forget, retain)
    ]
    n_f, n_r = len(forget), len(retain)
    v = per_picture[0].sum(0) / (n_f + n_r) - per_picture[1].sum(0) * n_f / ((n_f + n_r) * n_r)
    fisher = per_picture[1].T @ per_picture[1] / n_r
    k = np.linalg.solve(fisher + 0.2 * np.eye(15), v)
    InfluenceUnlearning(step=0.3, inverse="cg", damping=0.2, iterations=60)(task)
    np.testing.assert_allclose(vector(task), start + 0.3 * k, atol=1e-5)
    assert mean_loss(vector(task), forget) > mean_loss(start, forget)


def test_attack_follows_its_equation(task):
    """Targeted PGD from its random start, three steps in float64: towards the target, back into ball and range."""
    pixels, targets = task.split.retain.pixels, torch.tensor([0, 1, 2, 0, 1, 2, 0])
    found = pgd_l2(task.classifier, pixels, targets, stream(1, "x"), radius=0.4, step_size=0.15, steps=3)
    generator = stream(1, "x")
    noise = torch.randn(pixels.shape, generator=generator).double().numpy().reshape(7, -1)
    length = torch.rand(7, generator=generator).double().numpy() * 0.4
    x0 = pixels.double().numpy().reshape(7, -1)
    theta = vector(task)
    x = np.clip(x0 + noise * (length / np.linalg.norm(noise, axis=1))[:, None], 0, 1)
    for _ in range(3):
        g = (softmax(logits(theta, x)) - np.eye(CLASSES)[targets.numpy()]) @ theta[:12].reshape(CLASSES, PIXELS)
        change = x - 0.15 * g / np.linalg.norm(g, axis=1, keepdims=True) - x0
        x = np.clip(x0 + change * np.minimum(1, 0.4 / np.linalg.norm(change, axis=1))[:, None], 0, 1)
    np.testing.assert_allclose(found.double().numpy().reshape(7, -1), x, atol=1e-6)


def test_signed_step(task):
    """x′ = round₂₅₅(clip(x + 0.3 sign ∇_x CE)): away from the true class."""
    data = task.split.retain
    theta, x = vector(task), flat(data)
    g = (softmax(logits(theta, x)) - np.eye(CLASSES)[data.labels.numpy()]) @ theta[:12].reshape(CLASSES, PIXELS)
    expected = np.round(np.clip(x + 0.3 * np.sign(g), 0, 1) * 255) / 255
    found = fgsm(task.classifier, data.pixels, data.labels, step_size=0.3)
    np.testing.assert_allclose(found.double().numpy().reshape(len(x), -1), expected, atol=1e-7)


def test_confidence_and_loss_by_hand():
    """Logits (0, log 3): probabilities 1/4 and 3/4."""
    z, y = torch.tensor([[0.0, np.log(3.0)]] * 2), torch.tensor([0, 1])
    assert true_class_confidence(z, y).tolist() == pytest.approx([0.25, 0.75])
    assert true_class_loss(z, y).tolist() == pytest.approx([np.log(4), np.log(4 / 3)])


def test_retraining_learns_the_retain_set(task):
    before = mean_loss(vector(task), task.split.retain)
    Retrain(Training(epochs=300, learning_rate=0.5, **PLAIN))(task)
    assert mean_loss(vector(task), task.split.retain) < min(before, 1.0)


def test_augmentation_by_hand():
    """A shift cuts out of a frame of zeros; a flip mirrors columns, about half of the pictures."""
    pixels = torch.arange(1.0, 10.0).view(1, 1, 3, 3).expand(200, 1, 3, 3) / 9
    shifted = Augmentation(shift=1)(pixels, torch.Generator().manual_seed(0))
    frame = F.pad(pixels[0], (1, 1, 1, 1))
    possible = [frame[:, y : y + 3, x : x + 3] for y in range(3) for x in range(3)]
    places = {next(n for n, one in enumerate(possible) if torch.equal(one, picture)) for picture in shifted}
    assert len(places) == 9
    flipped = Augmentation(flip=True)(pixels, torch.Generator().manual_seed(0))
    mirrored = [torch.equal(picture, pixels[0].flip(-1)) for picture in flipped]
    same = [torch.equal(picture, pixels[0]) for picture in flipped]
    assert all(a != b for a, b in zip(mirrored, same, strict=True)) and 70 < sum(mirrored) < 130


class TestNetworks:
    def build(self, name: str) -> Classifier:
        return make_classifier(name, class_names=tuple("abcdefghij"), channels=3, image_size=32, seed=0)

    def test_resnet18_has_the_official_number_of_weights(self):
        """A 3 x 3 stem; stages of two blocks of two 3 x 3 convolutions, three of them with a 1 x 1 shortcut; norms.

        By hand: 11,173,962, as OPTML-Group/Unlearn-Saliency@a6e89fd has it.
        """
        count = 3 * 64 * 9 + 2 * 64
        width = 64
        for out in (64, 128, 256, 512):
            count += width * out * 9 + 3 * out * out * 9 + 4 * 2 * out
            count += width * out + 2 * out if width != out else 0
            width = out
        count += 512 * 10 + 10
        found = sum(weight.numel() for weight in self.build("resnet18").parameters.values())
        assert found == count == 11_173_962

    def test_the_stem_keeps_the_size(self):
        """One stage without stride, three with: 32 → 32, 16, 8, 4; with the plain stem it would begin at 8."""
        model = self.build("resnet18").model.eval()
        with torch.no_grad():
            states = model(torch.rand(1, 3, 32, 32), output_hidden_states=True).hidden_states
        assert [tuple(state.shape[1:]) for state in states] == [
            (64, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)
        ]  # fmt: skip

    def test_vgg16_is_its_layers_one_after_another(self):
        """13 convolutions with norm and ReLU, five poolings by two, the mean, one linear layer: in float64, by hand."""
        classifier = self.build("vgg16_bn")
        model = classifier.model.double().eval()
        weights = model.state_dict()
        x = torch.rand(1, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found, h, place = model(x).logits, x, 0
            for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
                if width == 0:
                    h = h.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
                    place += 1
                    continue
                h = F.conv2d(h, weights[f"features.{place}.weight"], weights[f"features.{place}.bias"], padding=1)
                norm = {part: weights[f"features.{place + 1}.{part}"].view(-1, 1, 1) for part in
                        ("running_mean", "running_var", "weight", "bias")}  # fmt: skip
                h = (h - norm["running_mean"]) / (norm["running_var"] + 1e-5).sqrt() * norm["weight"] + norm["bias"]
                h = h.clamp_min(0)
                assert h.shape[1] == width
                place += 3
            expected = h.mean((2, 3)) @ weights["classifier.weight"].T + weights["classifier.bias"]
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
        widths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
        count = sum((9 * one + 3) * other for one, other in itertools.pairwise(widths)) + 513 * 10
        assert sum(tensor.numel() for tensor in model.parameters()) == count
