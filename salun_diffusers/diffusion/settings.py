"""The settings of a run as its stages see them: every one has a value, and it was decided once."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from salun_diffusers.arguments import secrets
from salun_diffusers.diffusion.config import (
    SALIENCY_MASKS,
    EraseConfig,
    LearningRateCourse,
    MaskDraws,
    ObjectiveName,
    Recipe,
    Robust,
    SoftRule,
    SoftThreshold,
)
from salun_diffusers.diffusion.source_config import PredictionType
from salun_diffusers.errors import UserError

UNLIMITED = math.inf
OWN_SCHEDULER = "own"
RANK = 4
"""Of a LoRA where none is said, as in diffusers' own scripts."""
LORA_RATE = 10.0
"""Times a preset's learning rate is that of a LoRA: its factors begin at zero and small."""
_RETAIN_DROP = 0.01
_SOFT: dict[str, Any] = {"soft_share": 0.5, "soft_rule": "exact", "mask_temperature": 0.25, "mask_draws": "fixed"}
_HEEDED: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "proximal": ("soft_share", "soft_rule"),
    "probabilistic": ("mask_temperature", "mask_draws"),
    "continuous": ("mask_temperature",),
}
"""Which of their flags each soft threshold heeds."""


@dataclass(frozen=True)
class Length:
    """How long fine-tuning takes.

    Args:
        amount: How many.
        unit: Optimizer steps, or passes over the forget set.
    """

    amount: int
    unit: Literal["steps", "epochs"]

    def steps(self, items: int, items_per_step: int) -> int:
        """Optimizer steps.

        Args:
            items: Latents that a pass goes through.
            items_per_step: Latents that one step takes, over all processes and micro-batches.
        """
        return self.amount if self.unit == "steps" else self.amount * math.ceil(items / items_per_step)

    def __str__(self) -> str:
        return f"{self.amount} steps" if self.unit == "steps" else f"{self.amount} epoch(s)"


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The settings that belong to a model, a concept and a recipe: what a preset gives and any flag replaces.

    Each is what `EraseConfig` says of the flag of its name; a limit that is off is infinite.
    """

    num_forget_images: int
    num_anchor_images: int
    num_retain_images: int
    scheduler: str = OWN_SCHEDULER
    num_inference_steps: int
    guidance_scale: float
    generation_batch_size: int
    saliency_guidance: float
    saliency_batch_size: int
    saliency_max_grad_norm: float = UNLIMITED
    train_batch_size: int
    length: Length
    learning_rate: float
    lr_scheduler: LearningRateCourse
    retain_weight: float
    snr_power: float
    empty_prompt_share: float
    max_grad_norm: float = UNLIMITED
    num_validation_images: int


@dataclass(frozen=True, kw_only=True)
class Settings(Numbers):
    """Every setting that decides what a run computes."""

    prediction_type: PredictionType
    mask: str
    mask_ratio: float
    mask_scope: Literal["global", "per_tensor"]
    concept_masks: Literal["union", "joint"]
    saliency_weighting: Literal["none", "difference"]
    saliency_micro_batch_size: float
    offload_saliency: bool
    train_method: str
    soft_threshold: SoftThreshold
    soft_share: float
    soft_rule: SoftRule
    mask_temperature: float
    mask_draws: MaskDraws
    batch_of: Literal["step", "process"]  # What train_batch_size counts: a preset's is global, the flag's is not.
    resolution: int  # of pictures that are drawn; 0 is the model's own
    adapter: Literal["none", "lora"]
    rank: int  # of the adapter
    lora_alpha: float
    scale_lr: bool
    use_ema: bool
    recipe: Recipe
    objective: ObjectiveName
    robust: Robust
    l1_weight: float
    negative_guidance: float
    lr_warmup_steps: int
    lr_num_cycles: int
    lr_power: float
    lr_step_rules: str
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    use_8bit_adam: bool
    adam_beta1: float
    adam_beta2: float
    adam_weight_decay: float
    adam_epsilon: float
    seed: int
    checkpointing_steps: int
    checkpoints_total_limit: float
    save_dtype: Literal["base", "float32", "float16", "bfloat16"]
    save_patch: bool
    target_forget: float
    max_retain_drop: float
    strength_points: int

    @property
    def scored(self) -> bool:
        """Whether gradients make the mask."""
        return self.mask in SALIENCY_MASKS

    @property
    def searched(self) -> bool:
        """Whether the strength is looked for; else it is 1."""
        return math.isfinite(self.target_forget)

    @property
    def by_probability(self) -> bool:
        """Whether the mask is made of probabilities, not of the largest scores."""
        return self.soft_threshold in ("probabilistic", "continuous")

    @property
    def scales_updates(self) -> bool:
        """Whether every step has weights, or a mask, of its own beside the mask of the run."""
        return self.soft_threshold == "continuous" or (self.by_probability and self.mask_draws == "step")

    @property
    def drawn_size(self) -> dict[str, str]:
        """What fingerprints of drawn latents say of their size; nothing of the model's own."""
        return {"resolution": str(self.resolution)} if self.resolution else {}


