"""What a search for the strength looks at: pictures of its own, so that the report's stay unseen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from salun_diffusers.diffusion.concepts import Concept, EvaluationPrompt
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.detection import chosen_detector
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.class_names import comparable

_FEWEST, _MOST = 48, 200
COARSE, HALVINGS = (0.0, 0.25, 0.5, 0.75, 1.0), 3
SEARCHED = len(COARSE) + HALVINGS
"""Strengths that a search looks at."""
CURVE = 5
"""Strengths of the curve that a run draws by itself."""


@dataclass(frozen=True)
class Asked:
    """A picture of the search.

    Args:
        prompt: Its words.
        seed: Its noise.
        wanted: Labels that it should show; empty where nothing says so.
    """

    prompt: str
    seed: int
    wanted: frozenset[str] = frozenset()


def check_strength(concept: Concept, config: EraseConfig) -> None:
    """Refuse to measure a strength where nobody looks for the concept.

    Raises:
        UserError: If there is no detector, or no label of it means the concept.
    """
    flag = "--target_forget" if config.target_forget is not None else "--strength_points"
    if config.target_forget is None and not config.strength_points:
        return
    if concept.parts:
        raise UserError(f"{flag} is for one concept, got {len(concept.parts)}: each has a strength of its own.")
    if config.strength_points == 1:
        raise UserError("--strength_points 1 is no curve: 0, or 2 and more, are required; 5 is usual.")
    if chosen_detector(concept, config).name == "none" or not concept.target_labels:
        raise UserError(
            f"{flag} needs a detector that looks for {concept.name!r}, and there is none: name one by --detector, such "
            f'as clip:"{concept.name}".'
        )


def with_curve(settings: Settings, concept: Concept, config: EraseConfig) -> Settings:
    """The settings with the curve that a run draws unless its flags say otherwise, where somebody can see it.

    Args:
        settings: Of the run.
        concept: What is forgotten.
        config: Its flags.
    """
    unseen = chosen_detector(concept, config).name == "none" or not concept.target_labels
    if config.strength_points is not None or settings.searched or concept.parts or unseen:
        return settings
    return replace(settings, strength_points=CURVE)


def strength_in_words(concept: Concept, settings: Settings) -> str:
    """What a run draws for it, for its plan; empty where it draws nothing."""
    if settings.searched:
        forget, retain = searched_pictures(concept, settings)
        return (
            f"the weakest that forgets {settings.target_forget:g} and retains {settings.max_retain_drop:g} less at "
            f"most: {len(forget)} + {len(retain)} pictures at each of at most {SEARCHED} strengths"
        )
    if settings.strength_points:
        middle = max(0, settings.strength_points - 2)
        return f"a curve of {settings.strength_points} points: the report's pictures {middle} times more"
    return ""


def strength_pictures(concept: Concept, settings: Settings) -> int:
    """How many pictures a run draws for it at most, beside the report's."""
    if settings.searched:
        return SEARCHED * sum(map(len, searched_pictures(concept, settings)))
    asked = len(concept.forget_evaluation) + len(concept.retain_evaluation)
    return max(0, settings.strength_points - 2) * asked * settings.num_validation_images


def searched_pictures(concept: Concept, settings: Settings) -> tuple[list[Asked], list[Asked]]:
    """Prompts and seeds of the concept and of the others, none of which the report draws.

    Prompts are those of the training that the report does not ask; where there is none whose label is known, the
    report's own at other seeds. So many that a single picture decides nothing: 1 / (1 - target) and 1 / drop, at least
    48 and at most 200.

    Args:
        concept: Its prompts and labels.
        settings: The need, and the seed.

    Returns:
        Of the concept, and of the others.
    """
    reported = {prompt.prompt for prompt in (*concept.forget_evaluation, *concept.retain_evaluation)}
    forget = [EvaluationPrompt(prompt) for prompt in dict.fromkeys(concept.forget_prompts) if prompt not in reported]
    labels = {prompt.expected for prompt in concept.retain_evaluation}
    named = [(prompt, _named(prompt, labels)) for prompt in dict.fromkeys(concept.retain_prompts)]
    retain = [EvaluationPrompt(prompt, label) for prompt, label in named if label and prompt not in reported]
    return (
        _asked(forget or concept.forget_evaluation, _pictures(1 - settings.target_forget), settings.seed),
        _asked(retain or concept.retain_evaluation, _pictures(settings.max_retain_drop), settings.seed),
    )


def report_seed(seed: int, prompt: str, number: int) -> int:
    """The seed of the n-th picture of a prompt of the report."""
    from salun_diffusers.seeds import stream_seed  # imports torch

    return stream_seed(seed, "validation", prompt, number)


def reported_pictures(concept: Concept, settings: Settings) -> tuple[list[Asked], list[Asked]]:
    """The pictures that the report shows: of the concept, and of the others."""
    forget, retain = (
        [
            Asked(one.prompt, report_seed(settings.seed, one.prompt, number), _wanted(one))
            for one in side
            for number in range(settings.num_validation_images)
        ]
        for side in (concept.forget_evaluation, concept.retain_evaluation)
    )
    return forget, retain


def _wanted(prompt: EvaluationPrompt) -> frozenset[str]:
    return frozenset(label for label in (prompt.expected, prompt.expected_across) if label)


def _named(prompt: str, labels: set[str]) -> str:
    """The one label whose name is in a prompt; empty if there is none or several."""
    words = f" {comparable(prompt)} "
    found = [label for label in labels if label and f" {comparable(label.split(':')[-1])} " in words]
    return found[0] if len(found) == 1 else ""


def _pictures(share: float) -> int:
    return min(max(math.ceil(1 / share - 1e-9) if share > 0 else _MOST, _FEWEST), _MOST)


def _asked(prompts: Sequence[EvaluationPrompt], count: int, seed: int) -> list[Asked]:
    """So many pictures, spread over the prompts from the first to the last."""
    from salun_diffusers.seeds import stream_seed  # imports torch

    counts: dict[str, int] = {}
    found = []
    for row in range(count):
        one = prompts[row * len(prompts) // count] if count < len(prompts) else prompts[row % len(prompts)]
        number = counts[one.prompt] = counts.get(one.prompt, -1) + 1
        found.append(Asked(one.prompt, stream_seed(seed, "strength", one.prompt, number), _wanted(one)))
    return found
