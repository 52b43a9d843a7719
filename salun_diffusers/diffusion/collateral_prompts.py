"""What a collateral report draws: neighbours, prompts that bind words to things, and everyday captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from salun_diffusers.demo.vocabulary import COLOURS, SHAPES, STYLE_PHRASES, describe
from salun_diffusers.diffusion.concepts import DEMO, Concept, EvaluationPrompt
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.presets.everyday import everyday
from salun_diffusers.seeds import stream_seed

NEIGHBOUR, EVERYDAY = "neighbours", "everyday captions"
_NEIGHBOURS, _BESIDE = 20, 120  # at most; pictures of all of them together
_CAPTIONS, _PICTURES = 40, 120
_NUMBERS = ("one", "two", "three", "four")
_COUNTED = (
    "dogs",
    "cups",
    "birds",
    "chairs",
    "apples",
    "books",
    "cars",
    "balloons",
    "boats",
    "candles",
    "hats",
    "fish",
)
_COLOURED = ("car", "bicycle", "cup", "bench", "umbrella", "suitcase", "vase", "dress", "door", "chair", "boat", "hat")
_EVERYDAY_COLOURS = ("red", "yellow", "green", "blue", "black", "white")
_PLACED = (
    ("a cup", "a book"), ("a dog", "a bench"), ("a bird", "a chair"), ("a ball", "a car"), ("a vase", "a clock"),
    ("a cat", "a suitcase"), ("an apple", "a bottle"), ("a lamp", "a sofa"), ("a bicycle", "a tree"),
    ("a hat", "a table"), ("a boat", "a house"), ("a spoon", "a plate"),
)  # fmt: skip
_PLACES = ("to the left of", "to the right of", "above", "below")


@dataclass(frozen=True)
class Collateral:
    """A picture of the collateral report.

    Args:
        prompt: Its words.
        group: What it is drawn for.
        number: Which picture of its prompt.
        wanted: Labels that it should show, all of them; empty where a detector knows none.
        others: Sentences that CLIP should find less like it than its prompt.
    """

    prompt: str
    group: str
    number: int = 0
    wanted: frozenset[str] = frozenset()
    others: tuple[str, ...] = ()

    def seed(self, of_run: int, stream: str = "collateral") -> int:
        """The seed of its noise; the report's own pictures have others."""
        return stream_seed(of_run, stream, self.prompt, self.number)


def collateral_pictures(concept: Concept, *, clip: bool) -> list[Collateral]:
    """What is drawn, group by group: neighbours, three kinds of bound words, everyday captions.

    The demo model draws one shape in the middle: of GenEval's kinds (arXiv 2310.11513) it has colours, and instead of
    numbers and places backgrounds and styles; its detector knows them all. For other models CLIP tells numbers, colours
    and places apart, if there is one: by the nearest of a few sentences, so that only the change says something.

    Args:
        concept: What is erased; no prompt names it.
        clip: Whether there is a CLIP.
    """
    neighbours = neighbours_of(concept)[:_NEIGHBOURS]
    found = _drawn(neighbours, NEIGHBOUR, _BESIDE // len(neighbours))
    if concept.detector == DEMO:
        found += _demo_words(concept)
    elif clip:
        found += _words(concept)
    captions = _captions(concept)
    rounds = -(-_PICTURES // len(captions)) if captions else 0
    return found + _drawn([EvaluationPrompt(prompt) for prompt in captions], EVERYDAY, rounds)


def collateral_count(concept: Concept, config: EraseConfig) -> int:
    """How many pictures a run draws for it: before and after, and the everyday captions before once more.

    Args:
        concept: What is erased.
        config: Whether it is wanted, and with which CLIP.
    """
    if not config.collateral:
        return 0
    asked = collateral_pictures(concept, clip=bool(config.clip))
    return 2 * len(asked) + sum(one.group == EVERYDAY for one in asked)


def neighbours_of(concept: Concept) -> tuple[EvaluationPrompt, ...]:
    """What lies beside a concept, one prompt each; the report's retained prompts where its preset names none."""
    named: tuple[EvaluationPrompt, ...] = concept.neighbours
    return named if named else concept.retain_evaluation


def _drawn(prompts: Sequence[EvaluationPrompt], group: str, each: int) -> list[Collateral]:
    return [
        Collateral(one.prompt, group, number, frozenset({one.expected, one.expected_across} - {""}))
        for one in prompts
        for number in range(each)
    ]


def _captions(concept: Concept) -> list[str]:
    """Captions that no training sees; of the demo's world what it is trained to retain."""
    if concept.detector == DEMO:
        known = list(dict.fromkeys(concept.retain_prompts))
        return known[:: max(1, len(known) // _CAPTIONS)][:_CAPTIONS]
    return list(everyday(concept.name, concept.forget_prompts, concept.anchor_prompts)[1][:_CAPTIONS])


def _demo_words(concept: Concept) -> list[Collateral]:
    """Colours, backgrounds and styles of the shapes that stay: what is erased is in no prompt."""
    gone = {label.split(":")[1] for label in concept.target_labels if ":" in label}
    shapes = [name for name in SHAPES if name not in gone]
    colours = [name for name in COLOURS if name not in gone]
    styles = [name for name in STYLE_PHRASES if name not in gone]
    found = []
    for row in range(3 * len(shapes)):
        shape, colour, style = shapes[row % len(shapes)], colours[row % len(colours)], styles[row % len(styles)]
        ground = colours[(row + 1 + row // len(colours)) % len(colours)]
        ground = ground if ground != colour else colours[(colours.index(ground) + 1) % len(colours)]
        thing, number = f"shape:{shape}", row // len(shapes)
        for group, prompt, label in (
            ("colours", describe(shape, colour), f"colour:{colour}"),
            ("backgrounds", describe(shape, None, ground), f"background:{ground}"),
            ("styles", describe(shape, colour, opening=STYLE_PHRASES[style][0]), f"style:{style}"),
        ):
            found.append(Collateral(prompt, group, number, frozenset({thing, label})))
    return sorted(found, key=lambda one: ("colours", "backgrounds", "styles").index(one.group))


def _words(concept: Concept) -> list[Collateral]:
    """Numbers, colours and places, each with the sentences that it must not be taken for."""
    numbers = [
        (f"a photo of {_NUMBERS[1 + row % 3]} {thing}", [f"a photo of {word} {thing}" for word in _NUMBERS[1:]])
        for row, thing in enumerate(_COUNTED)
    ]
    colours = [
        (f"a photo of a {_EVERYDAY_COLOURS[row % 6]} {thing}", [f"a photo of a {c} {thing}" for c in _EVERYDAY_COLOURS])
        for row, thing in enumerate(_COLOURED)
    ]
    places = [
        (f"a photo of {one} {_PLACES[row % 4]} {other}", [f"a photo of {one} {place} {other}" for place in _PLACES])
        for row, (one, other) in enumerate(_PLACED)
    ]
    words = {word for prompt in concept.forget_prompts for word in prompt.lower().split()} - {
        word for prompt in concept.anchor_prompts for word in prompt.lower().split()
    }
    return [
        Collateral(prompt, group, number, others=tuple(other for other in others if other != prompt))
        for group, rows in (("counting", numbers), ("colours", colours), ("positions", places))
        for prompt, others in rows
        if not words & set(prompt.split())
        for number in range(2)
    ]
