"""Does an attacker take the forgotten pictures for pictures the model has never seen?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from salun_diffusers.errors import UserError
from salun_diffusers.seeds import stream, stream_seed


def true_class_confidence(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax probability of the true class, `(n,)`."""
    return logits.double().softmax(1).gather(1, labels[:, None]).squeeze(1)


def true_class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each picture, `(n,)`."""
    return torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")


def svc_efficacy(
    retain: Tensor, test: Tensor, forget: Tensor, *, seed: int = 0, official: bool = False, limit: int = 10_000
) -> float:
    """MIA-efficacy of the papers: the share of the forget set that an attacker calls unseen.

    An SVC (C = 3, RBF, gamma "auto") learns from one score per picture to tell retained pictures (label 1, seen) from
    test pictures (label 0, unseen): TN / |D_f| on the forget set. Higher means that it looks unseen; Retrain's value is
    the goal, not 1. OPTML-Group/Unlearn-Saliency@a6e89fd, Classification/evaluation/SVC_MIA.py, "confidence".

    Differs from the official code: both classes are drawn at random to the same size, at most `limit` each (there: the
    first |D_test| retained pictures, all test pictures; ``official=True``).

    Args:
        retain: Scores of D_r, from the unlearned model.
        test: Scores of D_test, from the same model.
        forget: Scores of D_f, from the same model.
        seed: Seed of the draw.
        official: Take the first |D_test| of D_r in order.
        limit: Most pictures per class: the SVC takes quadratic time.

    Returns:
        A share in [0, 1].

    Raises:
        UserError: If scikit-learn is missing.
    """
    if official:
        seen, unseen = retain[: len(test)], test
    else:
        size = min(len(retain), len(test), limit)
        seen, unseen = _drawn(retain, size, seed, "retain"), _drawn(test, size, seed, "test")
    attacker = _sklearn("svm").SVC(C=3, gamma="auto", kernel="rbf")
    attacker.fit(_column(torch.cat([seen, unseen])), np.repeat([1, 0], [len(seen), len(unseen)]))
    return float((attacker.predict(_column(forget)) == 0).mean())


def loss_attack_accuracy(forget: Tensor, test: Tensor, *, seed: int = 0, splits: int = 10) -> float:
    """How well a logistic regression on the loss tells forget from test pictures; 0.5 where it cannot.

    The simple attack of the NeurIPS 2023 unlearning challenge's starting kit: mean accuracy over shuffled splits.

    Args:
        forget: Loss of each picture of D_f.
        test: Loss of each picture of D_test; both are drawn to the same size.
        seed: Seed of draws and splits.
        splits: Number of splits, a tenth held out in each.

    Returns:
        The mean accuracy, in [0, 1]; 0.5 if there are fewer than 5 pictures of a kind, too few to learn from.

    Raises:
        UserError: If scikit-learn is missing.
    """
    size = min(len(forget), len(test))
    if size < 5:
        return 0.5
    # Losses span orders of magnitude and are never negative.
    scores = torch.cat([_drawn(forget, size, seed, "forget"), _drawn(test, size, seed, "test")]).log1p()
    labels = np.repeat([1, 0], size)
    selection, attacker = _sklearn("model_selection"), _sklearn("linear_model").LogisticRegression()
    folds = selection.StratifiedShuffleSplit(
        n_splits=splits, test_size=max(2, size // 5), random_state=stream_seed(seed, "attack") % 2**32
    )
    return float(selection.cross_val_score(attacker, _column(scores), labels, cv=folds, scoring="accuracy").mean())


def _drawn(scores: Tensor, size: int, seed: int, name: str) -> Tensor:
    return scores[torch.randperm(len(scores), generator=stream(seed, "attack", name))[:size]]


def _column(scores: Tensor) -> np.ndarray:
    return np.asarray(scores.double().numpy()).reshape(-1, 1)


def _sklearn(part: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"sklearn.{part}")
    except ImportError as error:
        raise UserError(
            "The membership attack needs scikit-learn: pip install 'salun-diffusers[classification]'."
        ) from error
