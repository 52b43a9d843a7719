"""Sets of the user's own pictures: which there are, how many latents are drawn beside them, and what they show."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.config import EraseConfig
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.errors import UserError
from salun_diffusers.evaluation.explicit_prompts import explicit_words
from salun_diffusers.files.run_folder import fingerprint
from salun_diffusers.pictures.captions import class_caption
from salun_diffusers.pictures.own_pictures import OwnPicture

_MOST_CAPTIONS = 10_000  # Each of them is encoded, and kept on the device.


@dataclass(frozen=True)
class OwnSet:
    """A set with pictures of the user's.

    Args:
        pictures: They, in a fixed order, each with its caption.
        drawn: How many latents are generated beside them.
        found: How many pictures there were to choose from.
        damaged: How many could not be read.
        prompts: What the generated latents are drawn for.
    """

    pictures: tuple[OwnPicture, ...]
    drawn: int
    found: int
    damaged: int = 0
    prompts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures) + self.drawn

    @property
    def sha256(self) -> str:
        """Of what the pictures are and show, in their order."""
        return fingerprint(pictures=[(picture.sha256, picture.caption) for picture in self.pictures])


@dataclass(frozen=True)
class OwnSets:
    """The sets with pictures of the user's, ``forget`` and ``retain``; a set that is not among them is generated.

    Args:
        sets: By name.
        center_crop: Whether the centre of a picture is taken.
        random_flip: Whether mirrored pictures belong to a set.
    """

    sets: Mapping[str, OwnSet] = field(default_factory=dict)
    center_crop: bool = False
    random_flip: bool = False

    def __bool__(self) -> bool:
        return bool(self.sets)

    def pictures_of(self, name: str) -> int:
        """How many pictures a set has of the user's."""
        return len(self.sets[name].pictures) if name in self.sets else 0

    @property
    def count(self) -> int:
        """How many pictures there are in all, which nobody draws."""
        return sum(len(one.pictures) for one in self.sets.values())

    @property
    def marks(self) -> dict[str, str]:
        """What decides each set, by name, beside settings and seed."""
        how = {"center_crop": self.center_crop, "random_flip": self.random_flip}
        return {
            name: fingerprint(pictures=one.sha256, drawn=one.drawn, prompts=one.prompts, **how)
            for name, one in self.sets.items()
        }

    def recorded(self) -> dict[str, Any]:
        """What records and reports say of them: numbers and hashes, nothing of the pictures."""
        told = {
            name: {
                "pictures": len(one.pictures), "of": one.found, "damaged": one.damaged, "generated_beside": one.drawn,
                "captions": len({picture.caption for picture in one.pictures}), "sha256": one.sha256,
            }
            for name, one in self.sets.items()
        }  # fmt: skip
        return {"own_pictures": told} if told else {}

    def in_words(self) -> str:
        """One line for a plan."""
        cut = "centre" if self.center_crop else "a drawn place"
        hand = ", mirrored or not" if self.random_flip else ""
        return (
            "; ".join(
                f"{name} {len(one.pictures)} of {one.found} own pictures and {one.drawn} generated latents, sha256 "
                f"{one.sha256[:12]}"
                for name, one in self.sets.items()
            )
            + f" (cut: {cut}{hand})"
        )


