"""Settings of training a class-conditional DDPM; light enough for `--help`."""

from __future__ import annotations

from dataclasses import dataclass

from salun_diffusers.arguments import ANY_SEED, setting


@dataclass(frozen=True)
class TrainDDPMConfig:
    """Settings of the training."""

    train_data: str = setting("digits", "`digits`, a folder with one folder per class, or a `datasets` name.")
    output_dir: str = setting("runs/ddpm", "Where checkpoints and `pipeline/` go.")
    resolution: int = setting(32, "Height and width of the pictures.", minimum=8, maximum=16384)
    channels: int = setting(1, "1 for grey pictures, 3 for colour.", minimum=1, maximum=3)
    random_flip: bool = setting(False, "Mirror half of the pictures (not for digits).")
    exclude_class: str | None = setting(None, "Leave out one class: the model that never saw it (Retrain).")
    block_out_channels: tuple[str, ...] = setting(("16", "32", "64"), "Channels of each level.")
    layers_per_block: int = setting(1, "Residual blocks per level.", minimum=1, maximum=64)
    norm_num_groups: int = setting(8, "Groups of the normalisation.", minimum=1, maximum=4096)
    dropout: float = setting(0.0, "Dropout of the U-Net.", minimum=0, maximum=0.9)
    condition_drop: float = setting(0.1, "Share of pictures shown with the null class.", minimum=0, maximum=1)
    max_train_steps: int = setting(2_000, "Optimizer steps.", minimum=1)
    train_batch_size: int = setting(64, "Pictures a step, over all processes.", minimum=1)
    learning_rate: float = setting(1e-3, "Largest learning rate of AdamW.", above=0)
    ema_decay: float = setting(0.999, "Decay of the average of the weights.", minimum=0, maximum=0.99999)
    max_grad_norm: float = setting(1.0, "Clip the gradient.", above=0)
    mixed_precision: str | None = setting(None, "no, fp16 or bf16; by default what accelerate was told.")
    checkpointing_steps: int = setting(500, "Steps between checkpoints.", minimum=1)
    save_dtype: str = setting("float16", "Data type of the saved weights: float32, float16 or bfloat16.")
    report_to: str | None = setting(None, "accelerate tracker, such as tensorboard.")
    seed: int = setting(0, "Seed of weights, pictures, noise and dropped conditions.", minimum=0, maximum=ANY_SEED)
