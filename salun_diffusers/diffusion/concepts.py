"""What to forget: prompts, their replacements, what must stay, and the numbers that go with them."""

from __future__ import annotations

from dataclasses import dataclass

from salun_diffusers.diffusion.settings import Numbers
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
        numbers: Settings that the user leaves open.
        target_labels: Detector labels that mean "the concept is in the picture".
        detector: ``demo``, ``nudenet`` or ``none``.
        explicit: Whether previews are blurred.
        numbers_of: What the numbers were made for, where that depends on the model.
        neighbours: What lies beside the concept, one prompt each, the nearest first: what is lost first.
        told: What a plan says of how anchor and neighbours were found: a word, and a line.
        parts: Of a join, the concepts that it is made of; see `joined`.
        earlier: What the base lost in runs before this one, and shall not get back.
        kind: What kind of thing it is, as of ``--kind``.

    Raises:
        UserError: If a list of prompts is empty, the lists do not pair up, or a prompt is its own anchor or retained.
    """

    name: str
    forget_prompts: tuple[str, ...]
    anchor_prompts: tuple[str, ...]
    retain_prompts: tuple[str, ...]
    forget_evaluation: tuple[EvaluationPrompt, ...]
    retain_evaluation: tuple[EvaluationPrompt, ...]
    numbers: Numbers
    target_labels: frozenset[str] = frozenset()
    detector: str = "none"
    explicit: bool = False
    numbers_of: str = ""
    neighbours: tuple[EvaluationPrompt, ...] = ()
    told: tuple[tuple[str, str], ...] = ()
    parts: tuple[Concept, ...] = ()
    earlier: tuple[Concept, ...] = ()
    kind: str = "object"

    def __post_init__(self) -> None:
        for words, prompts in (
            ("forget", self.forget_prompts),
            ("anchor", self.anchor_prompts),
            ("retain", self.retain_prompts),
        ):
            if not prompts:
                flag = f"--{words}_prompt{'s FILE' if words == 'retain' else ''}"
                raise UserError(f"The concept {self.name!r} needs at least one {words} prompt; give {flag}.")
        if len(self.forget_prompts) != len(self.anchor_prompts):
            raise UserError(
                f"Each forget prompt needs its anchor: got {len(self.forget_prompts)} forget and "
                f"{len(self.anchor_prompts)} anchor prompts; give one --anchor_prompt for all, or one for each."
            )
        for prompt, anchor in zip(self.forget_prompts, self.anchor_prompts, strict=True):
            if same_words(prompt) == same_words(anchor):
                raise UserError(
                    f"The anchor prompt must differ from the forget prompt, both are {prompt!r}; "
                    "an anchor says what the words shall mean instead."
                )
            if not prompt.strip():
                raise UserError("A forget prompt is empty; write the words that must lose the concept.")
        forgotten = {same_words(prompt): prompt for prompt in self.forget_prompts}
        for prompt in self.retain_prompts:
            if same_words(prompt) in forgotten:
                raise UserError(f"{prompt!r} is to be forgotten and to be retained; take it out of one of the lists.")

    @property
    def groups(self) -> int:
        """How many concepts its prompts belong to: prompt i to forget, and its anchor, are those of part i mod groups.

        So is what is drawn by going round them, and no list has to say whose a latent is.
        """
        return max(1, len(self.parts))

    @property
    def looked_for(self) -> tuple[Concept, ...]:
        """The concepts that a report looks for, each by its own detector: its own, then those lost earlier."""
        return (*(self.parts or (self,)), *self.earlier)

    def sets(self, numbers: Numbers) -> tuple[tuple[str, tuple[str, ...], int], ...]:
        """Name, prompts and number of latents of the three sets that fine-tuning draws from."""
        return (
            ("forget", self.forget_prompts, numbers.num_forget_images),
            ("anchor", self.anchor_prompts, numbers.num_anchor_images),
            ("retain", self.retain_prompts, numbers.num_retain_images),
        )


def same_words(prompt: str) -> str:
    """A prompt without capitals and superfluous spaces: equal of two that say the same."""
    return " ".join(prompt.lower().split())
