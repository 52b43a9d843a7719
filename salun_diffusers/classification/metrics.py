"""The papers' full stack of measures: UA, RA, TA, MIA, RTE, and the average gap to retraining."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import Tensor

from salun_diffusers.classification.classifier import Classifier, predict
from salun_diffusers.classification.forget_split import ForgetSplit
from salun_diffusers.classification.membership import (
    loss_attack_accuracy,
    svc_efficacy,
    true_class_confidence,
    true_class_loss,
)
from salun_diffusers.errors import UserError
from salun_diffusers.pictures.labelled_pictures import LabelledPictures
from salun_diffusers.reports.measurement import Measurement

MiaRule: TypeAlias = Literal["drawn", "official"]


@dataclass(frozen=True)
class Scores:
    """One model measured; shares in [0, 1].

    Args:
        forget_accuracy: Accuracy on D_f; UA is 1 less this.
        retain_accuracy: RA.
        test_accuracy: TA.
        mia: MIA-efficacy, see `svc_efficacy`.
        loss_attack: See `loss_attack_accuracy`.
        sizes: Number of pictures of D_f, D_r, D_test.
        mia_rule: Whom the attack behind `mia` learnt from.
        classes: Number of classes; who guesses is right once in so many. 0 where that is not known.
    """

    forget_accuracy: float
    retain_accuracy: float
    test_accuracy: float
    mia: float
    loss_attack: float
    sizes: tuple[int, int, int]
    mia_rule: MiaRule = "drawn"
    classes: int = 0

    @property
    def unlearning_accuracy(self) -> float:
        """UA = 1 - accuracy on D_f."""
        return 1 - self.forget_accuracy

    def to_json(self) -> dict[str, Any]:
        """JSON values, UA among them."""
        return {**dataclasses.asdict(self), "unlearning_accuracy": self.unlearning_accuracy}


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of pictures whose largest logit is the true class: torchmetrics' micro average.

    Raises:
        UserError: If torchmetrics is missing, there is no picture, or a logit is not finite.
    """
    _require_finite(logits)
    try:
        from torchmetrics.functional.classification import multiclass_accuracy
    except ImportError as error:
        raise UserError("Accuracies need torchmetrics: pip install 'salun-diffusers[classification]'.") from error
    return float(multiclass_accuracy(logits, labels, num_classes=logits.shape[1], average="micro"))


def _require_finite(logits: Tensor) -> None:
    if not len(logits):
        raise UserError("An accuracy needs at least one picture, got none; use data with more of them.")
    if not bool(logits.isfinite().all()):
        wrong = int((~logits.isfinite().all(dim=1)).sum())
        raise UserError(
            f"The model has diverged: it gives NaN or infinity for {wrong} of {len(logits)} pictures; use a lower "
            "--learning_rate, or a smaller --step of iu."
        )


def require_finite(classifier: Classifier, split: ForgetSplit) -> None:
    """Refuse a model that gives NaN or infinity for a picture of the three sets.

    Raises:
        UserError: Naming how many.
    """
    for data in (split.forget, split.retain, split.test):
        _require_finite(predict(classifier, data.pixels))


def measure(classifier: Classifier, split: ForgetSplit, *, seed: int = 0, mia: MiaRule = "drawn") -> Scores:
    """Measure a model on all three sets, in evaluation mode, pictures as they are.

    Args:
        classifier: The model; left in evaluation mode.
        split: Forget, retain and test set.
        seed: Seed of the attacks' draws.
        mia: Whom the membership attack learns from, see `svc_efficacy`.

    Raises:
        UserError: If torchmetrics or scikit-learn is missing, or a logit is not finite.
    """

    def asked(data: LabelledPictures) -> tuple[Tensor, Tensor]:
        return predict(classifier, data.pixels), data.labels

    forget, retain, test = asked(split.forget), asked(split.retain), asked(split.test)
    return Scores(
        forget_accuracy=accuracy(*forget),
        retain_accuracy=accuracy(*retain),
        test_accuracy=accuracy(*test),
        mia=svc_efficacy(
            *(true_class_confidence(*pair) for pair in (retain, test, forget)), seed=seed, official=mia == "official"
        ),
        loss_attack=loss_attack_accuracy(true_class_loss(*forget), true_class_loss(*test), seed=seed),
        sizes=(len(forget[1]), len(retain[1]), len(test[1])),
        mia_rule=mia,
        classes=split.train.num_classes,
    )


def average_gap(scores: tuple[float, float, float, float], reference: tuple[float, float, float, float]) -> float:
    """Mean of |value - Retrain's value| over UA, RA, TA and MIA; the run time is no part of it. Lower is better."""
    return sum(abs(value - goal) for value, goal in zip(scores, reference, strict=True)) / 4


def full_stack(scores: Scores) -> tuple[float, float, float, float]:
    """UA, RA, TA, MIA: what `average_gap` compares."""
    return scores.unlearning_accuracy, scores.retain_accuracy, scores.test_accuracy, scores.mia


def measurements(scores: Scores, *, whole_class: bool, subject: str = "", command: str = "") -> list[Measurement]:
    """The scores as rows of a report, with Wilson's intervals; a mean over splits that overlap has none.

    Args:
        scores: Of one model.
        whole_class: Whether a class is forgotten: the forget accuracy should then fall; else there is no better way,
            Retrain's value is the goal.
        subject: Data and forget set, see `subject_of`.
        command: The command line.
    """
    n_forget, n_retain, n_test = scores.sizes

    def rate(name: str, share: float, n: int, direction: Any, protocol: str, group: str) -> Measurement:
        return Measurement.rate(
            name, round(share * n), n, direction=direction, protocol=protocol, command=command, group=group
        ).of(subject)

    wanted = "lower" if whole_class else "neither"
    seen = "SVC on the true class's confidence, retain against test pictures; share of the forget set called unseen"
    if scores.mia_rule == "official":
        seen = f"{seen}; learnt from all test and as many of the first retained pictures"
    return [
        rate("forget accuracy (1 - UA)", scores.forget_accuracy, n_forget, wanted, "top-1, forget set", "forgotten"),
        rate("test accuracy (TA)", scores.test_accuracy, n_test, "higher", "top-1, test set", "retained"),
        rate("retain accuracy (RA)", scores.retain_accuracy, n_retain, "higher", "top-1, retain set", "retained"),
        rate("MIA efficacy", scores.mia, n_forget, "higher" if whole_class else "neither", seen, "membership"),
        Measurement(
            "loss attack accuracy",
            scores.loss_attack,
            2 * min(n_forget, n_test),
            low=None,
            high=None,
            direction="neither",
            protocol="logistic regression on the loss, forget against test pictures, mean of overlapping splits; 0.5 "
            "is chance",
            command=command,
            group="membership",
            kind="rate",
            subject=subject,
        ),
    ]
