"""What decides each stage of a run, as one fingerprint a stage: a change that does not touch a stage does not redo it.

Memory, time and looking decide nothing: gradient checkpointing, precision, batches of drawing, micro-batches and sums
of the saliency, Adam's bits, where checkpoints go, the detector. After an out-of-memory error the same folder goes on
with other such flags, and a finished run gets a new report from another detector. Under another precision a resumed run
is not the uninterrupted one to the bit; a checkpoint goes on with Adam of its own bits only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from salun_diffusers.diffusion.concepts import Concept
from salun_diffusers.diffusion.global_batch import GlobalBatch
from salun_diffusers.diffusion.settings import Settings
from salun_diffusers.files.run_folder import fingerprint

_MASK = ("mask_scope", "train_method", "seed")
_SALIENCY = ("saliency_guidance", "saliency_batch_size", "saliency_max_grad_norm")
_BY_PROBABILITY = ("soft_threshold", "mask_temperature", "mask_draws")
_PROXIMAL = ("soft_threshold", "soft_share", "soft_rule")
_TRAINING = (
    "recipe", "objective", "l1_weight", "negative_guidance", "retain_weight", "learning_rate",
    "scale_lr", "use_ema", "lr_scheduler", "lr_warmup_steps", "lr_num_cycles", "lr_power", "lr_step_rules", "snr_power",
    "empty_prompt_share", "adam_beta1", "adam_beta2", "adam_weight_decay",
    "adam_epsilon", "max_grad_norm", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class StageMarks:
    """Fingerprints of the stages of a run.

    Args:
        run: Of what a run is about: base model, prompts, seed. A folder belongs to one.
        sets: Of each latent set, by name.
        mask: Of the mask.
        training: Of the fine-tuned weights after any number of steps.
        pipeline: Of the written pipeline, at full strength.
        strength: Of the strength that was looked for; empty where none is.
    """

    run: str
    sets: Mapping[str, str]
    mask: str
    training: str
    pipeline: str
    strength: str = ""


@dataclass(frozen=True)
class Sources:
    """What a run is given beside its settings.

    Args:
        base: SHA-256 of the base model.
        variant: Variant of its weight files.
        given_masks: SHA-256 of the mask of the user's file, if there is one.
        pictures: SHA-256 of each set of the user's own pictures, by name; empty where the base draws.
        processes: How many share the work; what a step takes of all of them decides, not how it is shared.
        looks: What the detector says of itself, its weights among it; it decides what a search for the strength finds.
    """

    base: str
    variant: str | None
    given_masks: tuple[str, ...]
    pictures: Mapping[str, str]
    processes: int
    looks: str = ""


def stage_marks(concept: Concept, settings: Settings, sources: Sources) -> StageMarks:
    """The fingerprints of a run's stages, each with those of the stages it builds on."""

    def chosen(names: tuple[str, ...]) -> dict[str, object]:
        return {name: str(getattr(settings, name)) for name in names}

    # One folder may hold several models, such as weights and their averages.
    variant = {"variant": sources.variant} if sources.variant else {}
    sets = {
        name: fingerprint(
            base=sources.base,
            prompts=texts,
            count=count,
            seed=settings.seed,
            scheduler=settings.scheduler,
            steps=settings.num_inference_steps,
            guidance=settings.guidance_scale,
            pictures=sources.pictures.get(name),
            prediction_type=settings.prediction_type,
            **settings.drawn_size,
            **variant,
        )
        for name, texts, count in concept.sets(settings)
    }
    # How many concepts share the forget set; nothing is said of one.
    shared = {"concepts": concept.groups} if concept.parts else {}
    made = settings.scored or settings.mask in ("magnitude", "random")
    # Only a saliency mask looks at pictures.
    looked = {"set": sets["forget"], **chosen(_SALIENCY)} if settings.scored else {}
    looked |= {"against": sets["retain"]} if settings.mask == "saliency_ratio" else {}
    looked |= {"weighting": settings.saliency_weighting} if settings.saliency_weighting != "none" else {}
    mask = fingerprint(
        base=sources.base,
        **variant,
        given=sources.given_masks,
        kind="given" if sources.given_masks else settings.mask,
        ratio=settings.mask_ratio if made else None,
        **chosen(_MASK),
        # Nothing is said of hard masks.
        **(chosen(_BY_PROBABILITY) if settings.by_probability else {}),
        **looked,
        **({"adapter": settings.adapter, "rank": settings.rank} if settings.adapter != "none" else {}),
        **({"of": settings.concept_masks, **shared} if concept.parts and settings.scored else {}),
    )
    batch = GlobalBatch.of(settings, sources.processes).size
    # How long it takes is left out: a longer training goes on from a shorter one's checkpoint.
    beside = chosen(_PROXIMAL) if settings.soft_threshold == "proximal" else {}
    beside |= {"robust": settings.robust} if settings.robust != "none" else {}
    beside |= {"lora_alpha": settings.lora_alpha} if settings.adapter != "none" else {}
    training = fingerprint(mask=mask, sets=sets, batch=batch, **chosen(_TRAINING), **shared, **beside)
    pipeline = fingerprint(
        training=training, length=str(settings.length), variant=sources.variant, save_dtype=settings.save_dtype
    )
    strength = _strength_mark(pipeline, concept, settings, sources.looks) if settings.searched else ""
    return StageMarks(run_mark(sources.base, concept, settings), sets, mask, training, pipeline, strength)


def _strength_mark(pipeline: str, concept: Concept, settings: Settings, looks: str) -> str:
    """The fingerprint of a search: what it looks for, and how it draws and sees it."""
    return fingerprint(
        pipeline=pipeline,
        target=settings.target_forget,
        allowed=settings.max_retain_drop,
        prompts=(concept.forget_evaluation, concept.retain_evaluation),
        detector=(concept.detector, sorted(concept.target_labels), looks),
        drawn=(settings.scheduler, settings.num_inference_steps, settings.guidance_scale, settings.drawn_size),
    )


def run_mark(base: str, concept: Concept, settings: Settings) -> str:
    """The fingerprint of what a run is about.

    Args:
        base: SHA-256 of the base model.
        concept: Its prompts.
        settings: The seed.
    """
    prompts = (concept.forget_prompts, concept.anchor_prompts, concept.retain_prompts)
    names = {"concepts": [part.name for part in concept.parts]} if concept.parts else {}
    return fingerprint(base=base, prompts=prompts, seed=settings.seed, **names)
