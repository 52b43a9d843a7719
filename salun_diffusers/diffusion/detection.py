"""How a concept is looked for: as its preset says, or as the flags do."""

from __future__ import annotations

from dataclasses import replace

from salun_diffusers.diffusion.concepts import Concept, EvaluationPrompt
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.class_names import find_label, nearest
from salun_diffusers.evaluation.detector_choice import (
    FACE,
    DetectorChoice,
    cached_clip,
    find_detector,
    require_clip,
    several,
)
from salun_diffusers.evaluation.protocols import PROTOCOLS


def check_detector(config: EraseConfig) -> None:
    """Refuse a detector that is not there, whatever the concept.

    Raises:
        UserError: If there is none of that name, it cannot be had, or flags do not go together.
    """
    if config.clip is not None:
        require_clip(config.clip)
    if config.detector_labels and config.detector in ("preset", "none"):
        raise UserError(
            "--detector_labels says which labels of a classifier mean the concept; name the classifier by --detector, "
            f"got --detector {config.detector}."
        )
    if config.detector_labels and config.detector.startswith("clip:"):
        raise UserError('--detector_labels is for classifiers; CLIP finds the words of --detector clip:"words".')
    if config.detector != "preset":
        find_detector(config.detector, config.clip)


def with_detector(concept: Concept, config: EraseConfig) -> Concept:
    """The concept as the flags want it looked for; labels that their detector does not know are dropped.

    Prompts that are a label of a classifier, such as the classes of a class-conditional model, are expected to show it.

    Raises:
        UserError: If a label is none of the detector's, or none of them is the concept.
    """
    if concept.parts:
        if config.detector.startswith("clip:"):
            raise UserError(
                f"--detector {config.detector} describes one concept, got {len(concept.parts)}; take a classifier that "
                "knows all, or each concept's own (preset)."
            )
        return replace(concept, parts=tuple(with_detector(part, config) for part in concept.parts))
    if config.detector in ("preset", "none"):
        if config.detector == "preset":
            find_detector(concept.detector)
        return concept
    choice = find_detector(config.detector, config.clip)
    if choice.name == "clip":
        known, wanted = choice.labels, choice.labels
    elif choice.name == "nudenet":
        known = (*PROTOCOLS["core"].classes, FACE)
        wanted = _chosen(config.detector_labels, PROTOCOLS["core"].classes) or PROTOCOLS["core"].classes
    else:
        known = choice.labels
        wanted = _chosen(config.detector_labels, known) or _of_the_concept(concept, known)

    def judged(prompt: EvaluationPrompt) -> EvaluationPrompt:
        right, across = (label if label in known else "" for label in (prompt.expected, prompt.expected_across))
        if (
            not right and choice.labels and choice.name != "clip"
        ):  # A prompt that is a class's name asks for that class.
            place = find_label(prompt.prompt, known)
            right = "" if place is None else known[place]
        return replace(prompt, expected=right, expected_across=across)

    return replace(
        concept,
        detector=config.detector,
        target_labels=frozenset(wanted),
        retain_evaluation=tuple(map(judged, concept.retain_evaluation)),
    )


def chosen_detector(concept: Concept, config: EraseConfig) -> DetectorChoice:
    """The detector of a run.

    Retained prompts without a label are judged by CLIP's similarity to the base's pictures, if --clip names one, the
    detector is CLIP, or the default one is in the hub's cache; else by their drift alone.

    Args:
        concept: As `with_detector` returned it.
        config: The flags.

    Raises:
        UserError: If it cannot be had.
    """
    if len(concept.looked_for) > 1:
        # Concepts lost earlier have detectors of their own, whatever this run's is.
        own = tuple(chosen_detector(part, config) for part in concept.parts or (replace(concept, earlier=()),))
        return several([*own, *(find_detector(one.detector, config.clip) for one in concept.earlier)])
    choice = find_detector("none" if config.detector == "none" else concept.detector, config.clip)
    if choice.name == "clip":
        instead = tuple(anchor or "a picture" for anchor in dict.fromkeys(concept.anchor_prompts))
        choice = replace(choice, labels=(*choice.labels, *(words for words in instead if words not in choice.labels)))
    if choice.name == "none" or all(prompt.expected for prompt in concept.retain_evaluation):
        return choice
    return replace(choice, clip=config.clip or (choice.weights if choice.name == "clip" else cached_clip()))


def check_red_team(concept: Concept, config: EraseConfig) -> None:
    """Refuse an attack whose success nobody could see.

    Raises:
        UserError: If there are several concepts, or no detector looks for the one.
    """
    if config.red_team == "none":
        return
    if concept.parts:
        raise UserError(
            f"--red_team {config.red_team} is for one concept, got {len(concept.parts)}; `salun attack` takes each by "
            "its name afterwards."
        )
    if chosen_detector(concept, config).name == "none" or not concept.target_labels:
        raise UserError(
            f"--red_team {config.red_team} needs a detector that looks for {concept.name!r}, or no attack could be "
            f'seen to succeed: name one by --detector, such as clip:"{concept.name}".'
        )


def _chosen(labels: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """Labels as the detector writes them."""
    found = []
    for label in labels:
        place = find_label(label, known)
        if place is None:
            raise UserError(
                f"--detector_labels must be labels of the detector; {label!r} is none of its {len(known)}, the nearest "
                f"is {nearest(label, known)!r}."
            )
        found.append(known[place])
    return tuple(found)


def _of_the_concept(concept: Concept, known: tuple[str, ...]) -> tuple[str, ...]:
    """The label of the concept's name."""
    place = find_label(concept.name, known)
    if place is None:
        raise UserError(
            f"No label of the detector is {concept.name!r} (the nearest of {len(known)} is "
            f"{nearest(concept.name, known)!r}): say by --detector_labels which of them mean it."
        )
    return (known[place],)