def with_own_sets(own: OwnSets, concept: Concept, classes: bool) -> tuple[OwnSets, Concept]:
    """Every picture with its caption, and the concept with the captions as its prompts.

    A picture to forget without a caption is one of the forget prompts, in turn. A caption means afterwards what it says
    with the words exchanged in which a forget prompt differs from its anchor; where it has no such words, an anchor
    prompt, in turn.

    Args:
        own: As they were read.
        concept: What the words of the command line mean.
        classes: Whether prompts are names of a model's classes.

    Raises:
        UserError: If a caption is no class of such a model, is retained and forgotten, or there are too many.
    """
    sets = dict(own.sets)
    anchors = dict(zip(concept.forget_prompts, concept.anchor_prompts, strict=True))
    changed: dict[str, Any] = {}
    if "forget" in sets:
        given = [*anchors]
        shown = [one.caption or given[row % len(given)] for row, one in enumerate(sets["forget"].pictures)]
        if classes:
            shown = [given[0]] * len(shown)  # The class is the concept, whatever a data set calls it.
        sets["forget"] = _captioned(sets["forget"], shown, tuple(given))
        prompts = _prompts(sets["forget"])
        turn = list(anchors.values())
        pairs = [
            anchors.get(prompt) or _swapped(prompt, anchors) or turn[row % len(turn)]
            for row, prompt in enumerate(prompts)
        ]
        explicit = concept.explicit or bool(explicit_words(prompts))
        changed |= {"forget_prompts": prompts, "anchor_prompts": tuple(pairs), "explicit": explicit}
    if "retain" in sets:
        word = (lambda label: label) if classes else class_caption
        shown = [one.caption or word(one.label) for one in sets["retain"].pictures]
        if classes and (unknown := next((name for name in shown if name not in concept.retain_prompts), "")):
            raise UserError(
                f"Pictures to retain must be of the model's other classes ({', '.join(concept.retain_prompts)}); found "
                f"{unknown!r}: rename its folder, or take it out of --retain_dir."
            )
        sets["retain"] = _captioned(sets["retain"], shown, tuple(dict.fromkeys(concept.retain_prompts)))
        changed["retain_prompts"] = _prompts(sets["retain"])
        asked = concept.retain_evaluation
        seen = set(changed["retain_prompts"])
        changed["retain_evaluation"] = tuple(
            dataclasses.replace(one, trained_on=one.trained_on and one.prompt in seen) for one in asked
        )
    return dataclasses.replace(own, sets=sets), dataclasses.replace(concept, **changed)


def _swapped(caption: str, anchors: Mapping[str, str]) -> str:
    """A caption with the words exchanged in which a forget prompt differs from its anchor; empty where it has none.

    >>> _swapped("a red circle", {"a photo of a circle": "a photo of a square"})
    'a red square'
    >>> _swapped("Boats by Van Gogh, 1888", {"a painting by Van Gogh": "a painting"})
    'Boats, 1888'
    """
    for forget, anchor in anchors.items():
        old, new = forget.split(), anchor.split()
        while old and new and old[0] == new[0]:
            old, new = old[1:], new[1:]
        while old and new and old[-1] == new[-1]:
            old, new = old[:-1], new[:-1]
        words = r"\s+".join(map(re.escape, old))
        around = re.split(rf"\b{words}\b" if new else rf"\s*\b{words}\b", caption, flags=re.IGNORECASE)
        exchanged = " ".join(" ".join(new).join(around).split())
        if old and len(around) > 1 and exchanged:
            return exchanged
    return ""


def _captioned(one: OwnSet, captions: list[str], prompts: tuple[str, ...]) -> OwnSet:
    pictures = tuple(
        dataclasses.replace(picture, caption=caption) for picture, caption in zip(one.pictures, captions, strict=True)
    )
    return dataclasses.replace(one, pictures=pictures, prompts=prompts if one.drawn else ())


def _prompts(one: OwnSet) -> tuple[str, ...]:
    """Captions of a set's pictures and what is drawn beside them, each once."""
    found = tuple(dict.fromkeys((*(picture.caption for picture in one.pictures), *one.prompts)))
    if len(found) > _MOST_CAPTIONS:
        raise UserError(
            f"A set may have {_MOST_CAPTIONS:,} different captions, got {len(found):,}: each is encoded and kept. Ask "
            "for fewer pictures, or give them one caption."
        )
    return found


def sized(own: OwnSets, settings: Settings, concept: Concept, config: EraseConfig) -> Settings:
    """The settings with the sizes of own sets; anchor latents that nobody asked for keep the preset's proportion.

    Args:
        own: The sets.
        settings: Of the concept and the flags.
        concept: Its numbers.
        config: The flags.
    """
    changed: dict[str, Any] = {f"num_{name}_images": len(one) for name, one in own.sets.items()}
    if "forget" in own.sets and config.num_anchor_images is None:
        ratio = concept.numbers.num_anchor_images / concept.numbers.num_forget_images
        changed["num_anchor_images"] = round(len(own.sets["forget"]) * ratio)
    return dataclasses.replace(settings, **changed)
