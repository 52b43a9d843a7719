"""The attacks and probes there are, by name, in the sources' settings or in those of a small model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.families.latent_unet import LatentUNetFamily
from salun_diffusers.diffusion.request import Request
from salun_diffusers.errors import UserError
from salun_diffusers.files.pipeline_folder import CLASS_CONDITIONAL
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.files.run_source import RunSource
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.red_team.add_ons import FewSteps, WithControlNet
from salun_diffusers.red_team.added_noise import AddedNoise
from salun_diffusers.red_team.attack import Attack
from salun_diffusers.red_team.concept_inversion import ConceptInversion, Sentences
from salun_diffusers.red_team.config import ExaminedConfig
from salun_diffusers.red_team.denoising import is_small
from salun_diffusers.red_team.lessons import BenignPictures, ConceptPictures, Lessons
from salun_diffusers.red_team.opened import Examination
from salun_diffusers.red_team.p4d import P4D
from salun_diffusers.red_team.practice import ByLora, ByWeights, Way
from salun_diffusers.red_team.probe import Probe
from salun_diffusers.red_team.relearning import FULL, QUICK, Relearning
from salun_diffusers.red_team.ring_a_bell import RingABell
from salun_diffusers.red_team.side_doors import Completion, ImageToImage, Inpainting
from salun_diffusers.red_team.textless import Tina
from salun_diffusers.red_team.unlearn_diff_atk import UnlearnDiffAtk
from salun_diffusers.red_team.worded import Paraphrased, RandomTokens, Synonymous, Translated

Size = Literal["quick", "full"]
_MOST_PAIRS = 50
_SENTENCES: dict[str, Sentences] = {"style": "style", "artist": "style", "person": "person"}

ATTACKS: dict[str, Callable[[Size, Examination], Attack]] = {
    "random": lambda size, _: RandomTokens.quick() if size == "quick" else RandomTokens(),
    "paraphrase": lambda size, _: Paraphrased.quick() if size == "quick" else Paraphrased(),
    "synonym": lambda size, _: Synonymous.quick() if size == "quick" else Synonymous(),
    "translation": lambda size, _: Translated.quick() if size == "quick" else Translated(),
    "ring_a_bell": lambda size, seen: (
        RingABell.quick(_pairs(seen)) if size == "quick" else RingABell(_pairs(seen))
    ),
    "unlearn_diff_atk": lambda size, seen: (
        UnlearnDiffAtk.quick() if size == "quick"
        else UnlearnDiffAtk(words_before(seen.request.concept), batch_size=_at_once(seen, 8))
    ),
    "p4d_n": lambda size, seen: P4D.quick("N") if size == "quick" else P4D("N", batch_size=_at_once(seen, 8)),
    "p4d_k": lambda size, seen: P4D.quick("K") if size == "quick" else P4D("K", batch_size=_at_once(seen, 8)),
    "concept_inversion": lambda size, seen: (
        (ConceptInversion.quick if size == "quick" else ConceptInversion)(sentences_of(seen.request.concept))
    ),
    "tina": lambda size, seen: Tina.quick() if size == "quick" else Tina(batch_size=_at_once(seen, 4)),
}  # fmt: skip
"""Cheap ones first."""

_WORDLESS = ("tina",)
PROBES: dict[str, Callable[[Size, Examination], Probe]] = {
    "relearning": lambda size, seen: _relearning(size, seen, ByWeights(), ConceptPictures()),
    "relearning_selected": lambda size, seen: _relearning(
        size, seen, ByWeights(mask_of(seen.config.pipeline)), ConceptPictures()
    ),
    "relearning_lora": lambda size, seen: _relearning(size, seen, ByLora(), ConceptPictures()),
    "relearning_benign": lambda size, seen: _relearning(size, seen, ByWeights(), _benign(seen)),
    "completion": lambda size, _: Completion.quick() if size == "quick" else Completion(),
    "inpainting": lambda *_: Inpainting(),
    "image_to_image": lambda size, seen: (
        ImageToImage.quick(_anchors(seen)) if size == "quick" else ImageToImage(_anchors(seen))
    ),
    "added_noise": lambda size, _: AddedNoise.quick() if size == "quick" else AddedNoise(),
}
_QUICK_PROBES = ("relearning", "completion", "inpainting", "image_to_image", "added_noise")


def _relearning(size: Size, seen: Examination, way: Way, lessons: Lessons) -> Relearning:
    """At the pace of the model's size, which is the same for all that were erased from one base."""
    made = Relearning.at_pace(seen.contest.target.family, way, lessons, QUICK if size == "quick" else FULL)
    precision: Any = seen.accelerator.mixed_precision
    return replace(made, seed=seen.config.seed, mixed_precision=precision)


def require_possible(attacks: Sequence[str], probes: Sequence[str], listed: bool, request: Request, name: str) -> None:
    """Refuse what cannot be done with a model, while nothing is loaded.

    Args:
        attacks: As `attacks_of` takes them.
        probes: As `probes_of` takes them.
        listed: Whether prompts of a list are to be drawn.
        request: What was erased, and from what.
        name: What is examined, as it was typed.

    Raises:
        UserError: If an attack needs a text encoder that is not there, or a probe the mask of a run.
    """
    everything = _WORDLESS if request.class_name == CLASS_CONDITIONAL else tuple(ATTACKS)
    asked = [*(word for word, _ in chosen(attacks, everything, everything, "--attacks")), *(["prompt_list"] * listed)]
    for word in asked:
        if everything == _WORDLESS and word not in everything:
            flag = "--prompt_file" if word == "prompt_list" else f"--attacks {word}"
            raise UserError(
                f"{flag} searches through words. A text encoder is required, and {name} has none; "
                f"{', '.join(_WORDLESS)} and all probes work without."
            )
    if "relearning_selected" in (word for word, _ in chosen(probes, (), (), "--probes")):
        mask_of(name)


