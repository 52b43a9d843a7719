"""The hyper-parameters of every method, declared once and without torch; what has a help text is a flag as well.

What a hyper-parameter means stands beside the equation, in the class of `salun_diffusers.classification.methods` that
inherits from the one here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from salun_diffusers.arguments import setting
from salun_diffusers.errors import UserError

Order: TypeAlias = Literal["together", "sequential", "mixed"]
MasForm: TypeAlias = Literal["per_sample", "per_batch"]


@dataclass(frozen=True)
class Training:
    """Settings of SGD, by default those of OPTML-Group/Unlearn-Saliency@a6e89fd but for the batch size (256 there).

    Args:
        epochs: Passes over the data; what is passed over is the method's.
        learning_rate: Step size.
        momentum: Momentum.
        weight_decay: L2 penalty; acts on the selected weights only.
        batch_size: Pictures a batch.
        schedule: Course of the learning rate over the epochs.
        milestones: Epochs from which on a multistep rate is a tenth of what it was.

    Raises:
        UserError: If a milestone is no whole number.
    """

    epochs: int = setting(10, "Passes over the data.", minimum=1)
    learning_rate: float = setting(0.01, "Step size of SGD.", above=0)
    momentum: float = setting(0.9, "Momentum.", minimum=0, maximum=0.999)
    weight_decay: float = setting(5e-4, "L2 penalty of the weights that may move.", minimum=0)
    batch_size: int = setting(64, "Pictures a batch.", minimum=1)
    schedule: Literal["constant", "cosine", "multistep"] = setting("constant", "Course of the learning rate.")
    milestones: tuple[str, ...] = setting(("91", "136"), "Epochs after which a multistep rate falls to a tenth.")

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(map(str, self.milestones)))  # A record has a list of them.
        for milestone in self.milestones:
            if not milestone.isdecimal():
                raise UserError(f"--milestones must be whole numbers of epochs, got {milestone!r}.")


@dataclass(frozen=True)
class RandomLabelSettings:
    """Of RL and SalUn."""

    training: Training = field(default_factory=Training)
    retain_weight: float = setting(1.0, "α.", minimum=0)
    order: Order = setting("together", "together as in the paper; the others as in the official code.")
    labels: Literal["other", "any"] = setting("other", "whether a drawn label may be the true one.")


@dataclass(frozen=True)
class SalUnSoftSettings(RandomLabelSettings):
    """Of SalUn-soft."""

    frozen_share: float = setting(0.5, "share of changes taken back at the start.", minimum=0, maximum=1)
    anchor: Literal["base", "epoch"] = setting("base", "what changes are measured from: epoch as in the official code.")


@dataclass(frozen=True)
class FineTuneSettings:
    """Of FT."""

    training: Training = field(default_factory=Training)


@dataclass(frozen=True)
class L1SparseSettings:
    """Of l1-sparse."""

    training: Training = field(default_factory=Training)
    penalty: float = setting(1e-4, "γ.", minimum=0)
    epochs_without: int = setting(0, "epochs at the end without the penalty.", minimum=0)


@dataclass(frozen=True)
class RetrainSettings:
    """Of Retrain."""

    training: Training = field(default_factory=lambda: Training(epochs=40, learning_rate=0.1, schedule="cosine"))


@dataclass(frozen=True)
class GradientAscentSettings:
    """Of GA."""

    training: Training = field(default_factory=lambda: Training(epochs=5, learning_rate=1e-3))


@dataclass(frozen=True)
class InfluenceSettings:
    """Of IU."""

    step: float = setting(1.0, "α.")
    inverse: Literal["official", "diag", "cg"] = setting("cg", "how the inverse is taken.")
    damping: float = setting(0.01, "λ of diag and cg.", above=0)
    samples: int = setting(1000, "pictures of official.", minimum=1)
    iterations: int = setting(20, "products with the Fisher matrix of cg.", minimum=1)


@dataclass(frozen=True)
class BoundaryShrinkingSettings:
    """Of BS."""

    training: Training = field(default_factory=lambda: Training(learning_rate=1e-3))
    fgsm_step: float = setting(0.1, "step per pixel.", above=0)
    exclude_true: bool = setting(True, "never aim at the true class; off as in the official code.")


@dataclass(frozen=True)
class BoundaryExpandingSettings:
    """Of BE."""

    training: Training = field(default_factory=lambda: Training(learning_rate=1e-3))
    keep_output: bool = setting(False, "keep the extra class.")


@dataclass(frozen=True)
class L2ULSettings:
    """Of L2UL."""

    training: Training = field(
        default_factory=lambda: Training(epochs=100, learning_rate=1e-3, weight_decay=1e-4, batch_size=32)
    )
    goal: Literal["misclassify", "relabel"] = setting("relabel", "what the forget set becomes.")
    adversarial: bool = setting(True, "use adversarial pictures.")
    importance: bool = setting(True, "hold weights by importance.")
    retain: bool = setting(False, "also learn the retain set.")
    weighting: Literal["sum", "batch_size"] = setting("sum", "of the two terms; batch_size as in the official code.")
    radius: float = setting(4.0, "ε of the attack, L2 over pixels in [0, 1].", above=0)
    step_size: float = setting(0.3, "step of the attack; 0.1 in the official code.", above=0)
    copies: int = setting(20, "adversarial pictures per forget picture.", minimum=1)
    attack_steps: int = setting(30, "steps of the attack; 100 in the official code.", minimum=1)
    adversarial_batch_size: int = setting(256, "adversarial pictures a step.", minimum=1)
    holding: float = setting(10.0, "λ of the importance penalty; 1 in the official scripts.", minimum=0)
    form: MasForm = setting("per_sample", "of the importance; per_batch as in the official code.")


@dataclass(frozen=True)
class DampeningSettings:
    """Of SSD."""

    selection: float = setting(10.0, "α.", minimum=0)
    dampening: float = setting(1.0, "λ.", minimum=0)
    importance_batch_size: int = setting(64, "pictures whose mean gradient is squared.", minimum=1)
    importance_order: Literal["drawn", "stored"] = setting(
        "drawn", "which pictures share a batch; stored as in the official code, where it depends on the files."
    )


@dataclass(frozen=True)
class ScrubSettings:
    """Of SCRUB."""

    training: Training = field(default_factory=lambda: Training(epochs=6))
    ascent_epochs: int = setting(3, "epochs with the forget set.", minimum=0)
    distillation: float = setting(0.5, "α.", minimum=0)
    retain_weight: float = setting(1.0, "γ.", minimum=0)
    temperature: float = setting(4.0, "T.", above=0)


HYPER_PARAMETERS: dict[str, type] = {
    "rl": RandomLabelSettings,
    "salun": RandomLabelSettings,
    "salun_soft": SalUnSoftSettings,
    "ft": FineTuneSettings,
    "ga": GradientAscentSettings,
    "l1_sparse": L1SparseSettings,
    "iu": InfluenceSettings,
    "bs": BoundaryShrinkingSettings,
    "be": BoundaryExpandingSettings,
    "l2ul": L2ULSettings,
    "ssd": DampeningSettings,
    "scrub": ScrubSettings,
    "retrain": RetrainSettings,
}
"""By the method's name, in the order of the flags."""
