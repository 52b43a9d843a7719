"""What `--robust` asks for: who is simulated in each step of training, how hard, and what it cannot go with."""

from __future__ import annotations

from dataclasses import dataclass

from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.errors import UserError

SWAP = ("relabel", "frozen_teacher")
"""Objective and recipe whose forget target the base gives for the anchor."""


@dataclass(frozen=True)
class Robustness:
    """The attackers of a step.

    Args:
        condition_steps: K of `attacked`; 0 is none.
        condition_budget: b of `attacked`: how far the states of a prompt are moved, in their own deviations.
        weight_steps: Sign steps of who trains the concept back, one in each step of the training; then another begins.
            0 is nobody.
        weight_rate: How far each of them moves a weight.
        weight_share: How much the forget loss counts at the weights that they lead to.
        overshoot: η of `PromptSwap`: how far past the anchor the concept is sent, so that the way back is longer.
    """

    condition_steps: int = 0
    condition_budget: float = 0.25
    weight_steps: int = 0
    weight_rate: float = 0.0
    weight_share: float = 1.0
    overshoot: float = 0.0

    @classmethod
    def of(cls, settings: Settings) -> Robustness:
        """What the settings ask for. Who trains back does so with steps of a multiple of the run's own rate."""
        by_words, by_weights = (settings.robust in (one, "both") for one in ("embedding", "relearning"))
        # Of the present network as teacher there is no far side. Where there is one, who trains back beside it gained
        # little and cost what must stay (docs/red_team.md).
        beyond = by_weights and (settings.objective, settings.recipe) == SWAP
        trained_back = by_weights and not beyond
        return cls(
            condition_steps=3 if by_words else 0,
            weight_steps=20 if trained_back else 0,
            weight_rate=2 * settings.learning_rate if trained_back else 0.0,
            overshoot=1.0 if beyond else 0.0,
        )

    @property
    def rows(self) -> int:
        """Per forget latent of a batch, rows that are taken forward and backward beside the plain ones."""
        found = self.condition_steps + 1 if self.condition_steps else 0
        return found + (2 if self.weight_steps else 0)

    def __str__(self) -> str:
        words = f"attacked prompts, {self.condition_steps} steps within {self.condition_budget:g} deviations"
        weights = f"up to {self.weight_steps} steps of {self.weight_rate:g} of training back"
        beyond = f"targets {self.overshoot:g} times past the anchor"
        parts = ((words, self.condition_steps), (weights, self.weight_steps), (beyond, self.overshoot))
        return ", ".join(told for told, amount in parts if amount)


def robust_in_words(settings: Settings) -> str:
    """What a run is made to stand against and what that costs, for its plan; empty where it is nothing."""
    wanted = Robustness.of(settings)
    if not str(wanted):
        return ""
    return f"{wanted}; fine-tuning takes {(2 + wanted.rows) / 2:g} times the passes"


def check_robust(config: EraseConfig) -> None:
    """Refuse flags that contradict each other.

    Raises:
        UserError: Naming them.
    """
    if config.robust == "none":
        return
    objective = config.objective
    if objective in ("finetune", "l1_sparse") or (objective != "relabel" and not config.retain_weight):
        raise UserError(
            f"--robust {config.robust} weighs forgetting against retaining, and --objective {objective} does one of "
            "them only; take relabel, or ascent or esd with a --retain_weight above 0."
        )
    if config.adapter == "lora":
        raise UserError(
            f"--robust {config.robust} hardens the weights themselves, and --adapter {config.adapter} leaves them as "
            "they are: whoever takes it off has the concept back. Leave one of the two out."
        )
    if config.soft_threshold != "none":
        raise UserError(
            f"--robust {config.robust} steps back and forth between weights, and --soft_threshold "
            f"{config.soft_threshold} counts each step; leave one of the two out."
        )


def check_robust_classes(config: EraseConfig, base: object) -> None:
    """Refuse attacks on prompts where there are none.

    Args:
        config: The user's flags.
        base: A class-conditional model.

    Raises:
        UserError: If they are asked for.
    """
    if config.robust in ("embedding", "both"):
        raise UserError(
            f"--robust {config.robust} attacks what a text encoder says, and {base} is told class labels; use "
            "--robust relearning."
        )
