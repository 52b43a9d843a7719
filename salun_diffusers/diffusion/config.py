"""Every setting of an erasure: one frozen dataclass is default, type, help and flag."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from salun_diffusers.arguments import choice_alone, secret, setting
from salun_diffusers.diffusion.source_config import SourceConfig

Recipe = Literal["frozen_teacher", "paper"]
ObjectiveName = Literal["relabel", "ascent", "finetune", "l1_sparse", "esd"]
SoftThreshold = Literal["none", "proximal", "probabilistic", "continuous"]
SoftRule = Literal["exact", "official"]
MaskDraws = Literal["fixed", "step"]
Robust = Literal["none", "embedding", "relearning", "both"]
# diffusers' own names (diffusers.optimization.SchedulerType).
LearningRateCourse = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "piecewise_constant"
]
SALIENCY_MASKS = ("saliency", "saliency_ratio")
"""The masks that gradients make."""
_DATA, _MASK, _TRAIN = "Generated data", "Saliency mask", "Fine-tuning"
_EVALUATION, _RUN, _HUB = "Evaluation", "Run", "Hub"


@dataclass(frozen=True)
class EraseConfig(SourceConfig):
    """Settings of one erasure. `None` means: as the concept's preset says, or else as the paper says."""

    mask: str = setting(
        "saliency",
        "saliency, saliency_ratio (by squared gradients of the forget set over those of the retain set), random, "
        "magnitude, full, or a mask file.",
        group=_MASK,
    )
    mask_ratio: float = setting(0.5, "Share of the weights that may move.", group=_MASK, above=0, maximum=1)
    mask_scope: Literal["global", "per_tensor"] = setting(
        "global", "Rank weights over the whole denoiser or within each tensor.", group=_MASK
    )
    saliency_guidance: float | None = setting(
        None, "w of the guided prediction (1+w)ε(c) - wε(∅) in the saliency loss.", group=_MASK, minimum=0
    )
    saliency_weighting: Literal["none", "difference"] = setting(
        "none",
        "difference: a state counts in the saliency loss by how far the predictions for the concept and for its anchor "
        "are apart there.",
        group=_MASK,
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
    soft_threshold: SoftThreshold = setting(
        "none",
        "proximal: all changes are shrunk after each step (SalUn-soft); probabilistic: the mask is drawn, each weight "
        "by a probability from its score; continuous: that probability scales each weight's updates.",
        group=_MASK,
    )
    soft_share: float | None = setting(
        None,
        "proximal: share of the changes taken back at the start, falling to 0; 0.5 by default.",
        group=_MASK,
        minimum=0,
        maximum=1,
    )
    soft_rule: SoftRule | None = setting(
        None,
        "proximal: exact (default); official: the share falls in leaps and ends above 0, and the VAE's and the text "
        "encoder's weights count as unchanged ones, as in the official code.",
        group=_MASK,
    )
    mask_temperature: float | None = setting(
        None,
        "probabilistic, continuous: T of p = 1 / (1 + (c/s)^(1/T)) of a score s; 0.25 by default, small is almost the "
        "hard mask.",
        group=_MASK,
        minimum=0.01,
        maximum=100,
    )
    mask_draws: MaskDraws | None = setting(
        None, "probabilistic: one draw for the whole run (fixed, the default) or one for each step.", group=_MASK
    )

    adapter: Literal["none", "lora", "sparse"] = setting(
        "none",
        "none: weights of the denoiser move, and a pipeline is written; lora: the base stays as it is, and a LoRA is "
        "written, on the layers that carry the most saliency (--mask, --mask_ratio and --train_method say which); "
        "sparse: as none, and what moved is also written for PEFT, which linear layers alone allow.",
        group=_TRAIN,
    )
    rank: int | None = setting(
        None,
        "Of --adapter lora: it has as many parameters as a LoRA of this rank on every layer, shared out by saliency; "
        "4 by default.",
        group=_TRAIN,
        minimum=1,
        maximum=4096,
    )
    lora_alpha: float | None = setting(
        None, "Of --adapter lora: what it learns counts times --lora_alpha / --rank; by default once.", group=_TRAIN,
        above=0,
    )  # fmt: skip
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
    robust: Robust = choice_alone(
        "none",
        "Forget so that it holds: relearning (what --robust alone means): also after some steps of training it back; "
        "embedding: also for prompts that were moved towards the concept (inner attacks); both.",
        alone="relearning",
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
    strength_points: int | None = setting(
        None,
        "Without --target_forget: draw the report's pictures at so many strengths from 0 to 1, ends included; by "
        "default 5 where a detector looks for one concept, 0 is no curve.",
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
    red_team: Literal["none", "quick", "full"] = setting(
        "none",
        "When the erased pipeline is written, attack it as `salun attack` does (quick: the settings of a small model; "
        "full: those of the sources, hours on a GPU), and probe it; the report has the rates, red_team/ has the page.",
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

    push_to_hub: bool = setting(
        False, "Upload the erased pipeline with its model card when the run is done, and nothing else.", group=_HUB
    )
    hub_model_id: str | None = setting(
        None, "Repository to upload to, NAME or OWNER/NAME; by default the name of --output_dir.", group=_HUB
    )
    hub_token: str | None = secret(
        "Token of the hub that may write; by default that of `hf auth login` or HF_TOKEN. Never recorded.", group=_HUB
    )
    hub_private_repo: bool = setting(False, "Make the repository a private one.", group=_HUB)
    publish_mask: bool = setting(
        False,
        "Upload the mask, and the patch if there is one, too: whoever has them can bring the concept back more easily.",
        group=_HUB,
    )

    @property
    def output_root(self) -> str:
        """The folder that takes what is written: --output_dir, or `runs` with the folders of unnamed runs."""
        return "runs" if self.output_dir is None else self.output_dir
