"""The settings that say what an erasure begins with: the concept, the model and the pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from salun_diffusers.arguments import optional_word, setting

PredictionType = Literal["scheduler", "epsilon", "v_prediction"]
ConceptKind = Literal["object", "person", "logo", "style", "artist", "character", "colour"]
_MODEL, _CONCEPT, _DATA, _OWN = "Model", "Concept", "Generated data", "Own pictures"


@dataclass(frozen=True)
class SourceConfig:
    """What is forgotten, by which model, and from which pictures. `None` means: as the preset says, or the paper."""

    concept: str | tuple[str, ...] = setting(
        "",
        "What to forget: a preset's name, any words, or a TOML file with a concept of your own; several at once, each "
        "in quotes if it has spaces.",
        group=_CONCEPT,
    )
    kind: ConceptKind | None = setting(
        None,
        "What the words of --concept are, if they are no preset's: prompts, anchor and neighbours follow from it; by "
        "default guessed, and said in the plan. Given, the words are taken as they are, whatever preset is named so.",
        group=_CONCEPT,
    )
    list_concepts: str | None = optional_word(
        "List the presets and kinds, of a word only those that it occurs in, then stop.", group=_CONCEPT
    )
    forget_prompt: tuple[str, ...] = setting(
        (), "Prompts that must lose the concept; they replace the preset's.", group=_CONCEPT
    )
    anchor_prompt: tuple[str, ...] = setting(
        (),
        "What each forget prompt shall mean afterwards: one for all, or one for each; for a DDPM the other class.",
        group=_CONCEPT,
        alias="anchor",
    )
    retain_prompts: str | None = setting(
        None,
        "Text file, one prompt a line, of what must stay as it is; everyday captions join them unless --recipe paper.",
        group=_CONCEPT,
    )

    concepts: str | None = setting(
        None,
        "Table of several concepts to forget at once, instead of --concept: columns concept, anchor and kind, of which "
        "the last two may be left out or empty.",
        group=_CONCEPT,
    )
    concept_masks: Literal["union", "joint"] = setting(
        "union",
        "Saliency of several concepts: a mask of --mask_ratio for each, joined, or one mask of the loss on all.",
        group=_CONCEPT,
    )

    pretrained_model_name_or_path: str = setting(
        "CompVis/stable-diffusion-v1-4",
        "Hub id, local pipeline folder, single .safetensors file, BASE+FILE, `demo` or `digits`.",
        group=_MODEL,
    )
    revision: str | None = setting(None, "Revision of the model on the hub.", group=_MODEL)
    variant: str | None = setting(None, "Variant of the weight files, such as fp16.", group=_MODEL)
    cache_dir: str | None = setting(None, "Where downloaded models are kept.", group=_MODEL)
    single_file_config: str | None = setting(
        None,
        "For a single file: pipeline folder or hub id with its configurations and tokenizers; by default the hub's "
        "model that diffusers takes it for.",
        group=_MODEL,
    )
    prediction_type: PredictionType = setting(
        "scheduler", "What the denoiser predicts, where its scheduler's configuration is wrong about it.", group=_MODEL
    )

    num_forget_images: int | None = setting(
        None, "Latents of the forget set; of own pictures all by default.", group=_DATA, minimum=1, maximum=10**7
    )
    num_anchor_images: int | None = setting(
        None,
        "Latents of the anchor prompts that fine-tuning sees with the forget prompts, beside the forget set.",
        group=_DATA,
        minimum=0,
    )
    num_retain_images: int | None = setting(
        None, "Latents of the retain set; of own pictures all by default.", group=_DATA, minimum=1, maximum=10**7
    )
    train_data: str | None = setting(
        None,
        "Class-conditional models: take both sets from real pictures instead, `digits`, a folder with one folder per "
        "class, or a `datasets` name.",
        group=_DATA,
    )
    resolution: int | None = setting(
        None,
        "Side of the pictures that are drawn, in pixels, a multiple of 8; by default the model's own. Not for models "
        "of pixels.",
        group=_DATA,
        minimum=8,
        maximum=8192,
    )
    scheduler: str | None = setting(
        None,
        "diffusers scheduler class that draws all latents and pictures, such as DPMSolverMultistepScheduler, or `own`: "
        "the model's. The noise of training stays the model's.",
        group=_DATA,
    )
    num_inference_steps: int | None = setting(None, "Sampling steps for every picture.", group=_DATA, minimum=1)
    guidance_scale: float | None = setting(
        None, "Classifier-free guidance of the pictures, in diffusers' convention.", group=_DATA, minimum=0
    )
    generation_batch_size: int | None = setting(
        None, "Pictures drawn at once; by default 8 of 512 pixels, fewer of larger ones.", group=_DATA, minimum=1
    )

    generated_data_dir: str | None = setting(
        None,
        "Keep the base model's latents here too, and take up those that are there: runs that compare masks or "
        "objectives then draw them once.",
        group=_DATA,
    )

    forget_dir: str | None = setting(
        None,
        "Folder of pictures to forget, instead of generated ones; captions from its metadata.jsonl or .csv, else the "
        "forget prompt.",
        group=_OWN,
    )
    retain_dir: str | None = setting(
        None,
        "Folder of pictures that must stay: with metadata, or one folder per class (captions: an image of a <class>). "
        "--forget_dir may lie in it, and is left out.",
        group=_OWN,
    )
    dataset_name: str | None = setting(
        None,
        "Hub id or path of a `datasets` data set, whose part `train` is the forget set. The retain set is that of "
        "--retain_dir, or generated.",
        group=_OWN,
    )
    dataset_config_name: str | None = setting(None, "Configuration of --dataset_name.", group=_OWN)
    image_column: str = setting("image", "Column of --dataset_name with the pictures.", group=_OWN)
    caption_column: str | None = setting(
        None,
        "Column with captions, of --dataset_name and of metadata; by default `text`, else `caption`.",
        group=_OWN,
    )
    center_crop: bool = setting(
        False, "Cut the centre of own pictures; else a place drawn once for each picture.", group=_OWN
    )
    random_flip: bool = setting(False, "Every draw of an own picture mirrors it with probability 1/2.", group=_OWN)
    generated_share: float = setting(
        0.0,
        "Share of generated latents in a set that has own pictures, below 1; 0: own pictures alone.",
        group=_OWN,
        minimum=0,
        maximum=0.99,
    )
