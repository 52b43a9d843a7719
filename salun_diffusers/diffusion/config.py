"""Every setting of an erasure: one frozen dataclass is default, type, help and flag."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from salun_diffusers.arguments import optional_word, setting

Recipe = Literal["frozen_teacher", "paper"]
PredictionType = Literal["scheduler", "epsilon", "v_prediction"]
ConceptKind = Literal["object", "person", "logo", "style", "artist", "character", "colour"]
ObjectiveName = Literal["relabel", "ascent", "finetune", "l1_sparse", "esd"]
# diffusers' own names (diffusers.optimization.SchedulerType).
LearningRateCourse = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "piecewise_constant"
]
_MODEL, _CONCEPT, _DATA, _MASK = "Model", "Concept", "Generated data", "Saliency mask"
_TRAIN, _EVALUATION, _RUN = "Fine-tuning", "Evaluation", "Run"


@dataclass(frozen=True)
class EraseConfig:
    """Settings of one erasure. `None` means: as the concept's preset says, or else as the paper says."""

    concept: str = setting(
        "", "What to forget: a preset's name, any words, or a TOML file with a concept of your own.", group=_CONCEPT
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

    pretrained_model_name_or_path: str = setting(
        "CompVis/stable-diffusion-v1-4",
        "Hub id, local pipeline folder, single .safetensors file, `demo` or `digits`.",
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
        None, "Latents generated for the forget set.", group=_DATA, minimum=1, maximum=10**7
    )
    num_anchor_images: int | None = setting(
        None,
        "Latents of the anchor prompts that fine-tuning sees with the forget prompts, beside the forget set.",
        group=_DATA,
        minimum=0,
    )
    num_retain_images: int | None = setting(
        None, "Latents generated for the retain set.", group=_DATA, minimum=1, maximum=10**7
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

    mask: str = setting("saliency", "saliency, random, magnitude, full, or a mask file.", group=_MASK)
    mask_ratio: float = setting(0.5, "Share of the weights that may move.", group=_MASK, above=0, maximum=1)
    mask_scope: Literal["global", "per_tensor"] = setting(
        "global", "Rank weights over the whole denoiser or within each tensor.", group=_MASK
    )
    saliency_guidance: float | None = setting(
        None, "w of the guided prediction (1+w)ε(c) - wε(∅) in the saliency loss.", group=_MASK, minimum=0
    )
    saliency_batch_size: int | None = setting(None, "Latents a batch in the saliency pass.", group=_MASK, minimum=1)
    saliency_micro_batch_size: int | None = setting(
        None,
        "Latents in memory at once in the saliency pass, whose sums stay the same; by default the whole batch.",
        group=_MASK,
        minimum=1,
    )
    offload_saliency: bool = setting(
        False, "Keep the sums of the saliency pass on the CPU: 4 bytes a weight less on the GPU.", group=_MASK
    )
    saliency_max_grad_norm: float | None = setting(
        None,
        "Clip each batch's gradient before it is added, as the official DDPM code does (1.0).",
        group=_MASK,
        above=0,
    )
    train_method: str = setting(
        "full",
        "Which tensors may be selected: full, xattn, noxattn, selfattn, or a regular expression on their names.",
        group=_MASK,
    )

    recipe: Recipe = setting(
        "frozen_teacher",
        "frozen_teacher: both targets are the base model's predictions; paper: SalUn as published.",
        group=_TRAIN,
    )
    objective: ObjectiveName = setting(
        "relabel",
        "relabel: SalUn; baselines: ascent (GA), finetune (FT), l1_sparse, esd (negative guidance).",
        group=_TRAIN,
    )
    l1_weight: float = setting(1e-5, "Weight of l1_sparse's penalty, decaying to 0.", group=_TRAIN, minimum=0)
    negative_guidance: float = setting(1.0, "η of esd.", group=_TRAIN, minimum=0)
    train_batch_size: int | None = setting(
        None,
        "Forget latents per process and micro-batch, as in diffusers' scripts; as many retain latents go with them. By "
        "default a preset's global batch, which processes and --gradient_accumulation_steps divide.",
        group=_TRAIN,
        minimum=1,
    )
    num_train_epochs: int | None = setting(None, "Passes over the forget set.", group=_TRAIN, minimum=1)
    max_train_steps: int | None = setting(
        None, "Optimizer steps; overrides --num_train_epochs.", group=_TRAIN, minimum=1
    )
    learning_rate: float | None = setting(None, "Learning rate of Adam.", group=_TRAIN, above=0)
    scale_lr: bool = setting(False, "Multiply --learning_rate by processes × accumulation × batch.", group=_TRAIN)
    use_ema: bool = setting(
        False, "Save the exponential moving average of the selected weights (diffusers' EMAModel).", group=_TRAIN
    )
    lr_scheduler: LearningRateCourse | None = setting(None, "Course of the learning rate.", group=_TRAIN)
    lr_warmup_steps: int = setting(
        0, "Steps of linear warm-up; not for constant and piecewise_constant.", group=_TRAIN, minimum=0
    )
    lr_num_cycles: int = setting(1, "Cycles of cosine_with_restarts.", group=_TRAIN, minimum=1)
    lr_power: float = setting(1.0, "Exponent of polynomial.", group=_TRAIN, above=0)
    lr_step_rules: str = setting(
        "", "piecewise_constant: factors and the steps they end at, 1:100,0.1:200,0.01.", group=_TRAIN
    )
    retain_weight: float | None = setting(
        None, "Weight of the retain loss (α in the official code).", group=_TRAIN, minimum=0
    )
    snr_power: float | None = setting(
        None,
        "p of the weight min(SNR^-p, 10) of squared errors of noise, (SNR + 1)^-p of v: more for noisy states, where "
        "the layout is decided.",
        group=_TRAIN,
        minimum=0,
        maximum=1,
    )
    empty_prompt_share: float | None = setting(
        None, "Share of retain latents that keep the empty prompt's prediction.", group=_TRAIN, minimum=0, maximum=1
    )
    gradient_accumulation_steps: int = setting(
        1, "Micro-batches per optimizer step and process.", group=_TRAIN, minimum=1
    )
    gradient_checkpointing: bool = setting(False, "Trade time for memory in the denoiser.", group=_TRAIN)
    mixed_precision: Literal["no", "fp16", "bf16"] | None = setting(
        None, "Autocast over fp32 weights; by default what accelerate was told.", group=_TRAIN
    )
    use_8bit_adam: bool = setting(
        False, "Adam's moments in 8 bits, by bitsandbytes: 2 bytes a selected weight instead of 8.", group=_TRAIN
    )
    adam_beta1: float = setting(0.9, "Adam's first decay.", group=_TRAIN, minimum=0, maximum=0.99999)
    adam_beta2: float = setting(0.999, "Adam's second decay.", group=_TRAIN, minimum=0, maximum=0.99999)
    adam_weight_decay: float = setting(0.0, "Decoupled weight decay of the selected weights.", group=_TRAIN, minimum=0)
    adam_epsilon: float = setting(1e-8, "Adam's epsilon.", group=_TRAIN, above=0)
    max_grad_norm: float | None = setting(
        None, "Clip the gradient of the selected weights; off by default.", group=_TRAIN, above=0
    )

    detector: str = setting(
        "preset",
        "Detector that looks for the concept: the preset's, none, nudenet, demo, digits, "
        'clip:"words" (the words against the anchor prompts), or the folder or hub id of an image classifier.',
        group=_EVALUATION,
    )
    detector_labels: tuple[str, ...] = setting(
        (), "Labels of the classifier that mean the concept; by default the one of its name.", group=_EVALUATION
    )
    clip: str | None = setting(
        None,
        "CLIP of --detector clip:, and for comparing retained pictures without labels with the base's: local folder or "
        "hub id.",
        group=_EVALUATION,
    )
    num_validation_images: int | None = setting(
        None, "Same-seed pictures per validation prompt, before and after.", group=_EVALUATION, minimum=1, maximum=10**6
    )
    target_forget: float | None = setting(
        None,
        "Look for the weakest strength s of θ₀ + s·Δθ at which the detector misses the concept in this share of "
        "pictures of its prompts; by default the whole change is saved (s = 1).",
        group=_EVALUATION,
        above=0,
        maximum=1,
    )
    max_retain_drop: float | None = setting(
        None,
        "With --target_forget: by how much the rate of what must stay may fall; 0.01 by default.",
        group=_EVALUATION,
        minimum=0,
        maximum=1,
    )
    strength_points: int = setting(
        0,
        "Without --target_forget: draw the report's pictures at so many strengths from 0 to 1 as well (5 is a curve); "
        "needs a detector.",
        group=_EVALUATION,
        minimum=0,
        maximum=101,
    )
    collateral: bool = setting(
        False,
        "Also measure what else changed: neighbours one by one, colours, numbers and places, everyday captions, KID; "
        "about 320 pictures before and 320 after, and 120 of the base besides.",
        group=_EVALUATION,
    )
    keep_explicit_latents: bool = setting(
        False,
        "Keep the latents of an explicit concept when the run is done: with the model's decoder they are pictures.",
        group=_DATA,
    )
    show_explicit: bool = setting(False, "Do not blur previews of explicit concepts.", group=_EVALUATION)

    output_dir: str | None = setting(None, "Folder of the run (default: runs/NNNN-<concept>-…).", group=_RUN)
    seed: int = setting(0, "Seed of everything random.", group=_RUN, minimum=0, maximum=2**31 - 1)
    checkpointing_steps: int = setting(500, "Steps between checkpoints.", group=_RUN, minimum=1)
    checkpoints_total_limit: int | None = setting(None, "Checkpoints kept; all by default.", group=_RUN, minimum=1)
    resume_from_checkpoint: str | None = setting(
        None, "`latest` or a checkpoint folder of --output_dir: go on where a run stopped.", group=_RUN
    )
    save_dtype: Literal["base", "float32", "float16", "bfloat16"] = setting(
        "base", "Data type of the saved denoiser; base: that of its weight file.", group=_RUN
    )
    save_patch: bool = setting(
        False,
        "Also write patch.safetensors: base + patch = erased, erased - patch = base.",
        group=_RUN,
    )
    report_to: str | None = setting(
        None,
        "accelerate tracker for losses, settings and validation pictures, such as tensorboard; `all`: every installed.",
        group=_RUN,
    )
    logging_dir: str = setting("logs", "Folder of the tracker's files, in --output_dir if not absolute.", group=_RUN)
    tracker_project_name: str = setting("salun_diffusers", "Project that the tracker files runs under.", group=_RUN)
    validation_prompts: tuple[str, ...] = setting(
        (), "Prompts whose same-seed pictures, the base's and the present ones, go to --report_to.", group=_RUN
    )
    validation_steps: int = setting(
        100, "Steps between pictures of --validation_prompts; the last step has them too.", group=_RUN, minimum=1
    )
    enable_xformers_memory_efficient_attention: bool = setting(
        False, "Accepted and without effect: torch's own attention (SDPA) has the same kernels.", group=_RUN
    )
    allow_tf32: bool = setting(False, "Allow TF32 matrix products on NVIDIA GPUs.", group=_RUN)
    dry_run: bool = setting(
        False, "Print the resolved configuration, the plan and what it would cost, then stop.", group=_RUN
    )
    vram: float | None = setting(
        None,
        "With --dry_run: a GPU's gigabytes; prints the flags with which the run fits in them.",
        group=_RUN,
        above=0,
    )
    probe: Literal["auto", "on", "off"] = setting(
        "auto",
        "Try a batch of every stage before the work, to see whether they fit and how long they take; auto: on a GPU, "
        "for denoisers of 50 million weights or more. With --dry_run, on loads the model and tells the time.",
        group=_RUN,
    )
