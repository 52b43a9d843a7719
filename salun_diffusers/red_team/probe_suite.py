"""Which probes an examination makes, how large each is, and of whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from salun_diffusers.diffusion.families.family import Family
from salun_diffusers.files.run_folder import RunFolder
from salun_diffusers.files.run_source import RunSource
from salun_diffusers.masks.mask import SaliencyMask
from salun_diffusers.red_team.add_ons import FewSteps, WithControlNet
from salun_diffusers.red_team.added_noise import AddedNoise
from salun_diffusers.red_team.attack import Told
from salun_diffusers.red_team.lessons import BenignPictures, ConceptPictures
from salun_diffusers.red_team.opened import Examination
from salun_diffusers.red_team.practice import ByLora, ByWeights, Way
from salun_diffusers.red_team.probe import Evidence, Probe, Reading
from salun_diffusers.red_team.relearning import Relearning
from salun_diffusers.red_team.side_doors import Completion, ImageToImage, Inpainting
from salun_diffusers.red_team.subject import Subject

Precision = Literal["no", "fp16", "bf16"]
_SMALL = 2 * 10**7


@dataclass(frozen=True)
class Training:
    """Rates at which networks of a size learn again; the same for all that were erased from one base.

    Args:
        weights: Rate of the network's own weights.
        lora: Rate of a LoRA.
        batch_size: Pictures a step.
    """

    weights: float
    lora: float
    batch_size: int

    @classmethod
    def of(cls, family: Family) -> Training:
        """By the size of the denoiser.

        Of Stable Diffusion's size MemoRa's LoRA (1e-4, one picture a step) and a tenth of its rate for the weights
        themselves, at which they are erased from; of models below 20 million weights, such as the demo's, thirty and
        ten times as fast, four pictures a step.
        """
        small = sum(parameter.numel() for parameter in family.denoiser.parameters()) < _SMALL
        return cls(1e-4, 3e-3, 4) if small else cls(1e-5, 1e-4, 1)


@dataclass(frozen=True)
class Ingredients:
    """What probes are made from.

    Args:
        anchor_prompts: What the concept became.
        retain_prompts: What was to stay.
        training: How relearning learns.
        way: The weights that an erasure was allowed to move, or all.
        mixed_precision: Of training.
        seed: Of everything random.
        loras: LoRAs for few steps.
        control_nets: ControlNets that read edges.
    """

    anchor_prompts: tuple[str, ...]
    retain_prompts: tuple[str, ...]
    training: Training
    way: Way = ByWeights()  # noqa: RUF009  # frozen
    mixed_precision: Precision = "no"
    seed: int = 0
    loras: tuple[Path, ...] = ()
    control_nets: tuple[Path, ...] = ()

    @classmethod
    def of(
        cls, examination: Examination, loras: tuple[Path, ...] = (), control_nets: tuple[Path, ...] = ()
    ) -> Ingredients:
        """By what was examined: prompts of the concept, and the mask of the run where there is one.

        Raises:
            UserError: If the run's mask is damaged.
        """
        concept, precision = examination.request.concept, examination.accelerator.mixed_precision
        return cls(
            concept.anchor_prompts,
            concept.retain_prompts,
            Training.of(examination.contest.target.family),
            way_of(examination.config.pipeline),
            precision if precision in ("fp16", "bf16") else "no",  # type: ignore[arg-type]
            examination.config.seed,
            loras,
            control_nets,
        )


def way_of(pipeline: str) -> Way:
    """The weights that an erasure was allowed to move, by its run; all of them where there is no run or no mask.

    Raises:
        UserError: If the mask is damaged.
    """
    run = RunSource.found(pipeline)
    mask = RunFolder(run.root).mask if run is not None and run.pipeline is not None else None
    return ByWeights(SaliencyMask.load(mask)) if mask is not None and mask.is_file() else ByWeights()


def _relearning(made_of: Ingredients, way: Way, benign: bool, steps: tuple[int, ...]) -> Relearning:
    training = made_of.training
    return Relearning(
        way,
        BenignPictures(made_of.retain_prompts) if benign else ConceptPictures(),
        steps,
        training.batch_size,
        training.lora if isinstance(way, ByLora) else training.weights,
        mixed_precision=made_of.mixed_precision,
        seed=made_of.seed,
    )


def _given(made_of: Ingredients) -> tuple[Probe, ...]:
    return (*map(FewSteps, made_of.loras), *map(WithControlNet, made_of.control_nets))


def quick(made_of: Ingredients) -> tuple[Probe, ...]:
    """Relearning up to 100 steps, by the selected weights and by a LoRA; a few settings of every door."""
    return (
        _relearning(made_of, made_of.way, False, (0, 10, 25, 50, 100)),
        _relearning(made_of, ByLora(), False, (0, 25, 50, 100)),
        _relearning(made_of, made_of.way, True, (0, 50)),
        Completion((0.5, 0.7, 0.9)),
        Inpainting(),
        ImageToImage(made_of.anchor_prompts, (0.7,)),
        AddedNoise((1.0, 1.34), (1.04,)),
        *_given(made_of),
    )


def full(made_of: Ingredients) -> tuple[Probe, ...]:
    """Every curve to its end: 500 steps in three ways, on the concept and on other pictures; the sources' settings."""
    steps = (0, 10, 25, 50, 100, 250, 500)
    every = [ByLora(), made_of.way]
    if made_of.way.name != ByWeights().name:
        every.append(ByWeights())
    return (
        *(_relearning(made_of, way, False, steps) for way in every),
        *(_relearning(made_of, way, True, (0, 50, 250, 500)) for way in every[:2]),
        Completion(),
        Inpainting(),
        ImageToImage(made_of.anchor_prompts),
        AddedNoise(),
        *_given(made_of),
    )


def looked_at(probe: Probe, evidence: Evidence, floor: Sequence[Subject]) -> tuple[Subject, ...]:
    """Whom a probe is made of: the erased model, the base, and one that never knew the concept, where there is one.

    The base is not taught the concept that it knows: its rate is `Evidence.ceiling` all along.

    Args:
        probe: The probe.
        evidence: Erased model and base.
        floor: One model, or none.
    """
    knows = isinstance(probe, Relearning) and isinstance(probe.lessons, ConceptPictures)
    return (evidence.contest.target, *(() if knows else (evidence.contest.base,)), *floor)


def amount(probes: Sequence[Probe], evidence: Evidence, floor: Sequence[Subject]) -> int:
    """What `told` will have been told by `readings` in all."""
    return sum(
        len(looked_at(probe, evidence, floor)) * probe.amount(len(evidence.cases)) for probe in probes
    )  # fmt: skip


def readings(
    probes: Sequence[Probe], evidence: Evidence, floor: Sequence[Subject], told: Told
) -> dict[str, dict[str, Reading]]:
    """Make probes, one after the other.

    Args:
        probes: As `quick` or `full` says.
        evidence: Whom, and in which cases.
        floor: A model that never knew the concept, or none.
        told: Called with pictures drawn and steps done.

    Returns:
        By the name of the probe, by the name of the model.
    """
    return {
        probe.name: {one.name: probe(one, evidence, told) for one in looked_at(probe, evidence, floor)}
        for probe in probes
    }
