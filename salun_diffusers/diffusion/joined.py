"""Several concepts as one: groups of prompts side by side, so that everything else sees one concept."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from salun_diffusers.diffusion.concept_rows import ConceptRow, asked_concepts
from salun_diffusers.diffusion.concepts import Concept, EvaluationPrompt, same_words
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.presets.everyday import content_words, same_word
from salun_diffusers.diffusion.settings import Length, Numbers
from salun_diffusers.errors import UserError

T = TypeVar("T")


def concept_of(config: EraseConfig, find: Callable[[EraseConfig], Concept]) -> Concept:
    """The concept that a configuration asks for; of several their join.

    Args:
        config: The flags.
        find: Finds one concept by the same flags.

    Raises:
        UserError: As `find`, `asked_concepts` and `joined` do.
    """
    rows = asked_concepts(config)
    made = tuple(_of_row(row, config, find) for row in rows)
    return made[0] if len(made) == 1 else joined(made)


def _of_row(row: ConceptRow, config: EraseConfig, find: Callable[[EraseConfig], Concept]) -> Concept:
    """The concept of one row; in the anchors of a preset the user's stands where the name of the concept was."""
    asked = replace(config, concept=row.name, concepts=None, kind=row.kind or config.kind)
    if not row.anchor:
        return find(asked)
    if same_words(row.anchor) == same_words(row.name):
        raise UserError(f"The anchor of {row.name!r} must differ from it; an anchor says what it shall mean instead.")
    made = find(asked)
    if made.forget_prompts == (made.name,):  # A class, whose name is all its words; the model knows its anchor or not.
        return find(replace(asked, anchor_prompt=(row.anchor,)))
    return replace(made, anchor_prompts=_instead(made, row.anchor))


def _instead(concept: Concept, anchor: str) -> tuple[str, ...]:
    """The forget prompts with an anchor where the concept is named; the anchor alone where it is not."""
    named = re.compile(rf"\b{re.escape(concept.name)}\b", re.IGNORECASE)
    found = []
    for prompt in concept.forget_prompts:
        text = named.sub(lambda _: anchor, prompt) if named.search(prompt) else anchor
        # "a photo of an arrow" becomes one of a heart, not of "an heart".
        article = "an" if anchor[:1].lower() in set("aeiou") else "a"
        found.append(re.sub(rf"\ban? (?={re.escape(anchor)})", f"{article} ", text))
    return tuple(found)


@dataclass(frozen=True)
class _Marks:
    """How a concept is recognized in other prompts."""

    concept: Concept

    @cached_property
    def prompts(self) -> frozenset[str]:
        return frozenset(map(same_words, self.concept.forget_prompts))

    @cached_property
    def words(self) -> frozenset[str]:
        """Words of its name and its prompts that none of its anchors and of what it keeps has."""
        concept = self.concept
        said = content_words(" ".join((concept.name, *concept.forget_prompts)))
        return frozenset(said - content_words(" ".join((*concept.anchor_prompts, *concept.retain_prompts))))

    @cached_property
    def name(self) -> frozenset[str]:
        return frozenset(content_words(self.concept.name))

    def touches(self, prompt: str) -> bool:
        """Whether a prompt is one of the concept's, or has a word that is only the concept's."""
        return same_words(prompt) in self.prompts or any(_is_in(word, prompt) for word in self.words)

    def names(self, prompt: str) -> bool:
        """Whether a prompt is one of the concept's, or has all words of its name."""
        return same_words(prompt) in self.prompts or (
            bool(self.name) and all(_is_in(word, prompt) for word in self.name)
        )


def _is_in(word: str, prompt: str) -> bool:
    return any(word == other or same_word(word, other) for other in content_words(prompt))


