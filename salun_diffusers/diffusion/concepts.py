"""What to forget: prompts, their replacements, what must stay, and the settings that go with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.errors import UserError

DEMO = "demo"


@dataclass(frozen=True)
class EvaluationPrompt:
    """A prompt of the report.

    Args:
        prompt: The words.
        expected: Label that the detector should find for a retained prompt; empty where it has no such label.
        trained_on: Whether fine-tuning sees this prompt.
        expected_across: Label of another kind that belongs to the same picture, such as ``shape:star`` where styles are
            forgotten; empty where there is none.
    """

    prompt: str
    expected: str = ""
    trained_on: bool = True
    expected_across: str = ""


@dataclass(frozen=True)
class Concept:
    """A concept, complete: what to forget, what it becomes, what stays, and how to see whether it is gone.

    Args:
        name: Short name, used for the run folder.
        forget_prompts: Prompts that must lose the concept.
        anchor_prompts: What each of them shall mean afterwards, in the same order.
        retain_prompts: Prompts whose pictures must not change.
        forget_evaluation: Prompts of the report that ask for the concept.
        retain_evaluation: Prompts of the report that ask for something else.
        target_labels: Detector labels that mean "the concept is in the picture".
        detector: ``demo``, ``nudenet`` or ``none``.
        explicit: Whether previews are blurred.
        settings: Values for settings that the user leaves open.

    Raises:
        UserError: If a list of prompts is empty, the lists do not pair up, or a prompt is its own anchor.
    """

    name: str
    forget_prompts: tuple[str, ...]
    anchor_prompts: tuple[str, ...]
    retain_prompts: tuple[str, ...]
    forget_evaluation: tuple[EvaluationPrompt, ...]
    retain_evaluation: tuple[EvaluationPrompt, ...]
    target_labels: frozenset[str] = frozenset()
    detector: str = "none"
    explicit: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for words, prompts in (
            ("forget", self.forget_prompts),
            ("anchor", self.anchor_prompts),
            ("retain", self.retain_prompts),
        ):
            if not prompts:
                raise UserError(f"The concept {self.name!r} needs at least one {words} prompt; give --{words}_prompt"
                                f"{'s FILE' if words == 'retain' else ''}.")  # fmt: skip
        if len(self.forget_prompts) != len(self.anchor_prompts):
            raise UserError(
                f"Each forget prompt needs its anchor: got {len(self.forget_prompts)} forget and "
                f"{len(self.anchor_prompts)} anchor prompts; give one --anchor_prompt for all, or one for each."
            )
        for prompt, anchor in zip(self.forget_prompts, self.anchor_prompts, strict=True):
            if _plain(prompt) == _plain(anchor):
                raise UserError(
                    f"The anchor prompt must differ from the forget prompt, both are {prompt!r}; "
                    "an anchor says what the words shall mean instead."
                )
            if not prompt.strip():
                raise UserError("A forget prompt is empty; write the words that must lose the concept.")


def _plain(prompt: str) -> str:
    return " ".join(prompt.lower().split())


# The official script's values (Unlearn-Saliency@a6e89fd, SD/train-scripts/nsfw_removal.py and SD/README.md).
_PAPER_SETTINGS: dict[str, Any] = {
    "num_forget_images": 800, "num_anchor_images": 0, "num_retain_images": 800, "num_inference_steps": 50,
    "guidance_scale": 7.5, "generation_batch_size": 8,
    "saliency_guidance": 7.5, "saliency_batch_size": 8, "train_batch_size": 8, "num_train_epochs": 1,
    "learning_rate": 1e-5, "retain_weight": 0.1, "lr_scheduler": "constant", "empty_prompt_share": 0.0,
    "snr_power": 0.0,
    "num_validation_images": 4,
}  # fmt: skip


def resolve(config: EraseConfig, concept: Concept) -> EraseConfig:
    """Fill every setting that the user left open: first from the concept's preset, then from the paper."""
    values = _PAPER_SETTINGS | dict(concept.settings)
    if config.recipe == "frozen_teacher" and "lr_scheduler" not in concept.settings:
        values |= {"lr_scheduler": "cosine", "empty_prompt_share": 0.2}
    if config.objective in ("ascent", "esd"):
        values["retain_weight"] = 0.0  # As these were published.
    if config.num_train_epochs is not None or config.max_train_steps is not None:
        values.pop("max_train_steps", None)
    open_settings = {name: value for name, value in values.items() if getattr(config, name) is None}
    return replace(config, **open_settings)
