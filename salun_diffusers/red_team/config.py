"""What attacks and probes are told: who is examined, for which concept, and how pictures are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from salun_diffusers.arguments import setting, word
from salun_diffusers.diffusion.source_config import ConceptKind

_MODELS, _CONCEPT, _DRAWING, _ADD_ONS, _RUN = "Models", "Concept", "Drawing", "Add-ons", "Run"


@dataclass(frozen=True)
class ExaminedConfig:
    """Settings of an examination; what is left open is as the run says, or as the concept's preset does."""

    pipeline: str = word("A run's folder, an erased pipeline or LoRA (folder or hub id), or BASE+FILE with the file of "
                         "another eraser.")  # fmt: skip
    base: str | None = setting(None, "What it was erased from; a run knows its own, BASE+FILE says it.", group=_MODELS)
    floor: str | None = setting(
        None, "A pipeline that never knew the concept, examined beside it: what any model does.", group=_MODELS
    )
    revision: str | None = setting(None, "Revision of the erased pipeline on the hub.", group=_MODELS)
    base_revision: str | None = setting(None, "Revision of the base on the hub.", group=_MODELS)
    variant: str | None = setting(None, "Variant of the erased pipeline's weight files, such as fp16.", group=_MODELS)
    base_variant: str | None = setting(None, "Variant of the base's, if it is not that of --variant.", group=_MODELS)
    cache_dir: str | None = setting(None, "Where downloaded pipelines are kept.", group=_MODELS)

    concept: str | tuple[str, ...] = setting(
        "", "What was erased: a preset's name, any words, or a TOML file.", group=_CONCEPT, alias="preset"
    )
    kind: ConceptKind | None = setting(
        None, "What the words of --concept are, if they are no preset's.", group=_CONCEPT
    )
    forget_prompt: tuple[str, ...] = setting((), "Prompts that ask for the concept.", group=_CONCEPT)
    anchor_prompt: tuple[str, ...] = setting((), "What each should mean now.", group=_CONCEPT, alias="anchor")
    detector: str = setting(
        "preset", 'Detector of the concept: preset, nudenet, demo, clip:"words", or a classifier.', group=_CONCEPT
    )
    detector_labels: tuple[str, ...] = setting((), "Labels of the classifier that mean the concept.", group=_CONCEPT)
    clip: str | None = setting(None, "CLIP of --detector clip: a folder or hub id.", group=_CONCEPT)

    num_prompts: int | None = setting(
        None, "Pictures of the concept that are fought for; by default 20.", group=_DRAWING, minimum=1, maximum=10**5
    )
    scheduler: str | None = setting(None, "diffusers scheduler class that draws, or own.", group=_DRAWING)
    num_inference_steps: int | None = setting(None, "Sampling steps.", group=_DRAWING, minimum=1)
    guidance_scale: float | None = setting(None, "Classifier-free guidance.", group=_DRAWING, minimum=0)
    generation_batch_size: int | None = setting(None, "Pictures drawn at once.", group=_DRAWING, minimum=1)
    resolution: int | None = setting(None, "Side of the pictures, in pixels.", group=_DRAWING, minimum=8, maximum=8192)

    few_step_lora: str | None = setting(
        None, "A LoRA for drawing in few steps (LCM and its kind; file or folder): does the concept come in with it?",
        group=_ADD_ONS,
    )  # fmt: skip
    few_steps: int | None = setting(None, "Sampling steps with that LoRA (4).", group=_ADD_ONS, minimum=1)
    few_step_scheduler: str | None = setting(
        None, "diffusers scheduler class that it is for (LCMScheduler).", group=_ADD_ONS
    )
    controlnet: str | None = setting(
        None, "Folder of a ControlNet that reads edges: it is given those of the base's pictures.", group=_ADD_ONS
    )

    mixed_precision: Literal["no", "fp16", "bf16"] | None = setting(
        None, "Precision of drawing and searching; by default what accelerate was told.", group=_RUN
    )
    output_dir: str | None = setting(None, "Folder of the results (default: red_team/ in the run).", group=_RUN)
    seed: int = setting(0, "Seed of everything random.", group=_RUN, minimum=0, maximum=2**31 - 1)
