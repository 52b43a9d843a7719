"""What a run asks of the denoiser, counted before it starts: one row is one latent that goes through it once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.global_batch import GlobalBatch
from salun_diffusers.diffusion.robustness import Robustness
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.diffusion.strength_prompts import strength_pictures

# Steps in which a scheduler asks more than once; all others ask once a step.
_CALLS: dict[str, Callable[[int], int]] = {
    "PNDMScheduler": lambda steps: steps + 1,
    "HeunDiscreteScheduler": lambda steps: 2 * steps - 1,
    "KDPM2DiscreteScheduler": lambda steps: 2 * steps - 1,
    "KDPM2AncestralDiscreteScheduler": lambda steps: 2 * steps - 1,
}
# A backward pass takes about twice its forward pass.
_WITH_GRADIENT = 3


@dataclass(frozen=True)
class StageRows:
    """Rows of one stage.

    Args:
        stage: Its name.
        rows: Forward passes of one row, over all processes.
        draws: Whether it draws pictures or latents.
        gradient: Whether they are differentiated.
    """

    stage: str
    rows: int
    draws: bool = False
    gradient: bool = False

    @property
    def work(self) -> int:
        """In forward passes of one row, with the backward pass."""
        return self.rows * _WITH_GRADIENT if self.gradient else self.rows


def sampling_calls(scheduler: str, steps: int) -> int:
    """How often a scheduler asks the denoiser for one picture.

    >>> [sampling_calls(name, 50) for name in ("PNDMScheduler", "DDIMScheduler", "HeunDiscreteScheduler")]
    [51, 50, 99]
    """
    calls = _CALLS.get(scheduler)
    return calls(steps) if calls else steps


def row_forwards(
    concept: Concept,
    settings: Settings,
    scheduler: str,
    processes: int = 1,
    *,
    real_pictures: bool = False,
    own_pictures: int = 0,
    collateral: int = 0,
) -> list[StageRows]:
    """The rows of every stage of a run, over all of its processes.

    Args:
        concept: Its prompts.
        settings: Sizes and lengths.
        scheduler: Class of the one that draws.
        processes: How many take part.
        real_pictures: Whether the sets are the user's pictures, and not drawn.
        own_pictures: How many items of the sets are the user's pictures, where some are.
        collateral: Pictures of the collateral report, of both sides.
    """
    # Guided sampling asks for ε(c) and ε(∅).
    each = sampling_calls(scheduler, settings.num_inference_steps) * (2 if settings.guidance_scale > 1 else 1)
    drawn = 0 if real_pictures else sum(count for _, _, count in concept.sets(settings)) - own_pictures
    asked = len(concept.forget_evaluation) + len(concept.retain_evaluation)
    pictures = asked * settings.num_validation_images * each
    batch = GlobalBatch.of(settings, processes).size
    states = settings.num_forget_images + settings.num_anchor_images
    halves, teacher = _rows_of_objective(settings)
    trained = settings.length.steps(states, batch) * batch
    against = settings.num_retain_images if settings.mask == "saliency_ratio" else 0
    scored = settings.num_forget_images + against if settings.scored else 0
    strength = strength_pictures(concept, settings) * each
    return [
        StageRows("pictures before", pictures, draws=True),
        StageRows("latent sets", drawn * each, draws=True),
        StageRows("saliency", 2 * scored, gradient=True),
        StageRows("targets", trained * teacher),
        StageRows("fine-tuning", trained * (halves + Robustness.of(settings).rows), gradient=True),
        StageRows("pictures after", pictures, draws=True),
        *([StageRows("distances", 2 * settings.num_forget_images)] if settings.saliency_weighting != "none" else []),
        *([StageRows("collateral", collateral * each, draws=True)] if collateral else []),
        *([StageRows("strength", strength, draws=True)] if strength else []),
    ]


def in_words(stages: list[StageRows]) -> str:
    """One line for a plan: every stage, the sum, and the share of drawing."""
    total = sum(stage.work for stage in stages)
    drawing = sum(stage.work for stage in stages if stage.draws)
    told = ", ".join(f"{stage.stage} {stage.work:,}" for stage in stages)
    return (
        f"{told}; {total:,} in all, {drawing / total:.0%} of them drawing (passes of one latent through the denoiser; "
        f"one with gradient counts {_WITH_GRADIENT})"
    )


def _rows_of_objective(settings: Settings) -> tuple[int, int]:
    """Per forget latent of a batch: rows of the network that learns, and of its teacher."""
    if settings.objective == "relabel":
        return 2, 1 if settings.recipe == "paper" else 2 + (Robustness.of(settings).overshoot > 0)
    if settings.objective in ("finetune", "l1_sparse"):
        return 1, 0
    halves = 2 if settings.retain_weight else 1
    return halves, halves + 1 if settings.objective == "esd" else 0