def attacks_of(words: Sequence[str], seen: Examination) -> list[Attack]:
    """The attacks that a flag names.

    Args:
        words: ``quick``, ``full`` (or ``all``), or names, in the sources' settings; of a name with ``-quick`` behind it
            those of a small model.
        seen: What they are run on. Of a model that reads no words ``quick`` and ``full`` are those that need none.

    Raises:
        UserError: If there is none of a name.
    """
    everything = tuple(ATTACKS) if isinstance(seen.contest.target.family, LatentUNetFamily) else _WORDLESS
    return [ATTACKS[name](size, seen) for name, size in chosen(words, everything, everything, "--attacks")]


def probes_of(words: Sequence[str], seen: Examination) -> list[Probe]:
    """The probes that a flag names; see `attacks_of`.

    Raises:
        UserError: If there is none of a name, or one needs a mask that is not there.
    """
    everything = tuple(
        name for name in PROBES if name != "relearning_selected" or _mask_file(seen.config.pipeline) is not None
    )
    return [PROBES[name](size, seen) for name, size in chosen(words, _QUICK_PROBES, everything, "--probes")]


def add_ons_of(config: ExaminedConfig) -> list[FewSteps | WithControlNet]:
    """The probes of what users put onto a model, where a flag names it. Nothing is loaded.

    Raises:
        UserError: If there is no such file, folder or scheduler, or steps are named and no LoRA.
    """
    found: list[FewSteps | WithControlNet] = []
    said = {name: value for name, value in (("steps", config.few_steps), ("scheduler", config.few_step_scheduler))
            if value is not None}  # fmt: skip
    if config.few_step_lora is not None:
        found.append(FewSteps(Path(config.few_step_lora).expanduser(), **said))  # type: ignore[arg-type]
    elif said:
        flag = "--few_steps" if "steps" in said else "--few_step_scheduler"
        raise UserError(f"{flag} says how a LoRA for few steps draws: --few_step_lora is required with it.")
    if config.controlnet is not None:
        found.append(WithControlNet(Path(config.controlnet).expanduser()))
    return found


def chosen(
    words: Sequence[str], quick: Sequence[str], full: Sequence[str], flag: Literal["--attacks", "--probes"]
) -> list[tuple[str, Size]]:
    """Names and sizes that words mean.

    Args:
        words: As typed.
        quick: What ``quick`` stands for.
        full: What ``full`` and ``all`` stand for.
        flag: Whose words they are.

    Raises:
        UserError: If there is none of a name.
    """
    known = ATTACKS if flag == "--attacks" else PROBES
    found: dict[str, Size] = {}
    for word in words:
        name = word.removesuffix("-quick")
        if word == "quick":
            found |= dict.fromkeys(quick, "quick")
        elif word in ("full", "all"):
            found |= dict.fromkeys(full, "full")
        elif word != "none" and name in known:
            found[name] = "full" if name == word else "quick"
        elif word != "none":
            raise UserError(f"{flag} takes quick, full, none, or some of {', '.join(known)}; got {word!r}.")
    return list(found.items())


def mask_of(name: str) -> SaliencyMask:
    """The mask of the run that is examined.

    Args:
        name: The run's folder, as it was typed.

    Raises:
        UserError: If that is no run.
    """
    file = _mask_file(name)
    if file is None:
        raise UserError(f"--probes relearning_selected trains the weights of a run's mask, and {name} is no run with "
                        "one; relearning trains all.")  # fmt: skip
    return SaliencyMask.load(file)


def _at_once(seen: Examination, usual: int) -> int:
    """Cases of an attack at once, of which none depends on the others: more where memory is no matter."""
    return 32 if is_small(seen.contest.target.family) else usual


def words_before(concept: Concept) -> int:
    """k of UnlearnDiffAtk: 5 for what is explicit, 3 for objects and styles, as its authors have it."""
    return 5 if concept.explicit else 3


def sentences_of(concept: Concept) -> Sentences:
    """Around a new word, as CCE's authors have it: for what is explicit a picture's own prompt."""
    if concept.explicit:
        return "prompt"
    return _SENTENCES.get(concept.kind, "object")


def _mask_file(name: str) -> Path | None:
    run = RunSource.found(name)
    file = RunFolder(run.root).mask if run is not None else None
    return file if file is not None and file.is_file() else None


def _pairs(seen: Examination) -> tuple[tuple[str, str], ...]:
    """Prompts with and without the concept."""
    concept = seen.request.concept
    return tuple(zip(concept.forget_prompts, concept.anchor_prompts, strict=True))[:_MOST_PAIRS]


def _anchors(seen: Examination) -> tuple[str, ...]:
    return tuple(dict.fromkeys(seen.request.concept.anchor_prompts))


def _benign(seen: Examination) -> BenignPictures:
    return BenignPictures(tuple(dict.fromkeys(seen.request.concept.retain_prompts)))