def joined(parts: Sequence[Concept]) -> Concept:
    """Several concepts as one; what two of them say against each other is settled, or refused.

    Prompts to forget, their anchors and what stays go round the concepts: row i is of concept i mod k, and a concept
    with fewer prompts goes round its own. A pair whose anchor names another concept is left out, as is whatever stays
    and touches one: `a striped star` stays for neither star nor striped. `Numbers` grow with the concepts, see
    `joined_numbers`.

    Args:
        parts: Two or more.

    Raises:
        UserError: If two have the same prompts, all that one shall become is another, or nothing is left to stay.
    """
    marks = [_Marks(part) for part in parts]
    for number, (part, mark) in enumerate(zip(parts, marks, strict=True)):
        for other in marks[:number]:
            if other.prompts == mark.prompts or same_words(other.concept.name) == same_words(part.name):
                raise UserError(
                    f"The concepts must differ, {other.concept.name!r} and {part.name!r} have the same prompts; leave "
                    "one out."
                )
    settled = tuple(_settled(part, [mark for mark in marks if mark.concept is not part]) for part in parts)
    settled = _asked_once(settled)
    pairs = _in_turn([list(zip(part.forget_prompts, part.anchor_prompts, strict=True)) for part in settled])
    return Concept(
        name=" + ".join(part.name for part in parts),
        forget_prompts=tuple(forget for forget, _ in pairs),
        anchor_prompts=tuple(anchor for _, anchor in pairs),
        retain_prompts=tuple(_in_turn([part.retain_prompts for part in settled if part.retain_prompts])),
        forget_evaluation=tuple(prompt for part in settled for prompt in part.forget_evaluation),
        retain_evaluation=tuple(prompt for part in settled for prompt in part.retain_evaluation),
        numbers=joined_numbers([part.numbers for part in parts]),
        target_labels=frozenset().union(*(part.target_labels for part in parts)),
        detector="several",
        explicit=any(part.explicit for part in parts),
        numbers_of=next((part.numbers_of for part in parts if part.numbers_of), ""),
        parts=settled,
    )


def _in_turn(lists: Sequence[Sequence[T]]) -> list[T]:
    return [one[row % len(one)] for row in range(max(map(len, lists), default=0)) for one in lists]


def _asked_once(parts: Sequence[Concept]) -> tuple[Concept, ...]:
    """The same concepts, each asking only what none before it asks of what stays: no picture counts twice."""
    seen: set[str] = set()
    found = []
    for part in parts:
        new = {prompt.prompt: prompt for prompt in part.retain_evaluation if prompt.prompt not in seen}
        seen |= new.keys()
        found.append(replace(part, retain_evaluation=tuple(new.values())))
    return tuple(found)


def _settled(part: Concept, others: Sequence[_Marks]) -> Concept:
    """A concept without what is another's."""
    pairs = [*zip(part.forget_prompts, part.anchor_prompts, strict=True)]
    kept = [pair for pair in pairs if not any(other.touches(pair[1]) for other in others)]
    kept = kept or [pair for pair in pairs if not any(other.names(pair[1]) for other in others)]
    if not kept:
        other = next(other for other in others if other.names(part.anchor_prompts[0]))
        raise UserError(
            f"{part.name!r} would become {part.anchor_prompts[0]!r}, which {other.concept.name!r} asks to forget; name "
            "another anchor in the table of --concepts, or erase one after the other."
        )
    targets = frozenset().union(*(other.concept.target_labels for other in others))

    def still_right(prompt: EvaluationPrompt) -> EvaluationPrompt:
        return replace(prompt, expected_across="") if prompt.expected_across in targets else prompt

    staying = [
        still_right(prompt)
        for prompt in part.retain_evaluation
        if prompt.expected not in targets and not any(other.touches(prompt.prompt) for other in others)
    ]
    retain = tuple(prompt for prompt in part.retain_prompts if not any(other.touches(prompt) for other in others))
    if not retain:
        raise UserError(
            f"All that {part.name!r} would keep is what other concepts ask to forget; erase fewer at once, or give "
            "--retain_prompts."
        )
    return replace(
        part,
        forget_prompts=tuple(forget for forget, _ in kept),
        anchor_prompts=tuple(anchor for _, anchor in kept),
        retain_prompts=retain,
        retain_evaluation=tuple(staying),
    )


def joined_numbers(numbers: Sequence[Numbers]) -> Numbers:
    """Numbers of several concepts: each has what it has alone, in latents, in rows of batches and in learning rates.

    With n_i steps of B_i latents and the rate λ_i for concept i alone, the batch is B, the largest of B_i, rounded down
    to a multiple of the concepts, and

        steps n = ⌈Σ n_i B_i / B⌉,    rate λ = Σ n_i λ_i / n.

    Sets are as large as all of theirs. The rest is the first concept's; of pictures for the report it is the most.
    """
    k, first = len(numbers), numbers[0]
    batch = max(one.train_batch_size for one in numbers)
    batch = batch // k * k or batch
    alone = [one.length.steps(one.num_forget_images + one.num_anchor_images, one.train_batch_size) for one in numbers]
    steps = -(-sum(n * one.train_batch_size for n, one in zip(alone, numbers, strict=True)) // batch)
    rates = sum(n * one.learning_rate for n, one in zip(alone, numbers, strict=True))
    return replace(
        first,
        num_forget_images=sum(one.num_forget_images for one in numbers),
        num_anchor_images=sum(one.num_anchor_images for one in numbers),
        num_retain_images=sum(one.num_retain_images for one in numbers),
        train_batch_size=batch,
        length=Length(steps, "steps"),
        learning_rate=rates / steps,
        num_validation_images=max(one.num_validation_images for one in numbers),
    )