def resolve(config: EraseConfig, numbers: Numbers) -> Settings:
    """Decide every setting.

    Args:
        config: The user's flags.
        numbers: What the concept has for those that the user leaves open.

    Raises:
        UserError: If some have no effect together.
    """
    if config.objective in ("ascent", "esd"):
        numbers = dataclasses.replace(numbers, retain_weight=0.0)  # As these were published.
    if config.adapter == "lora":
        numbers = dataclasses.replace(numbers, learning_rate=LORA_RATE * numbers.learning_rate)
    if config.max_train_steps is not None:
        numbers = dataclasses.replace(numbers, length=Length(config.max_train_steps, "steps"))
    elif config.num_train_epochs is not None:
        numbers = dataclasses.replace(numbers, length=Length(config.num_train_epochs, "epochs"))
    given = {field.name: getattr(config, field.name, None) for field in dataclasses.fields(Settings)}
    given["adapter"] = "lora" if config.adapter == "lora" else "none"  # A sparse one is another file of the same run.
    limits = {"checkpoints_total_limit": UNLIMITED, "saliency_micro_batch_size": UNLIMITED, "resolution": 0}
    limits |= {"target_forget": UNLIMITED, "max_retain_drop": _RETAIN_DROP, "strength_points": 0}
    limits |= _SOFT
    rank = RANK if config.rank is None else config.rank
    limits |= {"rank": rank, "lora_alpha": rank}
    chosen = {field.name: getattr(numbers, field.name) for field in dataclasses.fields(Numbers)} | limits
    chosen["batch_of"] = "step" if config.train_batch_size is None else "process"
    settings = Settings(**chosen | {name: value for name, value in given.items() if value is not None})
    _check_course(settings)
    _check_soft(config)
    if settings.saliency_weighting != "none" and not settings.scored:
        raise UserError(
            f"--saliency_weighting {settings.saliency_weighting} weighs the saliency loss, which --mask "
            f"{settings.mask} has none of; it goes with {' and '.join(SALIENCY_MASKS)}."
        )
    if config.scale_lr and config.learning_rate is None:
        raise UserError(
            "--scale_lr multiplies --learning_rate by the global batch, and needs it: the preset's rate "
            f"{numbers.learning_rate:g} is that of its whole batch already."
        )
    return settings


def soft_in_words(settings: Settings) -> str:
    """The soft threshold of a run, for its plan; empty where the mask is hard."""
    if settings.soft_threshold == "proximal":
        return f"proximal, share {settings.soft_share:g} at the start, {settings.soft_rule}"
    draws = ", one draw for each step" if settings.mask_draws == "step" else ", drawn once"
    told = f"{settings.soft_threshold}, temperature {settings.mask_temperature:g}"
    return told + (draws if settings.soft_threshold == "probabilistic" else "") if settings.by_probability else ""


def _check_course(settings: Settings) -> None:
    """Refuse what the course of the learning rate would not heed."""
    course, rules = settings.lr_scheduler, settings.lr_step_rules
    if settings.lr_warmup_steps and course in ("constant", "piecewise_constant"):
        raise UserError(
            f"--lr_scheduler {course} has no warm-up, got --lr_warmup_steps {settings.lr_warmup_steps}; "
            "constant_with_warmup has one."
        )
    if (course == "piecewise_constant") != bool(rules):
        raise UserError(
            f"--lr_step_rules go with --lr_scheduler piecewise_constant, each needs the other; got "
            f"{rules or 'no rules'!r} and {course}."
        )
    factor = r"\d*\.?\d+"
    if rules and not re.fullmatch(rf"({factor}:\d+,)+{factor}", rules):
        raise UserError(f"--lr_step_rules must be such as 1:100,0.1:200,0.01 (factor:last step, …), got {rules!r}.")


def idle_soft_flags(soft_threshold: str) -> tuple[str, ...]:
    """Flags of soft thresholds that have no effect under this one; a record has values of theirs all the same."""
    return tuple(name for name in _SOFT if name not in _HEEDED.get(soft_threshold, ()))


def _check_soft(config: EraseConfig) -> None:
    """Refuse flags of another soft threshold than the one asked for."""
    for name in idle_soft_flags(config.soft_threshold):
        if getattr(config, name) is not None:
            wanted = " or ".join(kind for kind, names in _HEEDED.items() if name in names)
            raise UserError(
                f"--{name} goes with --soft_threshold {wanted}, got --soft_threshold {config.soft_threshold}; it would "
                "have no effect."
            )


def recorded(config: EraseConfig, settings: Settings) -> dict[str, Any]:
    """The flags with the values that the run has, for its records.

    Secrets stay out; a limit that is off is None, as JSON has no ∞.
    """
    values = dataclasses.asdict(settings)
    length = values.pop("length")
    values["resolution"] = config.resolution
    values["adapter"] = config.adapter
    if config.adapter != "lora":
        values["rank"] = values["lora_alpha"] = None
    # What was not heeded has no value, so that a record can be asked for again.
    values |= dict.fromkeys(idle_soft_flags(config.soft_threshold))
    values["num_train_epochs"] = length["amount"] if length["unit"] == "epochs" else None
    values["max_train_steps"] = length["amount"] if length["unit"] == "steps" else None
    given = {name: value for name, value in dataclasses.asdict(config).items() if name not in secrets(config)}
    return given | {name: None if value == UNLIMITED else value for name, value in values.items()}
